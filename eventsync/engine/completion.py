"""Completion: fills pending records with the fields that other stores hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from eventsync.changes.change import Change
from eventsync.engine.isolation import Done, isolate
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.engine.unreadable import states_of
from eventsync.errors import RecordError
from eventsync.index import Presence

__all__ = ["complete"]


def complete(store: Store, peers: Iterable[Store], *, limit: int = 1000) -> dict[str, int]:
    """Fill the missing fields of the pending records of ``store`` from ``peers``.

    Returns, by record type, how many records were completed. A field that no peer holds gets its
    default. ``limit``: how many records of each type to complete at most. Idempotent. If a peer
    cannot be read, its error is raised and the records stay pending, because this peer may hold the
    missing values. If a single record cannot be read, in a peer or in ``store``, only this record
    stays pending. If ``store`` refuses a record, its error is raised after the others are complete.
    """
    peers = [peer for peer in peers if peer is not store]
    completed: dict[str, int] = {}
    refused: list[Exception] = []
    for type, replica in store.replicas.items():
        with store.errors():
            pending = store.index.scan(type, presence=Presence.PENDING, limit=limit)
        if not pending:
            continue
        states: dict[str, list[Change]] = {key: [] for key, _ in pending}
        for peer in peers:
            if type in peer.replicas:
                with peer.errors():
                    _add_states(states, peer.replicas[type])
        completed[type] = 0
        with store.errors():
            for part in isolate(list(states), partial(_complete, replica, states)):
                if isinstance(part, Done):
                    completed[type] += part.result
                elif not isinstance(part.error, RecordError):
                    refused.append(part.error)
    if refused:
        with store.errors():
            raise refused[0]
    return completed


def _add_states(states: dict[str, list[Change]], peer: Replica) -> None:
    """Add the states that ``peer`` holds. Remove from ``states`` what it holds and cannot read."""
    unreadable: list[str] = []
    for change in states_of(peer, list(states), lambda key, error: unreadable.append(key)):
        states[change.key].append(change)
    for key in unreadable:
        del states[key]


def _complete(replica: Replica, states: Mapping[str, list[Change]], keys: Sequence[str]) -> int:
    return replica.complete({key: states[key] for key in keys})
