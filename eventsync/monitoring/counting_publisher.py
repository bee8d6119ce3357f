"""A publisher that counts the published changes."""

from __future__ import annotations

from collections.abc import Sequence

from eventsync.broker.broker_life import Broker
from eventsync.changes.change import Change
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["CountingPublisher"]


class CountingPublisher:
    """A ``Broker`` that passes all calls on to ``broker`` and counts the published envelopes.

    ``store``: the value of the counter's label ``store``. ``status``: the status of a worker, in
    which each publish is recorded as progress; ``None`` if there is no worker.
    """

    def __init__(
        self, broker: Broker, counters: Counters, store: str, status: WorkerStatus | None = None
    ) -> None:
        self._broker = broker
        self._counters = counters
        self._store = store
        self._status = status

    def encode(self, change: Change) -> bytes:
        return self._broker.encode(change)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        self._broker.publish(type, envelopes)
        if self._status is not None:
            self._status.beat()
        self._counters.add(catalogue.PUBLISHED, len(envelopes), self._store, type)

    def life(self) -> str | None:
        return self._broker.life()
