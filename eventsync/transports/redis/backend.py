"""The backend of the Redis transport: messages and leases in Redis Streams.

A consumer registers under a name that is used only once, and renews its registration. When another
consumer takes over its messages, the name is unregistered, and acknowledgements under this name
have no effect. The name contains the identity of the process, so that other processes on the same
host notice at once that the process has died.
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
from eventsync.transports.leased.json_object import encode_object
from eventsync.transports.leased.message import (
    KEPT_BYTES,
    MAX_HEADERS,
    LeasedMessage,
    OutboundMessage,
)
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.redis import scripts as script
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.routing import RedisRouting
from eventsync.transports.redis.url import RedisSettings

__all__ = ["RedisBackend"]

# The longest blocking read, in seconds. It is short, because a blocking read does not notice
# messages that other consumers release.
_LONGEST_BLOCK = 0.25
_MAX_CACHED_LABELS = 1024
_MAX_CACHED_LENGTH = 1024
_Labels = tuple[str | None, str | None, str, str]


class _Handle(NamedTuple):
    """The handle of a leased message. Valid only while the consumer's name is registered."""

    consumer: str
    queue: str
    id: bytes
    attempts: int


class RedisBackend(RedisRouting):
    """The ``Backend`` that stores messages on a Redis server."""

    def __init__(self, client: RedisClient, *, settings: RedisSettings) -> None:
        super().__init__(client, prefix=settings.prefix)
        self._settings = settings
        self._silence = min(settings.lease, settings.dead_after)
        self._labels: dict[bytes, _Labels] = {}
        self.forget_consumer()

    def forget_consumer(self) -> None:
        """Become a new consumer without messages, after a fork. Does not block."""
        self._lock = threading.Lock()
        process = current_process()
        scope = hashlib.sha256(process.scope.encode()).hexdigest()[:16] if process.scope else ""
        self._process = process._replace(scope=scope)
        self._consumer = self._new_name()
        self._registered = False  # until the first lease
        # The leased messages by consumer name. If the answer to a lease is lost, this consumer does
        # not know which messages the server leased to it. It then uses a new name for later leases.
        # When all known messages of the old name are settled, the name is unregistered, and the
        # unknown messages become ready again.
        self._leased: dict[str, set[_Handle]] = {}
        self._last_ids: dict[str, bytes] = {}
        self._started_at = time.monotonic()
        self._renewed_at = -math.inf

    def _new_name(self) -> str:
        return ".".join([*map(str, self._process), uuid.uuid4().hex])

    # -- storing -------------------------------------------------------------------------------

    def store(self, routed: Sequence[tuple[OutboundMessage, Sequence[str]]], epoch: int) -> bool:
        """Store messages durably, all or none, and return True.

        ``routed``: each message with the queues that receive it. If the routing has changed since
        ``epoch``, stores nothing and returns False.
        """
        key_numbers: dict[str, str] = {}
        words: list[Any] = [epoch]
        labels: dict[_Labels, str] = {}
        routes: dict[Sequence[str], str] = {}
        for message, queues in routed:
            if not queues:
                continue
            route = routes.get(queues)
            if route is None:
                for queue in queues:
                    # Lua counts from 1, and key 1 is the epoch.
                    key_numbers.setdefault(queue, str(len(key_numbers) + 2))
                route = routes[queues] = " ".join(key_numbers[queue] for queue in queues)
            key = (
                message.content_type,
                message.content_encoding,
                message.exchange,
                message.routing_key,
            )
            label = labels.get(key)
            if label is None:
                label = labels[key] = encode_object("labels", key)
            headers = ""
            if message.headers or message.properties:
                headers = encode_object(
                    "headers", [dict(message.headers or {}), dict(message.properties or {})]
                )
            words += (route, label, message.body, headers)
        keys = [self._epoch_key, *map(self._stream, key_numbers)]
        return bool(self._client.run(script.STORE, keys, words))

    def life(self) -> str:
        """Return the server's ``run_id``, which is different after each start of the server."""
        info = self._client.run(script.LIFE, [self._epoch_key], [])
        lines = bytes(info).decode().splitlines()
        return next(line for line in lines if line.startswith("run_id:"))

    # -- leasing -------------------------------------------------------------------------------

    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[LeasedMessage]:
        """Lease up to ``limit`` ready messages; first acknowledge those of ``acknowledged``."""
        while True:
            consumer, registered = self._consumer, self._registered
            groups = _grouped(acknowledged)
            own = groups.pop(consumer, {})
            for former_name, handles in groups.items():
                self._acknowledge(former_name, handles)
            keys = [self._consumers_key, self._queues_key, *map(self._stream, queues)]
            words = [
                consumer,
                round(self._silence * 1000),
                int(not registered),
                limit,
                self._settings.lease_bytes,
                self._settings.max_message,
                MAX_HEADERS,
                KEPT_BYTES,
                len(queues),
                *queues,
            ]
            self._add_ids(keys, words, own)
            try:
                status, *answer = self._client.run(script.LEASE, keys, words)
            except BusError:
                self._retire(consumer)
                raise
            if status == b"missing":
                raise BusUnavailableError(
                    f"the Redis server {self._client.place} has lost queue {answer[0].decode()!r}",
                    hint="the queue, or all data of the server, was deleted; declare the queue "
                    "again",
                )
            if status == b"ok":
                break
            self._forget(consumer)
        last, *parts_by_queue = answer
        self._last_ids = dict(zip(map(self._stream, queues), last, strict=True)) if last else {}
        messages = [
            message
            for queue, parts in zip(queues, parts_by_queue, strict=True)
            for counts, entries in parts
            for message in self._messages(queue, consumer, counts, entries)
        ]
        with self._lock:
            if self._consumer == consumer:
                self._registered = True
            leased = self._leased.setdefault(consumer, set())
            leased.difference_update(handle for part in own.values() for handle in part)
            leased.update(message.handle for message in messages)
        return messages

    def _messages(
        self, queue: str, consumer: str, counts: Sequence[int], entries: Sequence[Any]
    ) -> Iterator[LeasedMessage]:
        # This code runs for every message: helpers are inlined, and arguments are positional.
        redelivered = bool(counts)
        labels_of = self._labels
        for (id_, fields, *size), attempts in zip(entries, counts or repeat(0), strict=False):
            headers: dict[str, Any] = {}
            properties: dict[str, Any] = {}
            if len(fields) > 2 and fields[3]:
                headers, properties = _decode_headers(fields[3])
            labels = labels_of.get(fields[0]) or self._read_labels(fields[0])
            yield LeasedMessage(
                queue,
                _Handle(consumer, queue, id_, attempts),
                fields[1],
                headers,
                properties,
                *labels,
                attempts,
                redelivered,
                size[0] if size else 0,
                len(fields) > 4 and fields[4] == b"moved",
            )

    def _read_labels(self, raw: bytes) -> _Labels:
        """Decode the labels of a message: content type, content encoding, exchange, routing key.

        The result is cached, because few combinations occur.
        """
        try:
            content_type, content_encoding, exchange, routing_key = json.loads(raw)
            labels = (content_type, content_encoding, str(exchange), str(routing_key))
        except (TypeError, ValueError, RecursionError):
            labels = (None, None, "", "")  # the labels were written by another program
        if len(raw) <= _MAX_CACHED_LENGTH:
            if len(self._labels) >= _MAX_CACHED_LABELS:
                self._labels.clear()
            self._labels[raw] = labels
        return labels

    def wait(self, timeout: float) -> None:
        """Block in a read on the server until messages may be ready, for ``timeout`` or 0.25 s."""
        last = self._last_ids
        if not last:
            return
        block = max(1, round(min(timeout, _LONGEST_BLOCK) * 1000))
        self._client.command(
            "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", *last.keys(), *last.values()
        )

    # -- settling ------------------------------------------------------------------------------

    def acknowledge(self, handles: Sequence[Any]) -> int:
        """Remove the messages of ``handles`` and return how many were removed.

        Messages that this consumer no longer holds are not removed. Idempotent.
        """
        return sum(self._acknowledge(*group) for group in _grouped(handles).items())

    def _acknowledge(self, consumer: str, by_queue: dict[str, list[_Handle]]) -> int:
        keys = [self._consumers_key]
        words: list[Any] = [consumer]
        self._add_ids(keys, words, by_queue)
        removed = int(self._client.run(script.ACKNOWLEDGE, keys, words))
        self._settled(consumer, by_queue)
        return removed

    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """Make the messages of ``handles`` ready again, at their old place in the queue.

        ``attempted``: whether the lease counts as a delivery. Idempotent.
        """
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
                # The server may not have released the messages. Retiring the name releases them.
                self._retire(consumer)
                raise
            finally:
                self._settled(consumer, by_queue)

    def move(self, handles: Sequence[Any], queue: str) -> None:
        """Move the messages of ``handles`` to another queue, in one atomic step. Idempotent."""
        for consumer, by_queue in _grouped(handles).items():
            keys = [self._consumers_key, self._queues_key, self._stream(queue)]
            words: list[Any] = [consumer, queue]
            self._add_ids(keys, words, by_queue)
            if not self._client.run(script.MOVE, keys, words):
                raise self._no_queue(queue)
            self._settled(consumer, by_queue)

    def _no_queue(self, queue: str) -> BusError:
        return BusError(
            f"there is no queue {queue!r} on the Redis server {self._client.place}",
            hint="declare the store's queues first: start its worker once",
        )

    def _add_ids(
        self, keys: list[str], words: list[Any], by_queue: dict[str, list[_Handle]]
    ) -> None:
        for queue, handles in by_queue.items():
            keys.append(self._stream(queue))
            words += [len(keys), len(handles), *[handle.id for handle in handles]]

    def _settled(self, consumer: str, by_queue: dict[str, list[_Handle]]) -> None:
        with self._lock:
            leased = self._leased.get(consumer)
            if leased is not None:
                for handles in by_queue.values():
                    leased.difference_update(handles)

    # -- consumers -----------------------------------------------------------------------------

    def extend(self) -> bool:
        """Renew the registration of this consumer, which restarts the time of all its leases."""
        return self._renew(list_others=False)[0]

    def reclaim(self) -> None:
        """Make the messages of dead consumers ready again. Idempotent."""
        _, now, others = self._renew(list_others=True)
        client = self._client
        # After an outage of the server all consumers look expired, until they had time to renew.
        reachable_for = time.monotonic() - max(
            client.failed_at, self._started_at - self._silence / 2
        )
        for name, expiry in others:
            expired = now >= float(expiry) and reachable_for >= self._silence
            if expired or is_dead(_process_of(name), seen_from=self._process):
                keys = [self._consumers_key, self._queues_key]
                client.run(script.TAKE_OVER, keys, [self._streams, name, expiry])

    def _renew(self, *, list_others: bool) -> tuple[bool, float, list[tuple[str, bytes]]]:
        """Renew the registration of this consumer's names.

        With ``list_others``, renews only if a fifth of the lease time has passed. Returns whether
        all names were still registered, the server's time in milliseconds, and, with
        ``list_others``, the names and times of expiry of the other consumers.
        """
        own = self._registered_names()
        now = time.monotonic()
        due = not list_others or now - self._renewed_at >= self._silence / 5
        words = [round(self._silence * 1000), int(list_others), *(own if due else ())]
        server_time, gone, others = self._client.run(script.BEAT, [self._consumers_key], words)
        if due:
            self._renewed_at = now
        lost = [name.decode(errors="replace") for name in gone]
        for name in lost:
            self._forget(name)
        self._leave(self._empty_names())
        names = [name.decode(errors="replace") for name in others[::2]]
        pairs = zip(names, others[1::2], strict=True)
        return not lost, float(server_time), [pair for pair in pairs if pair[0] not in own]

    def _registered_names(self) -> list[str]:
        with self._lock:
            names = [*self._leased]
            if self._registered and self._consumer not in names:
                names.append(self._consumer)
            return names

    def _retire(self, consumer: str) -> None:
        """Stop using a name for leases, because messages unknown here may be leased under it."""
        with self._lock:
            self._leased.setdefault(consumer, set())
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _forget(self, consumer: str) -> None:
        """Forget a name that is no longer registered, and the messages leased under that name."""
        with self._lock:
            self._leased.pop(consumer, None)
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _empty_names(self) -> list[str]:
        """Return the retired names under which no known message is leased."""
        with self._lock:
            return [
                name
                for name, leased in self._leased.items()
                if not leased and name != self._consumer
            ]

    def _leave(self, names: Sequence[str]) -> None:
        """Unregister names; messages that are still leased under these names become ready."""
        if not names:
            return
        keys = [self._consumers_key, self._queues_key]
        self._client.run(script.LEAVE, keys, [self._streams, *names])
        for name in names:
            self._forget(name)

    def tidy(self) -> None:
        """Do nothing, because the Redis server itself frees the space of removed messages."""

    def close(self) -> None:
        """Release all messages of this consumer, unregister it, and disconnect. Idempotent."""
        try:
            self._leave(self._registered_names())
        finally:
            self._client.close()

    # -- whole queues --------------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """Return the number of ready messages in a queue; 0 if the queue does not exist."""
        state = self._state(queue)
        return int(state[0]) if state else 0

    def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue in several steps and return their number.

        Messages published after the call began are not removed.
        """
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
        """Return the numbers of messages in a queue, and the oldest age by the server's clock.

        Raises ``BusError`` if the queue does not exist.
        """
        state = self._state(queue)
        if not state:
            raise self._no_queue(queue)
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
    if len(parts) != 4 or not parts[1].isdecimal() or len(parts[1]) > 10:
        # The name was made by another program. Only its time of expiry shows whether it is dead.
        return ProcessIdentity("", 0, "")
    return ProcessIdentity(parts[0], int(parts[1]), parts[2])


def _decode_headers(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        headers, properties = json.loads(raw)
        return dict(headers), dict(properties)
    except (TypeError, ValueError, RecursionError):
        return {"x-malformed": raw[:1000].decode("utf-8", "replace")}, {}


def _grouped(handles: Iterable[_Handle]) -> dict[str, dict[str, list[_Handle]]]:
    """Group handles: return a dict by consumer name of dicts by queue name."""
    groups: dict[str, dict[str, list[_Handle]]] = {}
    for handle in handles:
        groups.setdefault(handle.consumer, {}).setdefault(handle.queue, []).append(handle)
    return groups
