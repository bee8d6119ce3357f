"""The relay: publishes what waits in a store's outbox, one relay of a store at a time.

It owns whose turn it is and the loop around it. It must not know how envelopes come into an outbox,
nor how they travel.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog

from eventsync.engine.publisher import Publisher
from eventsync.engine.store import Store
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
)
from eventsync.index import Index
from eventsync.retry import Backoff

__all__ = ["Lease", "Outlet", "Relay", "serve"]

_CHUNK: Final = 1000
_AT_ONCE: Final = 10_000
_LEFT: Final = 200
_LEFT_FOR: Final = 1.0
_MARK: Final = "relay"
_BACKOFF: Final = Backoff(0.5, 30.0)
_SOON: Final = 0.01
_SHARE: Final = 0.1
_TELL_EVERY: Final = 1.0


class Outlet(Protocol):
    """What has envelopes waiting and can publish them."""

    name: str

    def run_once(self) -> int:
        """Publish what waits, unless another process is at it; how many envelopes.

        Raises ``BusUnavailableError``, ``UnroutableError``, ``StoreUnavailableError``.
        """


class Lease:
    """Whose turn it is among processes that share an index; frees itself when its holder dies.

    Kept in the index as a mark that its holder renews. One that stands still for ``lifetime``
    seconds, by the observer's own clock, is a dead holder's: clocks need not agree. To take it,
    write a name, wait ``settle`` seconds, and see whether it still stands (Fischer's algorithm).
    That needs nothing of the index but to read and write a text, and so has a gap: after a pause
    longer than ``settle`` at the wrong moment two may hold it, until the first of them calls
    ``keep``. Use it where that costs something but breaks nothing. For one thread.
    """

    def __init__(
        self,
        index: Index,
        name: str = _MARK,
        *,
        lifetime: float = 10.0,
        settle: float = 0.1,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._index = index
        self._name = name
        self._lifetime = lifetime
        self._settle = settle
        self._monotonic = monotonic
        self._wait = wait
        self._count = 0
        self._own = ""
        self._written = 0.0
        self._seen: tuple[str, float] = ("", 0.0)

    def take(self) -> bool:
        """Whether it is this one's turn now. Blocks for ``settle`` seconds if it may be.

        Raises ``StoreUnavailableError``.
        """
        held = self._index.load_mark(self._name)
        now = self._monotonic()
        if held != self._seen[0]:
            self._seen = (held, now)
        if held and now - self._seen[1] < self._lifetime:
            return False
        self._write()
        self._wait(self._settle)
        return self._index.load_mark(self._name) == self._own

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew it, so that nobody takes its holder for dead."""
        return self._monotonic() - self._written >= self._lifetime / 4

    def keep(self) -> bool:
        """Whether it is still this one's turn; renews it. Raises ``StoreUnavailableError``."""
        if self._index.load_mark(self._name) != self._own:
            return False
        if self.is_due:
            self._write()
        return True

    def release(self) -> None:
        """Leave it to others, if it is still held. Idempotent. Raises ``StoreUnavailableError``."""
        if self._own and self._index.load_mark(self._name) == self._own:
            self._index.save_mark(self._name, "")
        self._own = ""

    def _write(self) -> None:
        self._count += 1
        # Drawn anew each time, so that neither a fork nor a pid used twice makes two of one name.
        self._own = f"{os.getpid()} {secrets.token_hex(8)} {self._count}"
        self._index.save_mark(self._name, self._own)
        self._written = self._monotonic()


class Relay:
    """Publishes the outbox of one store, whenever it is this relay's turn. For one thread.

    Any number of relays and workers of a store may run at once: one of them publishes, in the order
    in which the envelopes came, until it is closed, dies or loses the broker. When it dies another
    goes on where it was, ``lifetime`` seconds later; at most a thousand envelopes are then
    published twice. Usable as a context manager.

    Few envelopes are left in the outbox for up to a second after they have been published, and then
    taken out together: to write into it for each of them would be in the way of those who edit.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        *,
        lifetime: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = store.name
        self._store = store
        self._publisher = publisher
        self._turn = Lease(store.index, lifetime=lifetime, monotonic=monotonic)
        self._monotonic = monotonic
        self._held = False
        # The numbers of envelopes that are published and still in the outbox, and since when.
        self._left: set[int] = set()
        self._left_at = 0.0

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave it to another. Idempotent."""
        self._held = False
        # Where the store is away, others see by themselves that nobody is at it.
        with suppress(StoreUnavailableError):
            self._take_out()
            self._turn.release()

    def run_once(self) -> int:
        """Publish what waits, unless another relay is at it; how many envelopes.

        Of more than ten thousand the others are left for the next call. It is this one's turn from
        then on. Raises ``BusUnavailableError``, ``UnroutableError``,
        ``StoreUnavailableError``; what was not published goes on waiting.
        """
        if not self._held:
            # Of a backlog that another one has in hand one is enough to see.
            self._held = bool(self._store.index.outgoing(1)) and self._turn.take()
        try:
            return self._publish()
        except BusUnavailableError:
            self.close()
            raise

    def _publish(self) -> int:
        published = 0
        more = self._held
        while more and published < _AT_ONCE:
            waiting = self._store.index.outgoing(_CHUNK)
            fresh = [outgoing for outgoing in waiting if outgoing.number not in self._left]
            # While there is nothing to do it is enough to be seen alive.
            if fresh or self._turn.is_due:
                self._held = self._turn.keep()
            if self._held and fresh:
                self._store.send(fresh, self._publisher)
                self._left_at = self._left_at if self._left else self._monotonic()
                self._left.update(outgoing.number for outgoing in fresh)
                published += len(fresh)
            more = self._held and len(waiting) == _CHUNK
            late = self._monotonic() - self._left_at >= _LEFT_FOR
            if late or len(self._left) >= _LEFT or not self._held:
                self._take_out()
        return published

    def _take_out(self) -> None:
        if self._left:
            self._store.index.sent(sorted(self._left))
            self._left.clear()


def serve(
    outlet: Outlet,
    stopping: threading.Event,
    *,
    connect: Callable[[], object] = lambda: None,
    describe: Callable[[], Mapping[str, Any]] = dict,
    poll: float = 0.2,
    log: Any = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Publish what comes in an outlet until ``stopping`` is set. Blocks.

    It looks again after a tenth of the time for which nothing has come: so it adds as little to the
    time that envelopes take, measured by how often they come, and hardly bothers a store in which
    nothing happens. Never before 10 ms, in which several gather, and always after ``poll`` seconds.

    ``connect`` is called at the start and after each failure, before the next try. Failures are
    logged and waited out with backoff, up to 30 seconds; what was published, once a second.
    ``describe``: what each line of the log says besides. Raises ``ConfigError``.
    """
    log = log or structlog.get_logger("eventsync.relay").bind(outbox=outlet.name)
    failures = 0
    connected = False
    found_at = told_at = -math.inf
    untold = 0
    while not stopping.is_set():
        try:
            if not connected:
                connect()
                connected = True
            published = outlet.run_once()
        except ConfigError:
            raise
        except (EventSyncError, OSError) as error:
            failures += 1
            wait = _BACKOFF.pause(failures)
            connected = False
            event = "broker is away" if isinstance(error, BusUnavailableError) else "relay failed"
            about = {"attempt": failures, "wait": wait, **describe()}
            log.warning(event, error=str(error), **about)
            stopping.wait(wait)
            continue
        failures = 0
        now = monotonic()
        if published:
            found_at = now
            untold += published
        if untold and now - told_at >= _TELL_EVERY:
            log.info("published", count=untold, **describe())
            untold, told_at = 0, now
        stopping.wait(min(poll, max(_SOON, _SHARE * (now - found_at))))
    if untold:
        log.info("published", count=untold, **describe())
