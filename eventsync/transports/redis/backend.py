"""Owns leasing on a Redis server: storing, leasing, settling, and taking over from the dead.

It must not know kombu, nor what the bytes of a message mean.

A consumer has a name that is used once, and shows that it lives under that name. Who is taken over
loses the name, and with it the right to settle what it held. The name also says which process it
is, so that another one on the same host sees at once when that has died.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from eventsync.errors import BusError, BusUnavailableError
from eventsync.transports.leased.backend import QueueStats
from eventsync.transports.leased.message import Delivery, Outgoing
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.redis import scripts as script
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.routing import RedisRouting, encode_object
from eventsync.transports.redis.url import RedisSettings

__all__ = ["RedisBackend"]

# A message given back by another consumer is seen at the latest after this time, in seconds.
_LONGEST_BLOCK = 0.25
_REMEMBERED_LABELS = 1024
_Labels = tuple[str | None, str | None, str, str]


class _Handle(NamedTuple):
    """What a delivery is settled by. Good only while the server knows the consumer."""

    consumer: str
    queue: str
    id: bytes
    attempts: int


class RedisBackend(RedisRouting):
    """One consumer and publisher on a Redis server; see ``Backend`` for the contract."""

    def __init__(self, client: RedisClient, *, settings: RedisSettings) -> None:
        super().__init__(client, prefix=settings.prefix)
        self._settings = settings
        self._silence = min(settings.lease, settings.dead_after)
        self._labels: dict[bytes, _Labels] = {}
        self.forget_consumer()

    def forget_consumer(self) -> None:
        """See ``Backend``."""
        self._lock = threading.Lock()
        process = current_process()
        scope = hashlib.sha256(process.scope.encode()).hexdigest()[:16] if process.scope else ""
        self._process = process._replace(scope=scope)
        self._consumer = self._new_name()
        self._registered = False  # which the first lease does
        # What each of our names holds. There are several after an answer was lost: what was leased
        # with that is not known here, and comes free once all else under the name is settled.
        self._held: dict[str, set[_Handle]] = {}
        self._last_ids: dict[str, bytes] = {}
        self._since = time.monotonic()
        self._shown_at = -math.inf

    def _new_name(self) -> str:
        return ".".join([*map(str, self._process), uuid.uuid4().hex])

    # -- storing -------------------------------------------------------------------------------

    def store(self, routed: Sequence[tuple[Outgoing, Sequence[str]]], epoch: int) -> bool:
        """See ``Backend``."""
        numbers: dict[str, str] = {}
        words: list[Any] = [epoch]
        labels: dict[_Labels, str] = {}
        routes: dict[Sequence[str], str] = {}
        for message, queues in routed:
            if not queues:
                continue
            route = routes.get(queues)
            if route is None:
                for queue in queues:
                    numbers.setdefault(queue, str(len(numbers) + 2))  # after the epoch, from 1
                route = routes[queues] = " ".join(numbers[queue] for queue in queues)
            key = (
                message.content_type,
                message.content_encoding,
                message.exchange,
                message.routing_key,
            )
            label = labels.get(key)
            if label is None:
                label = labels[key] = encode_object("labels", key)
            rest = ""
            if message.headers or message.properties:
                rest = encode_object(
                    "headers", [dict(message.headers or {}), dict(message.properties or {})]
                )
            words += (route, label, message.body, rest)
        keys = [self._epoch_key, *map(self._stream, numbers)]
        return bool(self._client.run(script.STORE, keys, words))

    def life(self) -> str:
        """See ``Backend``. The server draws an id each time it starts."""
        told = self._client.run(script.LIFE, [self._epoch_key], [])
        lines = bytes(told).decode().splitlines()
        return next(line for line in lines if line.startswith("run_id:"))

    # -- leasing -------------------------------------------------------------------------------

    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[Delivery]:
        """See ``Backend``."""
        while True:
            consumer, registered = self._consumer, self._registered
            groups = _grouped(acknowledged)
            ours = groups.pop(consumer, {})
            for owner, handles in groups.items():
                self._acknowledge(owner, handles)
            keys = [self._consumers_key, self._queues_key, *map(self._stream, queues)]
            words = [
                consumer,
                round(self._silence * 1000),
                int(not registered),
                limit,
                self._settings.lease_bytes,
                len(queues),
                *queues,
            ]
            self._add_ids(keys, words, ours)
            try:
                status, *answer = self._client.run(script.LEASE, keys, words)
            except BusError:
                self._retire(consumer)
                raise
            if status == b"missing":
                raise BusUnavailableError(
                    f"the Redis server {self._client.place} has lost queue {answer[0].decode()!r}",
                    hint="it was deleted, or the server was emptied; declare it again",
                )
            if status == b"ok":
                break
            self._forget(consumer)
        last, *leased = answer
        self._last_ids = dict(zip(map(self._stream, queues), last, strict=True)) if last else {}
        deliveries = [
            delivery
            for queue, parts in zip(queues, leased, strict=True)
            for counts, entries in parts
            for delivery in self._deliveries(queue, consumer, counts, entries)
        ]
        with self._lock:
            if self._consumer == consumer:
                self._registered = True
            held = self._held.setdefault(consumer, set())
            held.difference_update(handle for part in ours.values() for handle in part)
            held.update(delivery.handle for delivery in deliveries)
        return deliveries

    def _deliveries(
        self, queue: str, consumer: str, counts: Sequence[int], entries: Sequence[Any]
    ) -> Iterator[Delivery]:
        # The hot path of consuming: positional and in one place.
        redelivered = bool(counts)
        labels_of = self._labels
        for (id_, fields), attempts in zip(entries, counts or repeat(0), strict=False):
            headers: dict[str, Any] = {}
            properties: dict[str, Any] = {}
            if len(fields) > 2:
                headers, properties = _rest(fields[3])
            labels = labels_of.get(fields[0]) or self._read_labels(fields[0])
            yield Delivery(
                queue,
                _Handle(consumer, queue, id_, attempts),
                fields[1],
                headers,
                properties,
                *labels,
                attempts,
                redelivered,
            )

    def _read_labels(self, raw: bytes) -> _Labels:
        """Return the labels of a message; the few combinations that occur are decoded once."""
        try:
            content_type, content_encoding, exchange, routing_key = json.loads(raw)
            labels = (content_type, content_encoding, str(exchange), str(routing_key))
        except (TypeError, ValueError):
            labels = (None, None, "", "")  # a stranger's
        if len(self._labels) >= _REMEMBERED_LABELS:
            self._labels.clear()
        self._labels[raw] = labels
        return labels

    def wait(self, timeout: float) -> None:
        """See ``Backend``: blocks on the server, in short parts."""
        last = self._last_ids
        if not last:
            return
        block = max(1, round(min(timeout, _LONGEST_BLOCK) * 1000))
        self._client.command(
            "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", *last.keys(), *last.values()
        )

    # -- settling ------------------------------------------------------------------------------

    def acknowledge(self, handles: Sequence[Any]) -> int:
        """See ``Backend``."""
        return sum(self._acknowledge(*group) for group in _grouped(handles).items())

    def _acknowledge(self, consumer: str, by_queue: dict[str, list[_Handle]]) -> int:
        keys = [self._consumers_key]
        words: list[Any] = [consumer]
        self._add_ids(keys, words, by_queue)
        removed = int(self._client.run(script.ACKNOWLEDGE, keys, words))
        self._settled(consumer, by_queue)
        return removed

    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """See ``Backend``."""
        for consumer, by_queue in _grouped(handles).items():
            keys = [self._consumers_key]
            words: list[Any] = [consumer]
            for queue, part in by_queue.items():
                keys.append(self._stream(queue))
                counted: dict[int, list[bytes]] = {}
                for handle in part:
                    counted.setdefault(handle.attempts + attempted, []).append(handle.id)
                for count, ids in counted.items():
                    words += [len(keys), count, len(ids), *ids]
            try:
                self._client.run(script.RELEASE, keys, words)
            except BusError:
                # The caller counts them as given back, so they must not stay with this name.
                self._retire(consumer)
                raise
            finally:
                self._settled(consumer, by_queue)

    def _add_ids(
        self, keys: list[str], words: list[Any], by_queue: dict[str, list[_Handle]]
    ) -> None:
        for queue, handles in by_queue.items():
            keys.append(self._stream(queue))
            words += [len(keys), len(handles), *[handle.id for handle in handles]]

    def _settled(self, consumer: str, by_queue: dict[str, list[_Handle]]) -> None:
        with self._lock:
            held = self._held.get(consumer)
            if held is not None:
                for handles in by_queue.values():
                    held.difference_update(handles)

    # -- who is alive --------------------------------------------------------------------------

    def extend(self) -> bool:
        """See ``Backend``: one round trip, however many messages this consumer holds."""
        return self._show(look=False)[0]

    def reclaim(self) -> None:
        """See ``Backend``."""
        _, now, others = self._show(look=True)
        client = self._client
        # A server that was away makes everybody look dead, until they had time to show themselves.
        quiet = time.monotonic() - max(client.failed_at, self._since - self._silence / 2)
        for name, expiry in others:
            expired = now >= float(expiry) and quiet >= self._silence
            if expired or is_dead(_process_of(name), seen_from=self._process):
                keys = [self._consumers_key, self._queues_key]
                client.run(script.TAKE_OVER, keys, [self._streams, name, expiry])

    def _show(self, *, look: bool) -> tuple[bool, float, list[tuple[str, bytes]]]:
        """Show that this consumer lives; return whether it was known, and the others if asked."""
        with self._lock:
            ours = [*self._held]
            if self._registered and self._consumer not in ours:
                ours.append(self._consumer)
        started = time.monotonic()
        due = not look or started - self._shown_at >= self._silence / 5
        words = [round(self._silence * 1000), int(look), *(ours if due else ())]
        now, gone, others = self._client.run(script.BEAT, [self._consumers_key], words)
        if due:
            self._shown_at = started
        lost = [name.decode() for name in gone]
        for name in lost:
            self._forget(name)
        self._leave(self._empty_names())
        known = [name.decode() for name in others[::2]]
        pairs = zip(known, others[1::2], strict=True)
        return not lost, float(now), [pair for pair in pairs if pair[0] not in ours]

    def _retire(self, consumer: str) -> None:
        """Lease under another name from now on: under this one there may be what we know not."""
        with self._lock:
            self._held.setdefault(consumer, set())
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _forget(self, consumer: str) -> None:
        """Take note that a name has been taken over, with all that was held under it."""
        with self._lock:
            self._held.pop(consumer, None)
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _empty_names(self) -> list[str]:
        with self._lock:
            return [n for n, held in self._held.items() if not held and n != self._consumer]

    def _leave(self, names: Sequence[str]) -> None:
        if not names:
            return
        keys = [self._consumers_key, self._queues_key]
        self._client.run(script.LEAVE, keys, [self._streams, *names])
        for name in names:
            self._forget(name)

    def tidy(self) -> None:
        """See ``Backend``: the server frees the space of what is removed by itself."""

    def close(self) -> None:
        """See ``Backend``."""
        try:
            with self._lock:
                names = [*self._held]
                if self._registered and self._consumer not in names:
                    names.append(self._consumer)
            self._leave(names)
        finally:
            self._client.close()

    # -- a queue as a whole --------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """See ``Backend``."""
        state = self._state(queue)
        return int(state[0]) if state else 0

    def purge(self, queue: str) -> int:
        """See ``Backend``: in steps, up to what is there now."""
        stream = self._stream(queue)
        newest = self._client.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        if not newest:
            return 0
        last = newest[0][0]
        removed, more = 0, 1
        while more:
            part, more = self._client.run(script.PURGE, [stream], [last])
            removed += part
        return removed

    def queue_stats(self, queue: str) -> QueueStats:
        """See ``Backend``: the age is that of the oldest id, by the server's clock."""
        state = self._state(queue)
        if not state:
            raise BusError(f"there is no queue {queue!r} at {self._client.place}")
        ready, leased, oldest, now = state
        if not oldest:
            return QueueStats(ready, leased, None)
        age = (int(now) - int(oldest.partition(b"-")[0])) / 1000
        return QueueStats(ready, leased, max(0.0, age))

    def _state(self, queue: str) -> Any:
        keys = [self._queues_key, self._stream(queue)]
        return self._client.run(script.STATE, keys, [queue])


def _process_of(name: str) -> ProcessIdentity:
    parts = name.split(".")
    if len(parts) != 4 or not parts[1].isdecimal():
        return ProcessIdentity("", 0, "")  # not a name of ours: its time decides
    return ProcessIdentity(parts[0], int(parts[1]), parts[2])


def _rest(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        headers, properties = json.loads(raw)
        return dict(headers), dict(properties)
    except (TypeError, ValueError, RecursionError):
        return {"x-malformed": raw[:1000].decode("utf-8", "replace")}, {}


def _grouped(handles: Iterable[_Handle]) -> dict[str, dict[str, list[_Handle]]]:
    """Return the handles by consumer and queue, which are few."""
    groups: dict[str, dict[str, list[_Handle]]] = {}
    for handle in handles:
        groups.setdefault(handle.consumer, {}).setdefault(handle.queue, []).append(handle)
    return groups
