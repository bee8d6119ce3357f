"""The backend of the embedded broker: messages and leases in an SQLite file.

Leasing and acknowledging write only the small rows of the table ``delivery``, not the payload. A
published message is on disk when the call returns. Leases and acknowledgements are not written to
the disk at once: a power failure may undo the latest of these, and the messages are then delivered
again.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from eventsync.errors import BusError
from eventsync.transports.leased.backend import LeaseSettings, QueueStats
from eventsync.transports.leased.json_object import decode_object, encode_object
from eventsync.transports.leased.message import (
    KEPT_BYTES,
    MAX_HEADERS,
    LeasedMessage,
    OutboundMessage,
)
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.sqlite.file import BrokerFile
from eventsync.transports.sqlite.routing import SQLiteRouting, decode_text, removal

__all__ = ["SQLiteBackend"]

# The column ``excess`` is 0, or the size of a message that is too large. SQLite finds the length of
# a value without reading the value.
_READY = """
    SELECT id, attempts, redelivered, iif(excess, NULL, headers), iif(excess, NULL, properties),
        iif(excess, substr(body, 1, ?), body), excess,
        substr(content_type, 1, 255), substr(content_encoding, 1, 255), substr(exchange, 1, 255),
        substr(routing_key, 1, 255)
    FROM (
        SELECT d.*, m.*, iif(
            coalesce(length(m.headers), 0) + coalesce(length(m.properties), 0) > ?
                OR length(m.body) > ?,
            coalesce(length(m.headers), 0) + coalesce(length(m.properties), 0)
                + coalesce(length(m.body), 0),
            0) AS excess
        FROM delivery d LEFT JOIN message m ON m.id = d.id
        WHERE d.queue = ? AND d.owner = 0 ORDER BY d.id LIMIT ?
    )
"""
_QUEUE_ID = "(SELECT id FROM queue WHERE name = ?)"
# The pause between two checks for messages is this share of the time since the last message, but at
# least ``_SHORTEST_PAUSE`` seconds. A busy queue answers at once, and an idle queue costs little.
_PAUSE_SHARE = 0.05
_SHORTEST_PAUSE = 0.001
_MAX_CACHED_LABELS = 1024
_MOVED = 2
# The longest time, in seconds, that `close` spends on compacting the file.
_LONGEST_COMPACTION = 1.0


# (queue id, consumer id, message id). Valid only while this consumer holds the message.
_Handle = tuple[int, int, int]


class SQLiteBackend(SQLiteRouting):
    """The ``Backend`` that stores messages in a broker file.

    ``polling_interval``: the longest pause between two checks of an idle queue, in seconds.
    """

    def __init__(
        self, file: BrokerFile, *, settings: LeaseSettings, polling_interval: float
    ) -> None:
        super().__init__(file)
        self._settings = settings
        self._polling_interval = polling_interval
        self._process: ProcessIdentity | None = None
        self._consumer = 0  # 0 until the first lease registers this consumer
        self._known_labels: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._version = (0, 0)
        self._tidied_version = (0, 0)
        self._last_lease = time.monotonic()

    # -- storing -------------------------------------------------------------------------------

    def store(self, routed: Sequence[tuple[OutboundMessage, Sequence[str]]], epoch: int) -> bool:
        """Store messages durably, all or none, and return True.

        ``routed``: each message with the queues that receive it. If the routing has changed since
        ``epoch``, stores nothing and returns False.
        """
        queue_ids = self._queue_ids.get(epoch)
        if queue_ids is None:
            return False
        now = (
            time.time()
        )  # not the monotonic clock, because the time must stay valid after a reboot
        rows = [
            (
                now,
                message.exchange,
                message.routing_key,
                message.content_type,
                message.content_encoding,
                encode_object("headers", message.headers) if message.headers else None,
                encode_object("properties", message.properties) if message.properties else None,
                message.body,
            )
            for message, queues in routed
            if queues
        ]
        routes = [[queue_ids[queue] for queue in queues] for _, queues in routed if queues]
        with self._file.transaction(durable=True) as db:
            current, first = self._numbers(db)
            if current != epoch:
                return False
            if rows:
                numbered = list(enumerate(routes, first))
                several = [(id_, queues) for id_, queues in numbered if len(queues) > 1]
                db.executemany(
                    "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(id_, *row) for id_, row in enumerate(rows, first)],
                )
                for table, routes_of in (("delivery", numbered), ("copy", several)):
                    db.executemany(
                        f"INSERT INTO {table} (queue, id) VALUES (?, ?)",
                        [(queue, id_) for id_, queues in routes_of for queue in queues],
                    )
                db.execute("UPDATE broker SET next_id = ?", (first + len(rows),))
        return True

    # -- leasing -------------------------------------------------------------------------------

    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[LeasedMessage]:
        """Lease up to ``limit`` ready messages; first acknowledge those of ``acknowledged``."""
        if not acknowledged and not self._any_ready(queues):
            return []
        leased: list[LeasedMessage] = []
        with self._file.transaction(durable=False) as db:
            _remove(db, acknowledged)
            consumer = self._consumer
            for position, queue in enumerate(queues):
                share = math.ceil((limit - len(leased)) / (len(queues) - position))
                (queue_id,) = db.execute(f"SELECT {_QUEUE_ID}", (queue,)).fetchone()
                rows = self._ready(db, queue_id, share)
                if not rows:
                    continue
                first, last = rows[0][0], rows[-1][0]
                consumer = self._register(db, consumer, last)
                db.execute(
                    "UPDATE delivery SET owner = ?, attempts = attempts + 1, "
                    "redelivered = max(redelivered, 1) "
                    "WHERE queue = ? AND owner = 0 AND id BETWEEN ? AND ?",
                    (consumer, queue_id, first, last),
                )
                leased += self._messages(queue, queue_id, consumer, rows)
        if leased:
            # Assigned only after the commit: after a rollback another consumer could get this id.
            self._consumer = consumer
            self._last_lease = time.monotonic()
        return leased

    def _any_ready(self, queues: Iterable[str]) -> bool:
        sql = f"SELECT 1 FROM delivery WHERE queue = {_QUEUE_ID} AND owner = 0 LIMIT 1"
        return any(self._file.read(sql, (queue,)) for queue in queues)

    def _ready(self, db: sqlite3.Connection, queue_id: int, limit: int) -> list[Any]:
        rows = []
        size = 0
        limits = (KEPT_BYTES, MAX_HEADERS, self._settings.max_message, queue_id, limit)
        for row in db.execute(_READY, limits):
            rows.append(row)
            body = row[5]
            size += row[6] or (len(body) if body.__class__ is bytes else 0)
            if size >= self._settings.lease_bytes:
                break
        return rows

    def _messages(
        self, queue: str, queue_id: int, owner: int, rows: Iterable[Any]
    ) -> Iterator[LeasedMessage]:
        # This code runs for every message: helpers are inlined, and arguments are positional.
        for row in rows:
            id_, attempts, redelivered, headers, properties, body, excess = row[:7]
            content_type, content_encoding, exchange, routing_key = self._labels(row[7:])
            yield LeasedMessage(
                queue,
                (queue_id, owner, id_),
                body if body.__class__ is bytes else decode_text(body).encode(),
                decode_object(headers) if headers is not None else {},
                decode_object(properties) if properties is not None else {},
                content_type,
                content_encoding,
                exchange,
                routing_key,
                attempts if attempts.__class__ is int else 0,
                bool(redelivered),
                excess,
                redelivered == _MOVED,
            )

    def _labels(self, raw: tuple[Any, ...]) -> tuple[str, ...]:
        """Decode the text columns of a row. Results are cached, because few combinations occur."""
        labels = self._known_labels.get(raw)
        if labels is None:
            if len(self._known_labels) >= _MAX_CACHED_LABELS:
                self._known_labels.clear()
            labels = self._known_labels[raw] = tuple(map(decode_text, raw))
        return labels

    def wait(self, timeout: float) -> None:
        """Block until any process commits to the file, for at most ``timeout`` seconds.

        The checks for commits become rarer the longer the last lease is ago.
        """
        deadline = time.monotonic() + timeout
        while (now := time.monotonic()) < deadline:
            pause = max(_SHORTEST_PAUSE, (now - self._last_lease) * _PAUSE_SHARE)
            # Pause before the check. While other queues are busy, every check finds a commit, and
            # after each commit the caller queries its own queue.
            time.sleep(min(pause, self._polling_interval, deadline - now))
            version = self._file.version()
            if version != self._version:
                self._version = version
                return

    # -- settling ------------------------------------------------------------------------------

    def acknowledge(self, handles: Sequence[Any]) -> int:
        """Remove the messages of ``handles`` and return how many were removed.

        Messages that this consumer no longer holds are not removed. Idempotent.
        """
        with self._file.transaction(durable=False) as db:
            return _remove(db, handles)

    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """Make the messages of ``handles`` ready again, at their old place in the queue.

        ``attempted``: whether the lease counts as a delivery. Idempotent.
        """
        with self._file.transaction(durable=False) as db:
            for (queue, owner), ids in _grouped(handles).items():
                db.execute(
                    "UPDATE delivery SET owner = 0, attempts = max(attempts - ?, 0) "
                    "WHERE queue = ? AND owner = ? AND id IN (SELECT value FROM json_each(?))",
                    (0 if attempted else 1, queue, owner, json.dumps(ids)),
                )

    def move(self, handles: Sequence[Any], queue: str) -> None:
        """Move the messages of ``handles`` to another queue, in one atomic step.

        Idempotent.
        """
        with self._file.transaction(durable=True) as db:
            (target,) = db.execute(f"SELECT {_QUEUE_ID}", (queue,)).fetchone()
            if target is None:
                raise self._no_queue(queue)
            for (source, owner), ids in _grouped(handles).items():
                for id_ in ids:
                    moved = db.execute(
                        "UPDATE delivery SET queue = ?, owner = 0, attempts = 0, redelivered = 2 "
                        "WHERE queue = ? AND owner = ? AND id = ?",
                        (target, source, owner, id_),
                    )
                    if moved.rowcount:
                        db.execute(
                            "UPDATE copy SET queue = ? WHERE queue = ? AND id = ?",
                            (target, source, id_),
                        )

    def _no_queue(self, queue: str) -> BusError:
        return BusError(
            f"there is no queue {queue!r} in the broker file {self._file.path}",
            hint="declare the store's queues first: start its worker once",
        )

    # -- consumers -----------------------------------------------------------------------------

    def extend(self) -> bool:
        """Restart the lease time of all messages of this consumer, by writing one row.

        Returns False if another consumer has taken the messages over, else True.
        """
        if not self._consumer:
            return True
        with self._file.transaction(durable=False) as db:
            return self._refresh(db, self._consumer, 0)

    def reclaim(self) -> None:
        """Make the messages of dead consumers ready again. Idempotent."""
        me = self._me()
        for row in self._file.read("SELECT id, scope, pid, started, lease, seen FROM consumer"):
            consumer, scope, pid, started, lease, seen = row
            if consumer == self._consumer:
                continue
            if type(pid) is not int or type(lease) is not float or type(seen) is not float:
                self._take_over(consumer, None)  # another program wrote the row
                continue
            process = ProcessIdentity(decode_text(scope), pid, decode_text(started))
            # All processes of a host have the same monotonic clock, which starts again at a reboot.
            # A time in the future was therefore written before the last reboot.
            if not 0 <= time.monotonic() - seen < lease or is_dead(process, seen_from=me):
                self._take_over(consumer, seen)

    def _take_over(self, consumer: int, seen: float | None) -> None:
        """Make the messages of a consumer ready again, and unregister it.

        ``seen``: when it last renewed its lease; do nothing if it has done so since. ``None``: in
        any case.
        """
        with self._file.transaction(durable=False) as db:
            still = db.execute(
                "SELECT last_id FROM consumer WHERE id = ? AND seen = coalesce(?, seen)",
                (consumer, seen),
            ).fetchone()
            if still is not None:  # else it has renewed its lease, or another process took over
                db.execute(
                    "UPDATE delivery SET owner = 0 "
                    "WHERE queue IN (SELECT id FROM queue) AND id <= ? AND owner = ?",
                    (still[0], consumer),
                )
                db.execute("DELETE FROM consumer WHERE id = ?", (consumer,))

    def _register(self, db: sqlite3.Connection, consumer: int, last_id: int) -> int:
        """Renew the lease of ``consumer``, or insert a new consumer; return the consumer's id.

        ``consumer``: 0 if this consumer has no id yet. ``last_id``: the id of the newest message
        that the consumer leases now.
        """
        if consumer and self._refresh(db, consumer, last_id):
            return consumer
        row = (*self._me(), self._settings.lease, time.monotonic(), last_id)
        cursor = db.execute(
            "INSERT INTO consumer (scope, pid, started, lease, seen, last_id) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        return int(cursor.lastrowid or 0)

    def _refresh(self, db: sqlite3.Connection, consumer: int, last_id: int) -> bool:
        row = (time.monotonic(), last_id, consumer)
        sql = "UPDATE consumer SET seen = ?, last_id = max(last_id, ?) WHERE id = ?"
        return db.execute(sql, row).rowcount == 1

    def _me(self) -> ProcessIdentity:
        if self._process is None:
            self._process = current_process()
        return self._process

    def forget_consumer(self) -> None:
        """Become a new consumer without messages, after a fork. Does not block."""
        self._process = None
        self._consumer = 0

    # -- whole queues --------------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """Return the number of ready messages in a queue; 0 if the queue does not exist."""
        sql = f"SELECT count(*) FROM delivery WHERE queue = {_QUEUE_ID} AND owner = 0"
        return int(self._file.read(sql, (queue,))[0][0])

    def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue and return their number. Idempotent."""
        with self._file.transaction(durable=True) as db:
            counts = [db.execute(*s).rowcount for s in removal(queue, only_ready=True)]
        return counts[-1]

    def queue_stats(self, queue: str) -> QueueStats:
        """Return the numbers of messages in a queue. Raises ``BusError`` if it does not exist."""
        with self._file.snapshot() as db:
            (queue_id,) = db.execute(f"SELECT {_QUEUE_ID}", (queue,)).fetchone()
            if queue_id is None:
                raise self._no_queue(queue)
            ready, total = db.execute(
                "SELECT count(*) FILTER (WHERE owner = 0), count(*) FROM delivery WHERE queue = ?",
                (queue_id,),
            ).fetchone()
            oldest = db.execute(
                "SELECT published FROM delivery JOIN message USING (id) WHERE queue = ? "
                "ORDER BY delivery.id LIMIT 1",
                (queue_id,),
            ).fetchone()
        published = oldest[0] if oldest else None
        age = max(0.0, time.time() - published) if isinstance(published, float) else None
        return QueueStats(ready, total - ready, age)

    def tidy(self) -> None:
        """Free a bounded amount of unused space in the file. Idempotent."""
        version = self._file.version()
        self._file.compact(quiet=version == self._tidied_version)
        self._tidied_version = version

    def close(self) -> None:
        """Release all messages of this consumer, unregister it, compact and close the file."""
        consumer, self._consumer = self._consumer, 0
        try:
            if consumer:
                with self._file.transaction(durable=False) as db:
                    db.execute(
                        "UPDATE delivery SET owner = 0, attempts = max(attempts - 1, 0) "
                        "WHERE queue IN (SELECT id FROM queue) AND owner = ?",
                        (consumer,),
                    )
                    db.execute("DELETE FROM consumer WHERE id = ?", (consumer,))
                deadline = time.monotonic() + _LONGEST_COMPACTION
                while self._file.compact(quiet=True) and time.monotonic() < deadline:
                    pass
        finally:
            self._file.close()


def _grouped(handles: Iterable[_Handle]) -> dict[tuple[int, int], list[int]]:
    """Return the message ids by (queue id, consumer id), each list in ascending order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for queue, owner, id_ in handles:
        groups.setdefault((queue, owner), []).append(id_)
    for ids in groups.values():
        ids.sort()
    return groups


def _matching(ids: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
    """Return an SQL condition that selects ``ids``, and the parameters of the condition.

    Consecutive ids, the usual case, become a range, which is the fastest condition.
    """
    if ids[-1] - ids[0] == len(ids) - 1:
        return "BETWEEN ? AND ?", (ids[0], ids[-1])
    return "IN (SELECT value FROM json_each(?))", (json.dumps(ids),)


def _remove(db: sqlite3.Connection, handles: Iterable[_Handle]) -> int:
    """Remove the messages of ``handles`` and return how many were removed.

    A message that its consumer no longer holds is not removed.
    """
    total = 0
    for (queue, owner), ids in _grouped(handles).items():
        matching, values = _matching(ids)
        removed = db.execute(
            f"DELETE FROM delivery WHERE queue = ? AND owner = ? AND id {matching}",
            (queue, owner, *values),
        ).rowcount
        total += removed
        if removed < len(ids):  # some were taken over; the new holder needs their payload
            rows = db.execute(
                f"SELECT id FROM delivery WHERE queue = ? AND id {matching}", (queue, *values)
            )
            lost = {id_ for (id_,) in rows}
            ids = [id_ for id_ in ids if id_ not in lost]
            if not ids:
                continue
            matching, values = _matching(ids)
        db.execute(f"DELETE FROM copy WHERE id {matching} AND queue = ?", (*values, queue))
        db.execute(
            f"DELETE FROM message WHERE id {matching} "
            "AND NOT EXISTS (SELECT 1 FROM copy WHERE copy.id = message.id)",
            values,
        )
    return total
