"""``eventsync check``: checks the configuration, stores and broker, and lists the risks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eventsync.cli.command import FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import print_json, print_table
from eventsync.engine.finding import Finding, Level
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from eventsync.engine.change_source import ChangeSource
    from eventsync.engine.registry import StoreRegistry
    from eventsync.engine.store import Store
    from eventsync.envelope.signing import Keyring

__all__ = ["check"]


_COLOURS: Final = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.RISK: "yellow",
    Level.UNREACHABLE: "red",
    Level.WRONG: "bold red",
}


CreateOption = Annotated[
    bool, typer.Option("--create", help="Create missing tables, files and folders.")
]


@command
def check(deployment: Deployment, create: CreateOption = False, as_json: JsonOption = False) -> int:
    """Check the configuration, the stores and the broker.

    Compares declared types with the columns of SQL tables, keys with constraints, and the user's
    rights with the rights that eventsync needs. Creates nothing without --create: no table, file,
    folder or queue. Instead it prints the statements that a database administrator has to run. If
    nothing is missing, it opens every store and checks that its data and its version index can be
    read and written. No record is changed. Tells which messages the broker may lose in a crash.

    Levels:
      wrong         has to be corrected
      unreachable   does not answer now
      risk          works, but may lose changes, or trusts too much
      note          worth knowing
      ok            works

    Examples:
      eventsync check
      eventsync check --create
      eventsync check --broker redis://localhost
    """
    findings = [*_registry(deployment)]
    findings += [Finding(Level.RISK, "settings", text) for text in deployment.unread_settings()]
    for store in deployment.registry:
        findings += _store(store, create=create)
    findings += _broker(deployment, create=create)
    if as_json:
        # Whether something is absent only decides what is checked next.
        print_json([{n: v for n, v in asdict(f).items() if n != "absent"} for f in findings])
    else:
        print_table(
            ["level", "about", "finding"],
            [[finding.level.name.lower(), finding.about, finding.text] for finding in findings],
            marked=lambda row, column: _COLOURS[findings[row].level] if not column else None,
        )
        statements = dict.fromkeys(one for finding in findings for one in finding.statements)
        if statements:
            typer.echo("\nFor the database administrator:\n\n" + "\n\n".join(statements))
    levels = [finding.level for finding in findings]
    wrong, unreachable = levels.count(Level.WRONG), levels.count(Level.UNREACHABLE)
    if not as_json and wrong + unreachable:
        typer.echo(f"\n{wrong:,} wrong, {unreachable:,} unreachable.")
    if wrong:
        return FOUND_WRONG
    return UNAVAILABLE if unreachable else OK


def _registry(deployment: Deployment) -> Iterator[Finding]:
    problems = deployment.registry.problems()
    for problem in problems:
        yield Finding(Level.WRONG, "stores", problem)
    if not problems:
        names = ", ".join(deployment.registry.stores)
        yield Finding(Level.OK, "stores", f"the declarations of {names} are consistent")
    if len(deployment.registry.stores) < 2:
        yield Finding(Level.NOTE, "stores", "there is only one store, so nothing is kept in sync")


def _store(store: Store, *, create: bool) -> Iterator[Finding]:
    about = f"store {store.name}"
    yield from _filters(store, about)
    found: dict[tuple[Level, str], None] = {}
    absent = False
    try:
        with store.errors():
            for finding in _before_opening(store):
                absent |= finding.absent
                # The same tables of the index are looked at for every type.
                if (finding.level, finding.text) not in found and not (create and finding.absent):
                    found[finding.level, finding.text] = None
                    yield replace(finding, about=about)
            if any(level is Level.WRONG for level, _ in found):
                return
            if absent and not create:
                yield Finding(Level.OK, about, "what exists can be used; nothing was created")
                return
            store.open()
            store.ping()
            # Take and release the write lock, as an edit does.
            with store.index.transaction():
                pass
            store.index.outgoing(1)
    except PermissionError as error:
        yield Finding(Level.WRONG, about, str(error))
    except (StoreUnavailableError, OSError) as error:
        yield Finding(Level.UNREACHABLE, about, str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, about, str(error))
    else:
        from eventsync.engine.refill import how_to_fill, loss_of  # slow to import

        for accessor in store.accessors.values():
            if (loss := loss_of(store, accessor.type.name)) is not None:
                told = f"{loss}; {how_to_fill(store, accessor.type.name)}"
                yield Finding(Level.WRONG, about, told)
            elif not any(store.index.counts(accessor.type.name).values()):
                yield Finding(
                    Level.NOTE,
                    about,
                    f"knows no {accessor.type.name} yet: it is new, or it was emptied with its "
                    f"versions; {_refill(store)}",
                )
        yield from _capture(store, about)
        types = ", ".join(store.accessors)
        yield Finding(Level.OK, about, f"can be read and written: {types}")


def _capture(store: Store, about: str) -> Iterator[Finding]:
    """Yield what the change source of a store says, if the store is declared with one."""
    if store.captured_by is None:
        return
    try:
        with store.errors():
            source = store.change_source()
            findings = list(source.findings())
            installed = source.state().installed
    except (StoreUnavailableError, OSError) as error:
        yield Finding(Level.UNREACHABLE, about, str(error))
        return
    except EventSyncError as error:
        yield Finding(Level.WRONG, about, str(error))
        return
    yield from (replace(finding, about=about) for finding in findings)
    yield from _hints(store, source, about)
    if any(finding.level is Level.WRONG for finding in findings):
        return
    if installed:
        text = f"foreign writes are captured by {source.kind}"
        yield Finding(Level.OK, about, text)
    else:
        yield Finding(
            Level.WRONG,
            about,
            f"capture by {source.kind} is not installed; run: eventsync capture install "
            f"{store.name}, or have the statements run",
            source.statements(),
        )


def _hints(store: Store, source: ChangeSource, about: str) -> Iterator[Finding]:
    """Yield what a source that gives hints needs beside itself."""
    from eventsync.config import webhook_secrets
    from eventsync.engine.webhook import WebhookSource

    if not source.complete and store.capture_every is None:
        yield Finding(
            Level.RISK,
            about,
            f"capture by {source.kind} gives hints, and may miss writes; declare the store with "
            "capture_every=, too: it finds what was missed, and slows down while hints come",
        )
    if isinstance(source, WebhookSource) and not webhook_secrets(store.name):
        name = re.sub(r"\W", "_", store.name)
        yield Finding(
            Level.WRONG,
            about,
            "there is no secret for its webhooks, so none is taken; set EVENTSYNC_WEBHOOK_"
            f"{name.upper()}, or write the file eventsync_webhook_{name.lower()} in the folder "
            "that EVENTSYNC_SECRETS_DIR names",
        )


def _filters(store: Store, about: str) -> Iterator[Finding]:
    """Yield the views whose filter reads fields that the store does not hold."""
    for accessor in store.accessors.values():
        name, view = accessor.type.name, accessor.view
        unheld = [f for f in accessor.type.fields if f in view.judged and f not in view.names]
        if unheld:
            yield Finding(
                Level.RISK,
                about,
                f"the filter of the view of {name} reads {', '.join(unheld)}, which this store "
                f"does not hold: a {name} that others write there stays, whatever the filter says, "
                "until another store has a value; hold the field, or filter by held fields",
            )


def _before_opening(store: Store) -> Iterator[Finding]:
    """Yield what can be found without creating anything. Raises the errors of the store."""
    absent = wrong = False
    for accessor in store.accessors.values():
        here = False
        for finding in accessor.findings():
            here |= finding.absent
            wrong |= finding.level is Level.WRONG
            yield finding
        if not (here or wrong):
            accessor.ping()
        absent |= here
    # The index may be in a folder that does not exist yet either.
    with suppress(*[ConfigError] if absent else []):
        if missing := store.index.missing():
            text = f"{missing} does not exist yet; a worker or `eventsync check --create` makes it"
            yield Finding(Level.OK, store.name, text, absent=True)


def _refill(store: Store) -> str:
    return f"fill it from another store: eventsync sync --from STORE --to {store.name}"


def _broker(deployment: Deployment, *, create: bool) -> Iterator[Finding]:
    # Imported here, because these modules import kombu, which is slow.
    from eventsync.transports.guarantees import weakness
    from eventsync.transports.redis import url as redis_url

    bus = deployment.bus
    reached = False
    try:
        missing = "" if create else bus.missing()
        if create:
            bus.open()
        elif not missing:
            bus.ping()
    except BusUnavailableError as error:
        yield Finding(Level.UNREACHABLE, "broker", str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, "broker", str(error))
    else:
        reached = not missing
        text = f"{bus.shown_url} is reachable"
        if missing:
            text = f"{missing} does not exist yet; a worker or `eventsync check --create` makes it"
        yield Finding(Level.OK, "broker", text)
    scheme = bus.transport.lower()
    if not scheme:
        return  # said already
    lost = weakness(scheme)
    if lost is None:
        yield Finding(
            Level.RISK,
            "transport",
            f"{scheme}: it is not known which messages this transport may lose in a crash; "
            "test it before you rely on it",
        )
    elif lost:
        yield Finding(Level.RISK, "transport", f"{scheme}: {lost}")
    else:
        yield Finding(
            Level.OK, "transport", f"{scheme}: loses nothing when workers or producers are killed"
        )
    if reached and scheme in redis_url.SCHEMES:
        yield from _redis(deployment.settings.broker.get_secret_value())
    yield from _signatures(bus.keys, deployment.registry)


def _signatures(keys: Keyring | None, registry: StoreRegistry) -> Iterator[Finding]:
    """Yield what is signed with which key, and which changes the key that signs may not sign."""
    if keys is None:
        yield Finding(
            Level.RISK,
            "signatures",
            "changes are not signed, so anyone who can reach the broker can change every store; "
            "make a key with eventsync keys new, to sign changes and to refuse unsigned ones",
        )
        return
    for kid in keys.keys:
        does = "signs and verifies" if kid == keys.signing else "verifies"
        limits = keys.scopes.get(kid)
        yield Finding(
            Level.OK,
            "signatures",
            f"key {kid} {does} {f'changes with {limits}' if limits else 'changes of all types'}",
        )
    limits = keys.scopes.get(keys.signing)
    for store in registry:
        refused = [
            type_
            for type_ in store.accessors
            if limits is not None
            and (
                (limits.types is not None and type_ not in limits.types)
                or (limits.sources is not None and store.name not in limits.sources)
            )
        ]
        if refused:
            yield Finding(
                Level.RISK,
                "signatures",
                f"key {keys.signing} may not sign changes of {', '.join(refused)} made in store "
                f"{store.name}; they cannot be published from here",
            )


def _redis(url: str) -> Iterator[Finding]:
    from eventsync.transports.redis.transport import advice

    try:
        weaknesses = advice(url)
    except BusUnavailableError as error:
        yield Finding(Level.UNREACHABLE, "server", str(error))
    except EventSyncError as error:
        yield Finding(Level.WRONG, "server", str(error))
    else:
        for weakness in weaknesses:
            yield Finding(Level.RISK, "server", weakness)
        if not weaknesses:
            yield Finding(
                Level.OK,
                "server",
                "with its settings, a crash of the server loses no published change",
            )
