"""The batching publisher, which joins many small publishes into few large ones."""

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

from eventsync.broker.isolated_publish import publish_isolated
from eventsync.changes.change import Change
from eventsync.changes.fork import incarnation
from eventsync.engine.isolation import Failed
from eventsync.engine.publisher import Publisher
from eventsync.errors import BusUnavailableError
from eventsync.retry import Backoff

__all__ = ["BatchPublisher"]

_BACKOFF: Final = Backoff(0.05, 2.0)


@dataclass(slots=True)
class _Call:
    """The envelopes of one call, which are published together and have one future."""

    type: str
    bodies: Sequence[bytes]
    size: int
    future: Future[None]
    deadline: float


class BatchPublisher:
    """A ``Publisher`` that collects envelopes and publishes them in batches from a thread.

    A batch is published when it has ``max_count`` envelopes or ``max_bytes`` bytes, or when its
    first envelope has waited for ``linger`` seconds. The envelopes of one ``publish`` stay
    together. While the broker is unreachable each envelope is retried for ``timeout`` seconds and
    then fails with ``BusUnavailableError``. If the broker refuses an envelope, only the call that
    gave it fails. At most ``buffer_bytes`` wait; beyond that ``send`` blocks, for at most
    ``timeout`` seconds. Thread-safe. Usable as a context manager. At the end of the process the
    waiting envelopes are published within ``timeout``. A forked child starts empty.
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
        self._reset()
        atexit.register(_close, weakref.ref(self))

    def _reset(self) -> None:
        self._incarnation = incarnation()
        self._changed = threading.Condition()
        self._waiting: deque[_Call] = deque()
        # The bytes of all calls that wait or are being published.
        self._size = 0
        # The envelopes of all calls that wait.
        self._count = 0
        # Whether to publish at once, without waiting for more envelopes.
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BatchPublisher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change``, signed if keys are configured."""
        return self._target.encode(change)

    def send(self, change: Change) -> Future[None]:
        """Publish a change later; the future is done once the broker has stored it or has failed.

        Blocks while the buffer is full. A change whose future is cancelled before its batch is
        published is not sent. Raises ``BusUnavailableError`` if the buffer stays full, and
        ``ValueRefusedError`` if the change cannot be encoded.
        """
        future = self._put(change.type, [self.encode(change)], wait=True)
        assert future is not None
        return future

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes and block until the broker has stored them.

        Raises ``UnroutableError`` and ``BusUnavailableError``. After the latter the broker may have
        stored some of them; it does no harm to publish them again.
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
            raise self._unconfirmed() from None

    async def apublish(self, change: Change) -> None:
        """Publish a change and wait until the broker has stored it; the event loop runs on.

        Raises ``BusUnavailableError``, ``UnroutableError``, ``ValueRefusedError``.
        """
        body = self.encode(change)
        deadline = time.monotonic() + self._timeout
        while (future := self._put(change.type, [body], wait=False)) is None:
            if time.monotonic() >= deadline:
                raise self._buffer_full()
            await asyncio.sleep(max(self._linger, 0.005))
        try:
            await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError:
            raise self._unconfirmed() from None

    def flush(self) -> None:
        """Publish all waiting envelopes. Blocks until the broker has stored them.

        Raises ``BusUnavailableError`` if that takes longer than ``timeout``.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._size, self._timeout):
                raise self._unconfirmed()

    def close(self) -> None:
        """Publish all waiting envelopes and end the thread. Idempotent.

        Raises ``BusUnavailableError``.
        """
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
            self._reset()
        size = sum(map(len, bodies))
        with self._changed:
            if self._closed:
                raise BusUnavailableError("the publisher is closed")

            def has_room() -> bool:
                # A call larger than the whole buffer is accepted when nothing else waits.
                return not self._size or self._size + size <= self._buffer_bytes

            if not has_room():
                if not wait:
                    return None
                if not self._changed.wait_for(has_room, self._timeout):
                    raise self._buffer_full()
            future: Future[None] = Future()
            self._waiting.append(
                _Call(type, bodies, size, future, time.monotonic() + self._timeout)
            )
            self._size += size
            self._count += len(bodies)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="eventsync-publisher", daemon=True
                )
                self._thread.start()
            # Wake the thread only for the first call or a full batch. Otherwise it has nothing to
            # do, and waking it costs more than the rest of this method.
            if len(self._waiting) == 1 or self._is_full():
                self._changed.notify_all()
        return future

    def _run(self) -> None:
        while batch := self._take():
            self._publish_batch([c for c in batch if c.future.set_running_or_notify_cancel()])
            with self._changed:
                self._size -= sum(call.size for call in batch)
                self._changed.notify_all()

    def _take(self) -> list[_Call]:
        """Wait for the next batch, of one record type, and remove it; empty when closed."""
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
            self._count -= sum(len(call.bodies) for call in batch)
            self._hurry = self._hurry and bool(self._waiting)
            return batch

    def _is_full(self) -> bool:
        return (
            self._hurry
            or self._closed
            or self._count >= self._max_count
            or self._size >= self._max_bytes
        )

    def _publish_batch(self, batch: list[_Call]) -> None:
        """Publish calls and complete their futures; retry while the broker is unreachable."""
        failures = 0
        while batch:
            try:
                for part in publish_isolated(batch, self._publish_calls):
                    if isinstance(part, Failed):
                        part.item.future.set_exception(part.error)
                    else:
                        for call in part.items:
                            call.future.set_result(None)
                return
            except BusUnavailableError as error:
                now = time.monotonic()
                batch = [call for call in batch if not call.future.done()]
                for call in batch:
                    if call.deadline <= now:
                        call.future.set_exception(error)
                batch = [call for call in batch if call.deadline > now]
                failures += 1
                time.sleep(_BACKOFF.pause(failures))
            except Exception as error:  # the callers raise it
                for call in batch:
                    if not call.future.done():
                        call.future.set_exception(error)
                return

    def _publish_calls(self, calls: Sequence[_Call]) -> None:
        bodies = [body for call in calls for body in call.bodies]
        self._target.publish(calls[0].type, bodies)

    def _buffer_full(self) -> BusUnavailableError:
        return BusUnavailableError(
            f"{self._size:,} bytes wait for the broker, and the buffer stayed full for "
            f"{self._timeout:g} s",
            hint="the broker is slow or unreachable; publish less, or through a store with an "
            "outbox",
        )

    def _unconfirmed(self) -> BusUnavailableError:
        return BusUnavailableError(
            f"the broker did not confirm the envelopes within {self._timeout:g} s",
            hint="publish them again when the broker is back; those it has already do no harm",
        )


def _close(reference: weakref.ref[Any]) -> None:
    publisher = reference()
    if publisher is not None:
        publisher.close()
