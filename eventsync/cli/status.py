"""``eventsync status``: shows the queues, dead letters and records of all stores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from eventsync.cli.command import CONFIG, FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import ago, print_json, print_table, warn
from eventsync.errors import (
    BusConfigError,
    BusError,
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from eventsync.engine.accessor import Accessor
    from eventsync.engine.store import Store
    from eventsync.errors import RecordError

__all__ = ["status"]

_OUTBOX_COUNTED = 10_000


@command
def status(deployment: Deployment, as_json: JsonOption = False) -> int:
    """Show queues, dead letters and records of all stores.

    Queues:
      ready     messages that no worker has taken; a message may carry many changes
      in hand   messages that workers have taken
      oldest    how long the oldest message has waited
      held      changes that cannot be applied yet and are retried
      dead      dead letters; see eventsync dlq list STORE
      outbox    changes that are not published yet
      since     how long the oldest change in the outbox has waited

    Records of each type:
      present        in the store
      pending        known in part, not written yet
      filtered out   not in the store, because they do not match its filter
      deleted        tombstones of deleted records
      new            not seen by eventsync yet; eventsync sync publishes them
      unreadable     in the store, but cannot be read; see eventsync unreadable STORE

    Workers on this host, if EVENTSYNC_STATE_DIR is set:
      doing      the current work
      silent     how long the worker has made no progress
      circuit    the circuit breaker: open while the store is unreachable
      since      how long the circuit breaker has been in this state

    Problems, on standard error: a store that lost its records, a capture that is blocked, a worker
    that crashes again and again, and messages that wait while no worker makes progress for
    EVENTSYNC_STALL_AFTER seconds. Workers and their problems are known with EVENTSYNC_STATE_DIR.

    The exit code is 78 if a store or the broker refuses access, 69 if one is unreachable, and 1 if
    there are dead letters or problems. A capture that only takes long does not count.

    Examples:
      eventsync status
      eventsync status --json | jq '.stores.crm.queues.dead'
    """
    failures = _Failures()
    stores = {store.name: _store(deployment, store, failures) for store in deployment.registry}
    if as_json:
        print_json({"broker": deployment.bus.shown_url, "stores": stores})
    else:
        _print(stores)
    if failures.is_refused:
        return CONFIG
    if any("error" in part for found in stores.values() for part in (found, found["queues"])):
        return UNAVAILABLE
    wrong = any(found["queues"].get("dead") or _counting(found) for found in stores.values())
    return FOUND_WRONG if wrong else OK


@dataclass(slots=True)
class _Failures:
    """What has failed so far. ``broker``: the error of the broker, which is then asked no more.

    ``is_refused``: whether a store or the broker refused something, so that a setting is wrong.
    """

    broker: str = ""
    is_refused: bool = False


def _store(deployment: Deployment, store: Store, failures: _Failures) -> dict[str, Any]:
    from eventsync.monitoring.worker_status import read_states

    found: dict[str, Any] = {"queues": _queues(deployment, store.name, failures)}
    folder = deployment.settings.state_dir
    if folder is not None:
        found["workers"] = [state for state in read_states(folder) if state["store"] == store.name]
    try:
        backlog = store.backlog()
        found["outbox"], found["outbox_oldest"] = backlog.waiting, backlog.oldest
        with store.errors():
            found["types"] = {name: _records(store, name, failures) for name in store.accessors}
            found["problems"] = _problems(deployment, store, found)
    except (StoreUnavailableError, ConfigError, OSError) as error:
        failures.is_refused |= isinstance(error, ConfigError)
        found["error"] = str(error)
    return found


def _problems(deployment: Deployment, store: Store, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the problems of a store for JSON, each with ``kind``, ``type`` and ``text``."""
    from eventsync.monitoring.backlog import progress_of, stall_of
    from eventsync.monitoring.following import Following, lateness
    from eventsync.monitoring.worker_status import read_crashes

    problems = [problem for state in found.get("workers", ()) for problem in state["problems"]]
    reported = {(problem["kind"], problem["type"]) for problem in problems}
    for name, counts in found["types"].items():
        loss = counts.pop("loss")
        if loss and not reported & {("loss", name), ("guard", name)}:
            problems.append({"kind": "loss", "type": name, "text": loss})
    queues, settings = found["queues"], deployment.settings
    stall = stall_of(
        queues.get("ready", 0),
        queues.get("oldest"),
        progress_of(store),
        now=time.time(),
        stall_after=settings.stall_after,
    )
    if stall is not None:
        problems.append({"kind": "stall", "type": "", "text": stall})
    if (following := Following(store)()) is not None:
        found["following"] = following.to_json(time.time())
        if (late := lateness(store.name, following, settings.stall_after)) is not None:
            problems.append({"kind": "follow", "type": "", "text": late})
    crashes = read_crashes(settings.state_dir) if settings.state_dir else []
    problems += [
        {"kind": "crash", "type": "", "text": crash["text"]}
        for crash in crashes
        if crash["store"] == store.name
    ]
    return list({str(problem): problem for problem in problems}.values())


def _counting(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the problems that make the command fail."""
    return [one for one in found.get("problems", ()) if one["kind"] != "overrun"]


def _queues(deployment: Deployment, store: str, failures: _Failures) -> dict[str, Any]:
    """Return the state of a store's queues for JSON, or ``{"error": ...}`` without a broker."""
    if failures.broker:
        return {"error": failures.broker}
    try:
        states = deployment.bus.states(store)
    except (BusUnavailableError, BusConfigError) as error:
        failures.is_refused |= isinstance(error, BusConfigError)
        failures.broker = str(error)
        return {"error": failures.broker}
    except BusError:
        return {"declared": False}
    queue = states["queue"]
    return {
        "declared": True,
        "ready": queue.ready,
        "in_hand": queue.leased,
        "oldest": queue.oldest,
        "held": states["held"].unsettled,
        "dead": states["dead"].unsettled,
    }


def _records(store: Store, name: str, failures: _Failures) -> dict[str, Any]:
    from eventsync.engine.refill import how_to_fill, loss_of
    from eventsync.index import Presence

    accessor = store.accessors[name]
    counts = store.index.counts(name)
    found: dict[str, Any] = {
        "loss": None,
        "here": counts[Presence.PRESENT],
        "pending": counts[Presence.PENDING],
        "away": counts[Presence.FILTERED_OUT],
        "deleted": counts[Presence.DELETED],
    }
    noted = store.unreadable_records.count(name)
    unreadable: list[RecordError] = []
    try:
        loss = loss_of(store, name)
        found["loss"] = loss and f"{loss}; {how_to_fill(store, name)}"
        held = store.count(accessor.record_class, unreadable=unreadable.append)
        found["new"] = max(0, held - counts[Presence.PRESENT])
    except (StoreUnavailableError, OSError):
        raise
    except EventSyncError as error:
        failures.is_refused |= isinstance(error, ConfigError) and not _is_absent(accessor)
        # Report the error for this count only. The counts from the index are known.
        found["new"], found["error"] = None, str(error)
    # A store that counts without reading does not report unreadable records.
    found["unreadable"] = max(noted, len(unreadable))
    return found


def _is_absent(accessor: Accessor[Any]) -> bool:
    """Return whether the folder or table of an accessor is created when a worker starts."""
    try:
        return any(finding.absent for finding in accessor.findings())
    except (EventSyncError, OSError):
        return False


def _print(stores: dict[str, dict[str, Any]]) -> None:
    from eventsync.monitoring.health import problem_text

    queues = []
    for name, found in stores.items():
        state = found["queues"]
        cells = [name]
        if state.get("declared"):
            cells += [_count(state[column]) for column in ("ready", "in_hand")]
            cells += [ago(state["oldest"])]
            cells += [_count(state[column]) for column in ("held", "dead")]
        else:
            cells += ["–"] * 5
        queues.append(
            [
                *cells,
                _count(found.get("outbox"), _OUTBOX_COUNTED),
                ago(found.get("outbox_oldest")),
            ]
        )
    print_table(
        ["queue", "ready", "in hand", "oldest", "held", "dead", "outbox", "since"],
        queues,
        right=range(1, 8),
        marked=lambda row, column: "red" if column == 5 and queues[row][5] not in "0–" else None,
    )
    rows = [
        [name, type, *(_count(counts[column]) for column in _COLUMNS)]
        for name, found in stores.items()
        for type, counts in found.get("types", {}).items()
    ]
    typer.echo()
    print_table(
        ["store", "type", *_COLUMNS.values()],
        rows,
        right=range(2, 8),
        marked=lambda row, column: "red" if column == 7 and rows[row][7] != "0" else None,
    )
    _print_workers([state for found in stores.values() for state in found.get("workers", ())])
    for name, found in stores.items():
        for part in (found, found["queues"], *found.get("types", {}).values()):
            if "error" in part:
                warn(f"{name}: {part['error']}")
        for problem in found.get("problems", ()):
            warn(problem_text(name, problem))
        if found["queues"].get("declared") is False:
            warn(f"{name}: there is no queue yet; eventsync worker {name} creates it")


def _print_workers(workers: list[dict[str, Any]]) -> None:
    if not workers:
        return
    now = time.time()
    rows = [
        [
            state["store"],
            str(state["pid"]),
            state["doing"],
            # A stuck worker does not update its state file: add the time since the last update.
            ago(state["silence"] + max(0.0, now - state["written"])),
            _count(state["messages"]),
            state["circuit"]["state"],
            ago(now - state["circuit"]["since"]),
        ]
        for state in workers
    ]
    typer.echo()
    print_table(
        ["worker of", "pid", "doing", "silent", "messages", "circuit", "since"],
        rows,
        right=(1, 3, 4, 6),
        marked=lambda row, column: "red" if column == 5 and rows[row][5] != "closed" else None,
    )
    for state in workers:
        if state["circuit"]["error"]:
            warn(f"{state['store']}: {state['circuit']['error']}")


_COLUMNS = {
    "here": "present",
    "pending": "pending",
    "away": "filtered out",
    "deleted": "deleted",
    "new": "new",
    "unreadable": "unreadable",
}
"""The title of each column in the table of records, by the name of its count in JSON."""


def _count(count: int | None, most: int | None = None) -> str:
    if count is None:
        return "–"
    return f"over {most:,}" if most is not None and count > most else f"{count:,}"
