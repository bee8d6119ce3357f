"""``eventsync status``: how queues and stores stand.

It owns what an operator sees first. It must not change anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from eventsync.cli.command import FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import ago, print_json, print_table, warn
from eventsync.errors import BusError, BusUnavailableError, EventSyncError, StoreUnavailableError

if TYPE_CHECKING:
    from eventsync.engine.store import Store

__all__ = ["status"]

_OUTBOX_COUNTED = 10_000


@command
def status(deployment: Deployment, as_json: JsonOption = False) -> int:
    """Show queues, dead letters and records, store by store.

    ready: messages that wait (one may carry many changes); in hand: those that workers hold;
    oldest: how long the oldest has waited; held: changes from the future, tried again; dead: what
    could not be applied (eventsync dlq list STORE); outbox: changes not published yet; since: how
    long the oldest of them has waited. Of each
    record type, here: records in the store; pending: known in part only, so not written yet; away:
    do not match the store's filter; deleted: remembered deletes; new: records that eventsync has
    not seen yet, which eventsync sync takes in.

    With EVENTSYNC_STATE_DIR set, also the workers on this host: what each is doing, for how long it
    has not got on, and whether it uses its store (circuit closed) or waits for it to come back.

    The exit code is 69 when a store or the broker cannot be asked, and 1 when there are dead
    letters.

    Examples:
      eventsync status
      eventsync status --json | jq '.stores.crm.dead'
    """
    away: list[str] = []
    stores = {store.name: _store(deployment, store, away) for store in deployment.registry}
    if as_json:
        print_json({"broker": deployment.bus.shown_url, "stores": stores})
    else:
        _tell(stores)
    if any("error" in part for found in stores.values() for part in (found, found["queues"])):
        return UNAVAILABLE
    return FOUND_WRONG if any(found["queues"].get("dead") for found in stores.values()) else OK


def _store(deployment: Deployment, store: Store, away: list[str]) -> dict[str, Any]:
    from eventsync.monitoring.worker_status import read_states

    found: dict[str, Any] = {"queues": _queues(deployment, store.name, away)}
    folder = deployment.settings.state_dir
    if folder is not None:
        found["workers"] = [state for state in read_states(folder) if state["store"] == store.name]
    try:
        backlog = store.backlog()
        found["outbox"], found["outbox_oldest"] = backlog.waiting, backlog.oldest
        found["types"] = {name: _records(store, name) for name in store.accessors}
    except (StoreUnavailableError, OSError) as error:
        found["error"] = str(error)
    return found


def _queues(deployment: Deployment, store: str, away: list[str]) -> dict[str, Any]:
    """How a store's queues stand. ``away`` keeps why the broker cannot be asked: once is enough."""
    if away:
        return {"error": away[0]}
    try:
        states = deployment.bus.states(store)
    except BusUnavailableError as error:
        away.append(str(error))
        return {"error": away[0]}
    except BusError:
        return {"declared": False}
    queue = states["queue"]
    return {
        "declared": True,
        "ready": queue.ready,
        "in_hand": queue.leased,
        "oldest": queue.oldest,
        "held": states["held"].ready,
        "dead": states["dead"].ready,
    }


def _records(store: Store, name: str) -> dict[str, Any]:
    from eventsync.index import Presence

    accessor = store.accessors[name]
    counts = store.index.counts(name)
    found: dict[str, Any] = {
        "here": counts[Presence.PRESENT],
        "pending": counts[Presence.PENDING],
        "away": counts[Presence.FILTERED_OUT],
        "deleted": counts[Presence.DELETED],
    }
    try:
        found["new"] = max(0, store.count(accessor.record_class) - counts[Presence.PRESENT])
    except (StoreUnavailableError, OSError):
        raise
    except EventSyncError as error:
        # The rest is worth seeing all the same.
        found["new"], found["error"] = None, str(error)
    return found


def _tell(stores: dict[str, dict[str, Any]]) -> None:
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
    print_table(["store", "type", *_COLUMNS], rows, right=range(2, 7))
    _tell_workers([state for found in stores.values() for state in found.get("workers", ())])
    for name, found in stores.items():
        for part in (found, found["queues"], *found.get("types", {}).values()):
            if "error" in part:
                warn(f"{name}: {part['error']}")
        if found["queues"].get("declared") is False:
            warn(f"{name}: it has no queue yet; the first eventsync worker {name} makes it")


def _tell_workers(workers: list[dict[str, Any]]) -> None:
    if not workers:
        return
    now = time.time()
    rows = [
        [
            state["store"],
            str(state["pid"]),
            state["doing"],
            # Of a process that stands still the file says less and less.
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


_COLUMNS = ("here", "pending", "away", "deleted", "new")


def _count(count: int | None, most: int | None = None) -> str:
    if count is None:
        return "–"
    return f"over {most:,}" if most is not None and count > most else f"{count:,}"
