"""The backlog: what waits in queues, outboxes and spools, polled from threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool, SpoolState
from eventsync.engine.publisher import Backlog
from eventsync.engine.store import Store
from eventsync.errors import BusUnavailableError, EventSyncError

__all__ = ["BacklogMonitor", "OutboxBacklog", "Poller", "QueueBacklog"]

T = TypeVar("T")
_EVERY: Final = 5.0
_TOLERANCE: Final = 0.5  # seconds by which two measurements of one moment may differ


class Poller(Generic[T]):
    """Keeps the latest answer to one question, asked every ``every`` seconds. Thread-safe.

    ``what``: who is asked, for error texts. ``ask`` may block: an answer that is older than three
    rounds counts as unknown.
    """

    def __init__(
        self,
        what: str,
        ask: Callable[[], T],
        *,
        every: float = _EVERY,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._ask = ask
        self._every = every
        self._monotonic = monotonic
        self._latest: tuple[float, T] | None = None
        self._error = ""

    def poll(self) -> None:
        """Ask once, now. Blocks."""
        try:
            self._latest = (self._monotonic(), self._ask())
            self._error = ""
        except (EventSyncError, OSError) as error:
            self._latest, self._error = None, str(error)
        except Exception as error:  # a fault in an accessor must not end the polling
            self._latest, self._error = None, f"{type(error).__name__}: {error}"

    def run(self, stopping: threading.Event) -> None:
        """Ask again and again until ``stopping`` is set. Blocks."""
        while True:
            self.poll()
            if stopping.wait(self._every):
                return

    @property
    def is_known(self) -> bool:
        """Whether there has been an answer or an error yet."""
        return self._latest is not None or bool(self._error)

    @property
    def answer(self) -> T | None:
        """The latest answer; ``None`` if the last poll failed or the answer is too old."""
        latest = self._latest
        if latest is None or self._monotonic() - latest[0] > 3 * self._every + 1.0:
            return None
        return latest[1]

    @property
    def error(self) -> str:
        """Why there is no answer; empty if there is an answer."""
        if self.answer is not None:
            return ""
        silence = "has not answered yet" if self._latest is None else "no longer answers"
        return self._error or f"{self._what} {silence}"


@dataclass(slots=True, frozen=True)
class QueueBacklog:
    """The queues of a store: waiting messages, messages in hand, held changes, dead letters.

    ``oldest``: when the oldest waiting message was published. ``since``: since when the queue has
    not been seen empty. Both in seconds since the epoch; ``None`` when nothing waits, or if the
    transport cannot tell.
    """

    work: int
    in_hand: int | None
    held: int
    dead: int
    oldest: float | None
    since: float | None


@dataclass(slots=True, frozen=True)
class OutboxBacklog:
    """An outbox or spool: waiting changes, and the bytes in use if they are known.

    ``oldest``: when the oldest change was made. ``since``: since when it has been the oldest. Both
    in seconds since the epoch; ``None`` when nothing waits.
    """

    waiting: int
    oldest: float | None
    since: float | None
    bytes: int | None = None


class BacklogMonitor:
    """Knows the backlog of queues, outboxes and spools, a few seconds old at most. Thread-safe.

    ``bus``: a bus of its own, because a broker that hangs blocks it. ``stores`` are only asked for
    their outboxes. Usable as a context manager: within the block it polls from threads.
    """

    def __init__(
        self,
        bus: Bus,
        stores: Sequence[Store],
        *,
        spools: Sequence[Spool] = (),
        every: float = _EVERY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._now = now
        self._waiting_since: dict[str, float] = {}
        self._outboxes: dict[str, OutboxBacklog] = {}
        names = [store.name for store in stores]

        def ask_broker() -> Mapping[str, QueueBacklog | None]:
            return {name: self._queues(name) for name in names}

        def of_store(store: Store) -> Callable[[], OutboxBacklog]:
            return lambda: self._outbox(store.name, store.backlog())

        def of_spool(spool: Spool) -> Callable[[], OutboxBacklog]:
            return lambda: self._outbox(spool.name, spool.state())

        self.broker = Poller("the broker", ask_broker, every=every)
        """The queues of each store, by its name; ``None`` for a store without queues."""
        self.stores = {s.name: Poller("the store", of_store(s), every=every) for s in stores}
        """The outbox of each store, by its name."""
        self.spools = {s.name: Poller("the spool", of_spool(s), every=every) for s in spools}
        """Each spool, by the name of its file."""
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def outboxes(self) -> Mapping[str, Poller[OutboxBacklog]]:
        """The outboxes of the stores, and the spools."""
        return {**self.stores, **self.spools}

    def __enter__(self) -> BacklogMonitor:
        pollers: list[Poller[Any]] = [self.broker, *self.outboxes.values()]
        for poller in pollers:
            thread = threading.Thread(
                target=poller.run, args=(self._stopping,), name="eventsync-backlog", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(1.0)  # a thread that hangs is abandoned
        if not any(thread.is_alive() for thread in self._threads):
            self._bus.close()

    def _queues(self, store: str) -> QueueBacklog | None:
        try:
            states = self._bus.states(store)
        except BusUnavailableError:
            raise
        except EventSyncError:
            return None
        now, queue = self._now(), states["queue"]
        if queue.ready or queue.leased:
            self._waiting_since.setdefault(store, now)
        else:
            self._waiting_since.pop(store, None)
        return QueueBacklog(
            work=queue.ready,
            in_hand=queue.leased,
            held=states["held"].ready,
            dead=states["dead"].ready,
            oldest=None if queue.oldest is None else now - queue.oldest,
            since=self._waiting_since.get(store),
        )

    def _outbox(self, name: str, state: Backlog | SpoolState) -> OutboxBacklog:
        now, before = self._now(), self._outboxes.get(name)
        oldest = since = None
        if state.oldest is not None:
            oldest, since = now - state.oldest, now
            if before is not None and before.oldest is not None and before.since is not None:
                since = before.since if abs(before.oldest - oldest) < _TOLERANCE else now
        size = state.bytes if isinstance(state, SpoolState) else None
        backlog = self._outboxes[name] = OutboxBacklog(state.waiting, oldest, since, size)
        return backlog
