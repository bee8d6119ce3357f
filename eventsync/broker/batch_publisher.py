"""The batching publisher: many small publishes from any thread, few large ones to the broker.

It owns the batches, the bound on what waits and the one thread that sends. It must not know how the
broker is reached (a ``Publisher`` takes each batch).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.changes.fork import incarnation
from eventsync.engine.publisher import Publisher
from eventsync.errors import BusUnavailableError
from eventsync.retry import Backoff

__all__ = ["BatchPublisher"]

_BACKOFF: Final = Backoff(0.05, 2.0)


@dataclass(slots=True)
class _Item:
    """What one call gave: it goes together, and has one future."""

    type: str
    bodies: Sequence[bytes]
    size: int
    future: Future[None]
    deadline: float


class BatchPublisher:
    """Sends what it is given in batches, from a thread of its own; fits ``store.Publisher``.

    A batch goes when it has ``max_count`` envelopes or ``max_bytes`` bytes, or when its first
    envelope has waited for ``linger`` seconds; what one ``publish`` was given goes together. While
    the broker is away each envelope is tried for ``timeout`` seconds and then fails with
    ``BusUnavailableError``. At most ``buffer_bytes`` wait; beyond that ``send`` blocks, for
    ``timeout`` seconds at most. Thread-safe. Usable as a context manager; what waits at the end of
    the process is sent within ``timeout``. After a fork the child begins empty.
    """

    def __init__(
        self,
        target: Publisher,
        *,
        max_count: int = 500,
        max_bytes: int = 512 * 1024,
        linger: float = 0.005,
        buffer_bytes: int = 32 * 1024 * 1024,
        timeout: float = 30.0,
    ) -> None:
        self._target = target
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._linger = linger
        self._buffer_bytes = buffer_bytes
        self._timeout = timeout
        self._begin()
        held = weakref.ref(self)
        atexit.register(_close, held)

    def _begin(self) -> None:
        self._incarnation = incarnation()
        self._changed = threading.Condition()
        self._waiting: deque[_Item] = deque()
        # Of what waits and what is being sent: its bytes. Of what waits: its envelopes.
        self._size = 0
        self._count = 0
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BatchPublisher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def encode(self, change: Change) -> bytes:
        """The envelope of ``change``, signed when keys are configured."""
        return self._target.encode(change)

    def send(self, change: Change) -> Future[None]:
        """Take a change; the future is done once the broker has it safe, or has failed.

        Blocks while the buffer is full. A future that is cancelled before its batch is on its way
        is not sent. Raises ``BusUnavailableError`` when there is no room in time,
        ``ValueRefusedError`` for a change that may not travel.
        """
        future = self._put(change.type, [self.encode(change)], wait=True)
        assert future is not None
        return future

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Take envelopes and block until the broker has them safe.

        Raises ``BusUnavailableError``: then some may be at the broker and some not; publishing them
        again does no harm. Raises ``UnroutableError``.
        """
        if not envelopes:
            return
        deadline = time.monotonic() + self._timeout
        future = self._put(type, envelopes, wait=True)
        assert future is not None
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
        try:
            future.result(max(0.0, deadline - time.monotonic()) + _BACKOFF.longest)
        except TimeoutError:
            raise self._slow() from None

    async def apublish(self, change: Change) -> None:
        """As ``send`` and waiting for it, from a coroutine, without blocking its loop.

        Raises ``BusUnavailableError``, ``UnroutableError``, ``ValueRefusedError``.
        """
        body = self.encode(change)
        deadline = time.monotonic() + self._timeout
        while (future := self._put(change.type, [body], wait=False)) is None:
            if time.monotonic() >= deadline:
                raise self._full()
            await asyncio.sleep(max(self._linger, 0.005))
        try:
            await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError:
            raise self._slow() from None

    def flush(self) -> None:
        """Block until nothing waits. Raises ``BusUnavailableError`` when that takes too long."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._size, self._timeout):
                raise self._slow()

    def close(self) -> None:
        """Send what waits and end the thread. Idempotent. Raises ``BusUnavailableError``."""
        if self._incarnation != incarnation():
            return
        try:
            self.flush()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    # -- inside ------------------------------------------------------------------------------------

    def _put(self, type: str, bodies: Sequence[bytes], *, wait: bool) -> Future[None] | None:
        if self._incarnation != incarnation():
            self._begin()
        size = sum(map(len, bodies))
        with self._changed:
            if self._closed:
                raise BusUnavailableError("the publisher is closed")

            def room() -> bool:
                # What is larger than the whole buffer goes when nothing else waits.
                return not self._size or self._size + size <= self._buffer_bytes

            if not room():
                if not wait:
                    return None
                if not self._changed.wait_for(room, self._timeout):
                    raise self._full()
            future: Future[None] = Future()
            self._waiting.append(
                _Item(type, bodies, size, future, time.monotonic() + self._timeout)
            )
            self._size += size
            self._count += len(bodies)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="eventsync-publisher", daemon=True
                )
                self._thread.start()
            # In between there is nothing for the thread to do; to wake it then costs more than all
            # else that happens here.
            if len(self._waiting) == 1 or self._is_full():
                self._changed.notify_all()
        return future

    def _run(self) -> None:
        while batch := self._take():
            self._deliver([i for i in batch if i.future.set_running_or_notify_cancel()])
            with self._changed:
                self._size -= sum(item.size for item in batch)
                self._changed.notify_all()

    def _take(self) -> list[_Item]:
        """The next batch, of one type, in order; empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            if not self._hurry:
                self._changed.wait_for(self._is_full, self._linger)
            batch = [self._waiting.popleft()]
            count, size = len(batch[0].bodies), batch[0].size
            while self._waiting:
                following = self._waiting[0]
                count, size = count + len(following.bodies), size + following.size
                if (
                    following.type != batch[0].type
                    or count > self._max_count
                    or size > self._max_bytes
                ):
                    break
                batch.append(self._waiting.popleft())
            self._count -= sum(len(item.bodies) for item in batch)
            self._hurry = self._hurry and bool(self._waiting)
            return batch

    def _is_full(self) -> bool:
        return (
            self._hurry
            or self._closed
            or self._count >= self._max_count
            or self._size >= self._max_bytes
        )

    def _deliver(self, batch: list[_Item]) -> None:
        failures = 0
        while batch:
            try:
                bodies = [body for item in batch for body in item.bodies]
                self._target.publish(batch[0].type, bodies)
            except BusUnavailableError as error:
                now = time.monotonic()
                for item in batch:
                    if item.deadline <= now:
                        item.future.set_exception(error)
                batch = [item for item in batch if item.deadline > now]
                failures += 1
                time.sleep(_BACKOFF.pause(failures))
            except Exception as error:  # told to whoever waits for it
                for item in batch:
                    item.future.set_exception(error)
                return
            else:
                for item in batch:
                    item.future.set_result(None)
                return

    def _full(self) -> BusUnavailableError:
        return BusUnavailableError(
            f"{self._size:,} bytes wait for the broker, and no room came in {self._timeout:g} s",
            hint="the broker is slow or away; publish less, or through a store with an outbox",
        )

    def _slow(self) -> BusUnavailableError:
        return BusUnavailableError(
            f"the broker has not confirmed within {self._timeout:g} s",
            hint="publish again when it is back: what it has already does no harm",
        )


def _close(held: weakref.ref[Any]) -> None:
    publisher = held()
    if publisher is not None:
        publisher.close()
