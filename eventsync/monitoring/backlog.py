"""The survey: what waits at the broker and in outboxes, looked at again and again.

It owns the threads that look, how long an answer is good for (what cannot be told now is not
known), and since when something has waited. It must not know what follows from an answer.
"""

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

__all__ = ["Look", "Outbox", "Queues", "Survey"]

T = TypeVar("T")
_EVERY: Final = 5.0
_SAME: Final = 0.5  # seconds by which two measurements of one moment may differ


class Look(Generic[T]):
    """One question, asked every so many seconds from a thread of its own. Thread-safe.

    ``what`` is asked. ``ask`` may block for as long as it likes: an answer older than three rounds
    is none any more.
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
        self._held: tuple[float, T] | None = None
        self._error = ""

    def once(self) -> None:
        """Ask now. Blocks."""
        try:
            self._held = (self._monotonic(), self._ask())
            self._error = ""
        except (EventSyncError, OSError) as error:
            self._held, self._error = None, str(error)
        except Exception as error:  # a fault in somebody's accessor must not end the looking
            self._held, self._error = None, f"{type(error).__name__}: {error}"

    def run(self, stopping: threading.Event) -> None:
        """Ask until ``stopping`` is set. Blocks."""
        while True:
            self.once()
            if stopping.wait(self._every):
                return

    @property
    def is_known(self) -> bool:
        """Whether it has answered or failed yet."""
        return self._held is not None or bool(self._error)

    @property
    def answer(self) -> T | None:
        """The last answer; ``None`` if that failed, or is too old."""
        held = self._held
        if held is None or self._monotonic() - held[0] > 3 * self._every + 1.0:
            return None
        return held[1]

    @property
    def error(self) -> str:
        """Why there is no answer; empty if there is one."""
        if self.answer is not None:
            return ""
        silent = "has not answered yet" if self._held is None else "does not answer any more"
        return self._error or f"{self._what} {silent}"


@dataclass(slots=True, frozen=True)
class Queues:
    """The queues of a store: messages that wait, in hand, held, and dead letters.

    ``oldest``: when the oldest that waits was published; ``since``: from when on some have waited
    or been in hand without a break. In seconds since the epoch; ``None`` when nothing waits, or
    where the transport cannot tell.
    """

    work: int
    in_hand: int | None
    held: int
    dead: int
    oldest: float | None
    since: float | None


@dataclass(slots=True, frozen=True)
class Outbox:
    """An outbox or spool: changes that wait, and the bytes in use where that is known.

    ``oldest``: when the oldest was made; ``since``: from when on the oldest has been this one. In
    seconds since the epoch; ``None`` when nothing waits.
    """

    waiting: int
    oldest: float | None
    since: float | None
    bytes: int | None = None


class Survey:
    """How queues, outboxes and spools stand, a few seconds ago at most. Thread-safe.

    ``bus``: one that nobody else uses, since a broker that hangs would hold them up. ``stores`` are
    only asked for their outboxes. Usable as a context manager, which looks from threads meanwhile.
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
        self._waiting: dict[str, float] = {}
        self._standing: dict[str, Outbox] = {}
        names = [store.name for store in stores]

        def broker() -> Mapping[str, Queues | None]:
            return {name: self._queues(name) for name in names}

        def of_store(store: Store) -> Callable[[], Outbox]:
            return lambda: self._outbox(store.name, store.backlog())

        def of_spool(spool: Spool) -> Callable[[], Outbox]:
            return lambda: self._outbox(spool.name, spool.state())

        self.broker = Look("the broker", broker, every=every)
        """By store, its queues; ``None`` if it has none yet."""
        self.stores = {s.name: Look("the store", of_store(s), every=every) for s in stores}
        """By store, its outbox."""
        self.spools = {s.name: Look("the spool", of_spool(s), every=every) for s in spools}
        """By the name of its file, each spool."""
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def outboxes(self) -> Mapping[str, Look[Outbox]]:
        """Those of the stores, and the spools."""
        return {**self.stores, **self.spools}

    def __enter__(self) -> Survey:
        looks: list[Look[Any]] = [self.broker, *self.outboxes.values()]
        for look in looks:
            thread = threading.Thread(
                target=look.run, args=(self._stopping,), name="eventsync-survey", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(1.0)  # one that hangs is left behind
        if not any(thread.is_alive() for thread in self._threads):
            self._bus.close()

    def _queues(self, store: str) -> Queues | None:
        try:
            states = self._bus.states(store)
        except BusUnavailableError:
            raise
        except EventSyncError:
            return None
        now, queue = self._now(), states["queue"]
        if queue.ready or queue.leased:
            self._waiting.setdefault(store, now)
        else:
            self._waiting.pop(store, None)
        return Queues(
            work=queue.ready,
            in_hand=queue.leased,
            held=states["held"].ready,
            dead=states["dead"].ready,
            oldest=None if queue.oldest is None else now - queue.oldest,
            since=self._waiting.get(store),
        )

    def _outbox(self, name: str, state: Backlog | SpoolState) -> Outbox:
        now, before = self._now(), self._standing.get(name)
        oldest = since = None
        if state.oldest is not None:
            oldest, since = now - state.oldest, now
            if before is not None and before.oldest is not None and before.since is not None:
                since = before.since if abs(before.oldest - oldest) < _SAME else now
        size = state.bytes if isinstance(state, SpoolState) else None
        found = self._standing[name] = Outbox(state.waiting, oldest, since, size)
        return found
