"""The backlog: how many messages and changes wait in queues, outboxes and spools."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool, SpoolState
from eventsync.engine.publisher import Backlog
from eventsync.engine.store import Store
from eventsync.errors import BusUnavailableError, EventSyncError
from eventsync.monitoring.following import Following, FollowingState
from eventsync.monitoring.worker_status import PROGRESS_MARK

__all__ = [
    "BacklogMonitor",
    "OutboxBacklog",
    "Poller",
    "QueueBacklog",
    "progress_of",
    "stall_of",
]

T = TypeVar("T")
# The pause between two polls, in seconds.
_EVERY: Final = 5.0
# Two measured times that differ by less than this, in seconds, count as the same time.
_TOLERANCE: Final = 0.5


class Poller(Generic[T]):
    """Calls ``ask`` every ``every`` seconds and keeps the latest result. Thread-safe.

    ``what``: the name of what is polled, for error texts. ``ask``: may block. A result that is more
    than three intervals old is no longer returned.
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
        """Call ``ask`` once and keep its result or its error. Blocks; does not raise."""
        try:
            self._latest = (self._monotonic(), self._ask())
            self._error = ""
        except (EventSyncError, OSError) as error:
            self._latest, self._error = None, str(error)
        except Exception as error:  # a programming error in an accessor must not end the polling
            self._latest, self._error = None, f"{type(error).__name__}: {error}"

    def run(self, stopping: threading.Event) -> None:
        """Poll every ``every`` seconds until ``stopping`` is set. Blocks."""
        while True:
            self.poll()
            if stopping.wait(self._every):
                return

    @property
    def is_known(self) -> bool:
        """Whether the first poll has ended, with a result or an error."""
        return self._latest is not None or bool(self._error)

    @property
    def answer(self) -> T | None:
        """The latest result of ``ask``; ``None`` if the last poll failed or is too old."""
        latest = self._latest
        if latest is None or self._monotonic() - latest[0] > 3 * self._every + 1.0:
            return None
        return latest[1]

    @property
    def error(self) -> str:
        """The reason why ``answer`` is ``None``; an empty text if there is an answer."""
        if self.answer is not None:
            return ""
        silence = "has not answered yet" if self._latest is None else "no longer answers"
        return self._error or f"{self._what} {silence}"


@dataclass(slots=True, frozen=True)
class QueueBacklog:
    """The numbers of messages in the queues of one store.

    ``work``: messages that wait in the store's queue. ``in_hand``: messages that workers have
    received and not settled; ``None`` if the transport does not report it. ``held``: held changes.
    ``dead``: dead letters. ``oldest``: when the oldest waiting message was published. ``since``:
    when messages were first seen in the queue after it was last seen empty. Both times are in
    seconds since the epoch; they are ``None`` if no message waits. ``oldest`` is also ``None`` if
    the transport does not report it.
    """

    work: int
    in_hand: int | None
    held: int
    dead: int
    oldest: float | None
    since: float | None


def stall_of(
    waiting: int,
    oldest: float | None,
    progress_at: float | None,
    *,
    now: float,
    stall_after: float,
) -> str | None:
    """Return what shows that messages wait and no worker makes progress, else ``None``.

    ``waiting``: how many messages wait. ``oldest``: how long the oldest one has waited, in seconds;
    ``None`` if the transport does not report it. ``progress_at``: when a worker last noted its
    progress in the store's index; ``None`` for never. ``stall_after``: after so many seconds
    without progress it counts as a stall.
    """
    if not waiting or (oldest is None and progress_at is None):
        return None
    silence = math.inf if progress_at is None else now - progress_at
    if min(silence, math.inf if oldest is None else oldest) <= stall_after:
        return None
    since = "no worker has run yet" if progress_at is None else f"for {silence:,.0f} s"
    none = since if progress_at is None else f"none was settled {since}"
    return f"{waiting:,} messages wait, and {none}"


def progress_of(store: Store) -> float | None:
    """Return when a worker of ``store`` last noted its progress in the index of the store."""
    mark = store.index.load_mark(PROGRESS_MARK)
    return float(mark) if mark else None


@dataclass(slots=True, frozen=True)
class OutboxBacklog:
    """The number of unpublished changes in an outbox or spool.

    ``oldest``: when the oldest waiting change was made. ``since``: when this change was first seen
    as the oldest one. Both in seconds since the epoch; ``None`` if no change waits. ``bytes``: the
    bytes in use in a spool; ``None`` for an outbox. ``unreadable``: how many records of each type
    the store of the outbox holds and cannot read. ``progress_at``: see ``progress_of``.
    ``following``: how well foreign writes are captured as they happen, if the store is declared so.
    """

    waiting: int
    oldest: float | None
    since: float | None
    bytes: int | None = None
    unreadable: Mapping[str, int] = field(default_factory=dict)
    progress_at: float | None = None
    following: FollowingState | None = None


class BacklogMonitor:
    """Polls the sizes of queues, outboxes and spools every few seconds. Thread-safe.

    Use it as a context manager: within the block, threads poll. ``bus``: a bus that nothing else
    uses, because a broker that hangs blocks it; it is closed at the end of the block. ``stores``:
    the stores whose queues and outboxes are polled.
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
            following = Following(store)
            return lambda: replace(
                self._outbox(store.name, store.backlog(), progress_of(store)),
                unreadable={type: store.unreadable_records.count(type) for type in store.accessors},
                following=following(),
            )

        def of_spool(spool: Spool) -> Callable[[], OutboxBacklog]:
            return lambda: self._outbox(spool.name, spool.state())

        self.broker = Poller("the broker", ask_broker, every=every)
        """The queues of each store, by store name; ``None`` for a store without queues."""
        self.stores = {s.name: Poller("the store", of_store(s), every=every) for s in stores}
        """The outbox of each store, by store name."""
        self.spools = {s.name: Poller("the spool", of_spool(s), every=every) for s in spools}
        """The spools, by file name."""
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def outboxes(self) -> Mapping[str, Poller[OutboxBacklog]]:
        """The pollers of all outboxes and spools, by store name or file name."""
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
            thread.join(1.0)  # do not wait longer for a thread that hangs
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
            held=states["held"].unsettled,
            dead=states["dead"].unsettled,
            oldest=None if queue.oldest is None else now - queue.oldest,
            since=self._waiting_since.get(store),
        )

    def _outbox(
        self, name: str, state: Backlog | SpoolState, progress_at: float | None = None
    ) -> OutboxBacklog:
        now, before = self._now(), self._outboxes.get(name)
        oldest = since = None
        if state.oldest is not None:
            oldest, since = now - state.oldest, now
            if before is not None and before.oldest is not None and before.since is not None:
                since = before.since if abs(before.oldest - oldest) < _TOLERANCE else now
        size = state.bytes if isinstance(state, SpoolState) else None
        backlog = OutboxBacklog(state.waiting, oldest, since, size, progress_at=progress_at)
        self._outboxes[name] = backlog
        return backlog
