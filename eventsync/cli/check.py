"""``eventsync check``: whether a deployment can work, and what it risks.

It owns the order of the findings and their weight. It must not change any record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import typer

from eventsync.cli.command import FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import plural, print_json, print_table
from eventsync.errors import BusUnavailableError, EventSyncError, StoreUnavailableError

if TYPE_CHECKING:
    from eventsync.engine.store import Store

__all__ = ["check"]


class Level(StrEnum):
    """What a finding means."""

    OK = "ok"
    NOTE = "note"
    RISK = "risk"
    AWAY = "away"
    WRONG = "wrong"


_COLOURS: Final = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.RISK: "yellow",
    Level.AWAY: "red",
    Level.WRONG: "bold red",
}


@dataclass(slots=True, frozen=True)
class Finding:
    """One thing that was checked."""

    level: Level
    about: str
    text: str


@command
def check(deployment: Deployment, as_json: JsonOption = False) -> int:
    """Check configuration, stores and broker, and say what may be lost.

    Opens every store, which creates what it needs, and asks whether its data and its version index
    can be read and written. Says what the broker's transport may lose when something is killed.

    wrong: has to be corrected; away: cannot be reached now; risk: works, but may lose or trust too
    much; note: good to know.

    Examples:
      eventsync check
      eventsync check --broker redis://localhost
    """
    findings = [*_fit(deployment)]
    for store in deployment.registry:
        findings += _store(store)
    findings += _broker(deployment)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(
            ["", "about", "finding"],
            [[finding.level, finding.about, finding.text] for finding in findings],
            marked=lambda row, column: _COLOURS[findings[row].level] if not column else None,
        )
    levels = [finding.level for finding in findings]
    wrong, away = levels.count(Level.WRONG), levels.count(Level.AWAY)
    if not as_json and wrong + away:
        typer.echo(f"\n{plural(wrong, 'thing')} wrong, {away} away.")
    if wrong:
        return FOUND_WRONG
    return UNAVAILABLE if away else OK


def _fit(deployment: Deployment) -> Iterator[Finding]:
    problems = deployment.registry.problems()
    for problem in problems:
        yield Finding(Level.WRONG, "stores", problem)
    if not problems:
        names = ", ".join(deployment.registry.stores)
        yield Finding(Level.OK, "stores", f"{names} fit together")
    if len(deployment.registry.stores) < 2:
        yield Finding(Level.NOTE, "stores", "there is one only, so nothing is kept in sync")


def _store(store: Store) -> Iterator[Finding]:
    about = f"store {store.name}"
    try:
        store.open()
        for accessor in store.accessors.values():
            accessor.ping()
            store.index.counts(accessor.type.name)
        # Waits for other writers as an edit would, and writes nothing.
        with store.index.transaction():
            pass
        store.index.outgoing(1)
    except PermissionError as error:
        yield Finding(Level.WRONG, about, str(error))
    except (StoreUnavailableError, OSError) as error:
        yield Finding(Level.AWAY, about, str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, about, str(error))
    else:
        types = ", ".join(store.accessors)
        yield Finding(Level.OK, about, f"can be read and written: {types}")


def _broker(deployment: Deployment) -> Iterator[Finding]:
    # Imported here, for they bring kombu with them.
    from eventsync.transports.guarantees import weakness
    from eventsync.transports.redis import url as redis_url

    bus = deployment.bus
    reached = False
    try:
        bus.open()
    except BusUnavailableError as error:
        yield Finding(Level.AWAY, "broker", str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, "broker", str(error))
    else:
        reached = True
        yield Finding(Level.OK, "broker", f"{bus.shown_url} can be reached")
    scheme = bus.transport.lower()
    lost = weakness(scheme)
    if lost is None:
        yield Finding(
            Level.RISK,
            "transport",
            f"{scheme}: what it loses is not known; try it before you rely on it",
        )
    elif lost:
        yield Finding(Level.RISK, "transport", f"{scheme}: {lost}")
    else:
        yield Finding(
            Level.OK, "transport", f"{scheme}: loses nothing when workers or producers are killed"
        )
    if reached and scheme in redis_url.SCHEMES:
        yield from _redis(deployment.settings.broker.get_secret_value())
    if bus.keys is None:
        yield Finding(
            Level.RISK,
            "signatures",
            "envelopes are not signed, so whoever reaches the broker can alter every store; "
            "set EVENTSYNC_KEYS to sign and demand signatures",
        )


def _redis(url: str) -> Iterator[Finding]:
    from eventsync.transports.redis.transport import advice

    try:
        weaknesses = advice(url)
    except BusUnavailableError as error:
        yield Finding(Level.AWAY, "server", str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, "server", str(error))
    else:
        for weakness in weaknesses:
            yield Finding(Level.RISK, "server", weakness)
        if not weaknesses:
            yield Finding(Level.OK, "server", "its settings lose nothing that was published")
