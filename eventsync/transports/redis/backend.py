"""The backend of the Redis transport: messages and leases in Redis Streams.

A consumer registers under a name that is used only once, and renews its registration. A consumer
that is taken over loses the name, and with it the right to settle its messages. The name contains
the identity of the process, so that other processes on the same host notice its death at once.
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
from eventsync.transports.leased.message import LeasedMessage, OutboundMessage
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.redis import scripts as script
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.routing import RedisRouting
from eventsync.transports.redis.url import RedisSettings

__all__ = ["RedisBackend"]

# A blocking read ends after this time, in seconds, because it does not notice messages that other
# consumers release.
_LONGEST_BLOCK = 0.25
_MAX_CACHED_LABELS = 1024
_Labels = tuple[str | None, str | None, str, str]


class _Handle(NamedTuple):
    """The handle of a leased message. Valid only while the server knows the consumer."""

    consumer: str
    queue: str
    id: bytes
    attempts: int


class RedisBackend(RedisRouting):
    """A consumer and publisher on a Redis server; ``Backend`` states the contract."""

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
        self._registered = False  # until the first lease
        # The leased messages by the consumer name. This consumer has several names after it lost
        # the answer to a lease: it does not know which messages that answer leased. They become
        # ready again once everything else under the name is settled and the name is given up.
        self._leased: dict[str, set[_Handle]] = {}
        self._last_ids: dict[str, bytes] = {}
        self._started_at = time.monotonic()
        self._renewed_at = -math.inf

    def _new_name(self) -> str:
        return ".".join([*map(str, self._process), uuid.uuid4().hex])

    # -- storing -------------------------------------------------------------------------------

    def store(self, routed: Sequence[tuple[OutboundMessage, Sequence[str]]], epoch: int) -> bool:
        """See ``Backend``."""
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
        """See ``Backend``. The server makes a new ``run_id`` each time it starts."""
        info = self._client.run(script.LIFE, [self._epoch_key], [])
        lines = bytes(info).decode().splitlines()
        return next(line for line in lines if line.startswith("run_id:"))

    # -- leasing -------------------------------------------------------------------------------

    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[LeasedMessage]:
        """See ``Backend``."""
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
                    hint="the queue was deleted or the server emptied; declare the queue again",
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
        # The hot path of consuming: inlined, and with positional arguments.
        redelivered = bool(counts)
        labels_of = self._labels
        for (id_, fields), attempts in zip(entries, counts or repeat(0), strict=False):
            headers: dict[str, Any] = {}
            properties: dict[str, Any] = {}
            if len(fields) > 2:
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
            )

    def _read_labels(self, raw: bytes) -> _Labels:
        """Decode the labels of a message and cache them, because few combinations occur."""
        try:
            content_type, content_encoding, exchange, routing_key = json.loads(raw)
            labels = (content_type, content_encoding, str(exchange), str(routing_key))
        except (TypeError, ValueError):
            labels = (None, None, "", "")  # written by another program
        if len(self._labels) >= _MAX_CACHED_LABELS:
            self._labels.clear()
        self._labels[raw] = labels
        return labels

    def wait(self, timeout: float) -> None:
        """See ``Backend``. Blocks in a read on the server, for a short time."""
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
                # The caller considers them released, so they must not stay under this name.
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
            leased = self._leased.get(consumer)
            if leased is not None:
                for handles in by_queue.values():
                    leased.difference_update(handles)

    # -- consumers -----------------------------------------------------------------------------

    def extend(self) -> bool:
        """See ``Backend``. One round trip, however many messages this consumer holds."""
        return self._renew(list_others=False)[0]

    def reclaim(self) -> None:
        """See ``Backend``."""
        _, now, others = self._renew(list_others=True)
        client = self._client
        # After the server was unreachable all consumers look expired until they had time to renew.
        reachable_for = time.monotonic() - max(
            client.failed_at, self._started_at - self._silence / 2
        )
        for name, expiry in others:
            expired = now >= float(expiry) and reachable_for >= self._silence
            if expired or is_dead(_process_of(name), seen_from=self._process):
                keys = [self._consumers_key, self._queues_key]
                client.run(script.TAKE_OVER, keys, [self._streams, name, expiry])

    def _renew(self, *, list_others: bool) -> tuple[bool, float, list[tuple[str, bytes]]]:
        """Renew the registration of this consumer's names, if that is due.

        Return whether all names were still registered, the server's time in milliseconds, and the
        other consumers with their times of expiry, if ``list_others``. Without ``list_others`` a
        renewal is always due.
        """
        own = self._registered_names()
        now = time.monotonic()
        due = not list_others or now - self._renewed_at >= self._silence / 5
        words = [round(self._silence * 1000), int(list_others), *(own if due else ())]
        server_time, gone, others = self._client.run(script.BEAT, [self._consumers_key], words)
        if due:
            self._renewed_at = now
        lost = [name.decode() for name in gone]
        for name in lost:
            self._forget(name)
        self._leave(self._empty_names())
        names = [name.decode() for name in others[::2]]
        pairs = zip(names, others[1::2], strict=True)
        return not lost, float(server_time), [pair for pair in pairs if pair[0] not in own]

    def _registered_names(self) -> list[str]:
        with self._lock:
            names = [*self._leased]
            if self._registered and self._consumer not in names:
                names.append(self._consumer)
            return names

    def _retire(self, consumer: str) -> None:
        """Use another name for later leases: this one may have messages that are unknown here."""
        with self._lock:
            self._leased.setdefault(consumer, set())
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _forget(self, consumer: str) -> None:
        """Forget a name that was taken over, with the messages leased under it."""
        with self._lock:
            self._leased.pop(consumer, None)
            if self._consumer == consumer:
                self._consumer, self._registered = self._new_name(), False

    def _empty_names(self) -> list[str]:
        """Return the retired names under which nothing known is leased."""
        with self._lock:
            return [
                name
                for name, leased in self._leased.items()
                if not leased and name != self._consumer
            ]

    def _leave(self, names: Sequence[str]) -> None:
        """Unregister names; messages that are still leased under them become ready."""
        if not names:
            return
        keys = [self._consumers_key, self._queues_key]
        self._client.run(script.LEAVE, keys, [self._streams, *names])
        for name in names:
            self._forget(name)

    def tidy(self) -> None:
        """Do nothing, because the server itself frees the space of removed messages."""

    def close(self) -> None:
        """See ``Backend``."""
        try:
            self._leave(self._registered_names())
        finally:
            self._client.close()

    # -- whole queues --------------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """See ``Backend``."""
        state = self._state(queue)
        return int(state[0]) if state else 0

    def purge(self, queue: str) -> int:
        """See ``Backend``. Purges in several steps, up to the newest message at the start."""
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
        """See ``Backend``. The age is that of the oldest id, by the server's clock."""
        state = self._state(queue)
        if not state:
            raise BusError(
                f"there is no queue {queue!r} on the Redis server {self._client.place}",
                hint="declare the store's queues first: start its worker once",
            )
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
        # The name of another program: only its time of expiry tells whether it is dead.
        return ProcessIdentity("", 0, "")
    return ProcessIdentity(parts[0], int(parts[1]), parts[2])


def _decode_headers(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        headers, properties = json.loads(raw)
        return dict(headers), dict(properties)
    except (TypeError, ValueError, RecursionError):
        return {"x-malformed": raw[:1000].decode("utf-8", "replace")}, {}


def _grouped(handles: Iterable[_Handle]) -> dict[str, dict[str, list[_Handle]]]:
    """Return the handles grouped by consumer, then by queue."""
    groups: dict[str, dict[str, list[_Handle]]] = {}
    for handle in handles:
        groups.setdefault(handle.consumer, {}).setdefault(handle.queue, []).append(handle)
    return groups
