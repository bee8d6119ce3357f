"""The batch publisher: combines many small publishes into a few large ones."""

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
    """The envelopes of one call of ``send`` or ``publish``, and the future of this call.

    ``size``: their bytes. ``deadline``: when to give up, on the monotonic clock.
    """

    type: str
    bodies: Sequence[bytes]
    size: int
    future: Future[None]
    deadline: float


class BatchPublisher:
    """A ``Publisher`` that collects envelopes and publishes them in batches from its own thread.

    A batch is published when it has ``max_count`` envelopes or ``max_bytes`` bytes, or when its
    first envelope has waited for ``linger`` seconds. The envelopes of one ``publish`` call are in
    one batch. While the broker is unreachable, a batch is retried. A call fails with
    ``BusUnavailableError`` if the broker has not stored its envelopes after ``timeout`` seconds. If
    the broker refuses an envelope, only the call with that envelope fails.

    ``target``: publishes the batches. ``buffer_bytes``: the size of the buffer. While the buffer is
    full, ``send`` blocks, for ``timeout`` seconds at most. At the end of the process the waiting
    envelopes are published. In a forked child the buffer is empty. Thread-safe. Usable as a context
    manager.
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
        # The number of bytes of all calls that wait or are being published.
        self._size = 0
        # The number of envelopes of all calls that wait.
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
        """Return the envelope of ``change`` as bytes, signed if keys are configured.

        Raises ``ValueRefusedError`` if the change cannot be encoded.
        """
        return self._target.encode(change)

    def send(self, change: Change) -> Future[None]:
        """Add a change to the buffer and return a future.

        The result of the future is ``None`` when the broker has stored the change; if publishing
        fails, the future has the exception. Cancelling the future before its batch is published
        withdraws the change. Blocks while the buffer is full. Raises ``BusUnavailableError`` if the
        buffer stays full for ``timeout`` seconds, and ``ValueRefusedError`` if the change cannot be
        encoded.
        """
        future = self._put(change.type, [self.encode(change)], wait=True)
        assert future is not None
        return future

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes of one record type. Blocks until the broker has stored them.

        Raises ``UnroutableError`` if no queue receives the type, and ``BusUnavailableError`` if the
        broker has not stored the envelopes after ``timeout`` seconds. The broker may then have
        stored some envelopes; publishing them again does no harm.
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
        """Publish a change; return when the broker has stored it. Does not block the event loop.

        Raises ``BusUnavailableError`` if the broker has not stored the change after ``timeout``
        seconds, ``UnroutableError`` if no queue receives the record type, and
        ``ValueRefusedError`` if the change cannot be encoded.
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

        Raises ``BusUnavailableError`` if this takes longer than ``timeout`` seconds.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._size, self._timeout):
                raise self._unconfirmed()

    def close(self) -> None:
        """Publish all waiting envelopes and end the thread. Idempotent.

        Raises ``BusUnavailableError`` if the broker does not store the envelopes within ``timeout``
        seconds.
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
                raise BusUnavailableError(
                    "the batch publisher is closed and publishes no more changes",
                    hint="create a new BatchPublisher",
                )

            def has_room() -> bool:
                # A call larger than the whole buffer is accepted if the buffer is empty.
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
            # Wake the thread only for the first call or a full batch. At other times the thread has
            # nothing to do, and waking it costs more than the rest of this method.
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
        """Wait for the next batch, remove its calls from the buffer and return them.

        All calls of a batch have one record type. Returns an empty list when the publisher is
        closed and the buffer is empty.
        """
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
        """Publish the calls of a batch and complete their futures.

        While the broker is unreachable, each call is retried until its deadline.
        """
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
            except Exception as error:  # the callers get the error from their futures
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
            hint="the broker is slow or unreachable; publish fewer changes, or publish through a "
            "store with an outbox",
        )

    def _unconfirmed(self) -> BusUnavailableError:
        return BusUnavailableError(
            f"the broker did not confirm the envelopes within {self._timeout:g} s",
            hint="publish the envelopes again when the broker answers; publishing them twice does "
            "no harm",
        )


def _close(reference: weakref.ref[Any]) -> None:
    publisher = reference()
    if publisher is not None:
        publisher.close()
