"""Owns leasing on a broker file: storing, leasing, settling, and taking over from the dead.

It must not know kombu, nor what the bytes of a message mean.

Leasing and acknowledging touch the small rows of ``delivery``, never the payload. Publishing is
durable; leases and acknowledgements are not synchronised one by one, since a power failure that
undoes the last of them leads to another delivery and to nothing worse.
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
from eventsync.transports.leased.message import Delivery, Outgoing
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.sqlite.file import BrokerFile
from eventsync.transports.sqlite.routing import (
    SQLiteRouting,
    decode_object,
    decode_text,
    encode_object,
    removal,
)

__all__ = ["SQLiteBackend"]

_READY = """
    SELECT d.id, d.attempts, d.redelivered, m.headers, m.properties, m.body,
        m.content_type, m.content_encoding, m.exchange, m.routing_key
    FROM delivery d LEFT JOIN message m ON m.id = d.id
    WHERE d.queue = ? AND d.owner = 0 ORDER BY d.id LIMIT ?
"""
_QUEUE_ID = "(SELECT id FROM queue WHERE name = ?)"
# Pause between two looks for messages: this part of the time the queue has been idle, so that a
# busy queue answers at once and a quiet one costs next to nothing; in seconds at least.
_PAUSE_SHARE = 0.05
_SHORTEST_PAUSE = 0.001
_REMEMBERED_LABELS = 1024
# How long the last consumer to leave may take to give space back, in seconds.
_LONGEST_CLEANING = 1.0


# What a delivery is settled by: (queue id, owner, message id). Good only while the owner holds it.
_Handle = tuple[int, int, int]


class SQLiteBackend(SQLiteRouting):
    """One consumer and publisher on a broker file; see ``Backend`` for the contract.

    ``polling_interval``: the longest pause, in seconds, between two looks at an idle queue.
    """

    def __init__(
        self, file: BrokerFile, *, settings: LeaseSettings, polling_interval: float
    ) -> None:
        super().__init__(file)
        self._settings = settings
        self._polling_interval = polling_interval
        self._process: ProcessIdentity | None = None
        self._consumer = 0  # 0: not registered yet, which the first lease does
        self._known_labels: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._version = (0, 0)
        self._tidied_version = (0, 0)
        self._last_lease = time.monotonic()

    # -- storing -------------------------------------------------------------------------------

    def store(self, routed: Sequence[tuple[Outgoing, Sequence[str]]], epoch: int) -> bool:
        """See ``Backend``."""
        queue_ids = self._queue_ids.get(epoch)
        if queue_ids is None:
            return False
        now = time.time()  # for people to read, and good across a restart of the host
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
            current, first = db.execute("SELECT epoch, next_id FROM broker").fetchone()
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
    ) -> list[Delivery]:
        """See ``Backend``."""
        if not acknowledged and not self._any_ready(queues):
            return []
        deliveries: list[Delivery] = []
        with self._file.transaction(durable=False) as db:
            _remove(db, acknowledged)
            consumer = self._consumer
            for position, queue in enumerate(queues):
                share = math.ceil((limit - len(deliveries)) / (len(queues) - position))
                (queue_id,) = db.execute(f"SELECT {_QUEUE_ID}", (queue,)).fetchone()
                rows = self._ready(db, queue_id, share)
                if not rows:
                    continue
                first, last = rows[0][0], rows[-1][0]
                consumer = self._seen(db, consumer, last)
                db.execute(
                    "UPDATE delivery SET owner = ?, attempts = attempts + 1, redelivered = 1 "
                    "WHERE queue = ? AND owner = 0 AND id BETWEEN ? AND ?",
                    (consumer, queue_id, first, last),
                )
                deliveries += self._deliveries(queue, queue_id, consumer, rows)
        if deliveries:
            self._consumer = consumer  # only now: a rollback would free the id for another
            self._last_lease = time.monotonic()
        return deliveries

    def _any_ready(self, queues: Iterable[str]) -> bool:
        sql = f"SELECT 1 FROM delivery WHERE queue = {_QUEUE_ID} AND owner = 0 LIMIT 1"
        return any(self._file.read(sql, (queue,)) for queue in queues)

    def _ready(self, db: sqlite3.Connection, queue_id: int, limit: int) -> list[Any]:
        rows = []
        size = 0
        for row in db.execute(_READY, (queue_id, limit)):
            rows.append(row)
            body = row[5]
            size += len(body) if body.__class__ is bytes else 0
            if size >= self._settings.lease_bytes:
                break
        return rows

    def _deliveries(
        self, queue: str, queue_id: int, owner: int, rows: Iterable[Any]
    ) -> Iterator[Delivery]:
        # The hot path of consuming: positional and in one place.
        for row in rows:
            id_, attempts, redelivered, headers, properties, body = row[:6]
            content_type, content_encoding, exchange, routing_key = self._labels(row[6:])
            yield Delivery(
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
            )

    def _labels(self, raw: tuple[Any, ...]) -> tuple[str, ...]:
        """Return text columns as text; the few combinations that occur are decoded once."""
        labels = self._known_labels.get(raw)
        if labels is None:
            if len(self._known_labels) >= _REMEMBERED_LABELS:
                self._known_labels.clear()
            labels = self._known_labels[raw] = tuple(map(decode_text, raw))
        return labels

    def wait(self, timeout: float) -> None:
        """See ``Backend``: looks for commits of others, the more seldom the longer none came."""
        deadline = time.monotonic() + timeout
        while (now := time.monotonic()) < deadline:
            pause = max(_SHORTEST_PAUSE, (now - self._last_lease) * _PAUSE_SHARE)
            # First the pause: on a file that is busy with other queues there is a commit at
            # every look, and each means another look at our own queue.
            time.sleep(min(pause, self._polling_interval, deadline - now))
            version = self._file.version()
            if version != self._version:
                self._version = version
                return

    # -- settling ------------------------------------------------------------------------------

    def acknowledge(self, handles: Sequence[Any]) -> int:
        """See ``Backend``."""
        with self._file.transaction(durable=False) as db:
            return _remove(db, handles)

    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """See ``Backend``."""
        with self._file.transaction(durable=False) as db:
            for (queue, owner), ids in _grouped(handles).items():
                db.execute(
                    "UPDATE delivery SET owner = 0, attempts = max(attempts - ?, 0) "
                    "WHERE queue = ? AND owner = ? AND id IN (SELECT value FROM json_each(?))",
                    (0 if attempted else 1, queue, owner, json.dumps(ids)),
                )

    # -- who is alive --------------------------------------------------------------------------

    def extend(self) -> bool:
        """See ``Backend``: one row, however many messages this consumer holds."""
        if not self._consumer:
            return True
        with self._file.transaction(durable=False) as db:
            return self._refreshed(db, self._consumer, 0)

    def reclaim(self) -> None:
        """See ``Backend``."""
        me = self._me()
        for row in self._file.read("SELECT id, scope, pid, started, lease, seen FROM consumer"):
            consumer, scope, pid, started, lease, seen = row
            if consumer == self._consumer:
                continue
            process = ProcessIdentity(decode_text(scope), pid, decode_text(started))
            # The clock is the host's, the same for all processes, and starts again with it: a
            # time to come is one of before the restart.
            if not 0 <= time.monotonic() - seen < lease or is_dead(process, seen_from=me):
                self._take_over(consumer, seen)

    def _take_over(self, consumer: int, seen: float) -> None:
        with self._file.transaction(durable=False) as db:
            still = db.execute(
                "SELECT last_id FROM consumer WHERE id = ? AND seen = ?", (consumer, seen)
            ).fetchone()
            if still is not None:  # else it has shown itself, or someone else was faster
                db.execute(
                    "UPDATE delivery SET owner = 0 "
                    "WHERE queue IN (SELECT id FROM queue) AND id <= ? AND owner = ?",
                    (still[0], consumer),
                )
                db.execute("DELETE FROM consumer WHERE id = ?", (consumer,))

    def _seen(self, db: sqlite3.Connection, consumer: int, last_id: int) -> int:
        """Note that this consumer lives and what it leases; register it where it is unknown."""
        if consumer and self._refreshed(db, consumer, last_id):
            return consumer
        row = (*self._me(), self._settings.lease, time.monotonic(), last_id)
        cursor = db.execute(
            "INSERT INTO consumer (scope, pid, started, lease, seen, last_id) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        return int(cursor.lastrowid or 0)

    def _refreshed(self, db: sqlite3.Connection, consumer: int, last_id: int) -> bool:
        row = (time.monotonic(), last_id, consumer)
        sql = "UPDATE consumer SET seen = ?, last_id = max(last_id, ?) WHERE id = ?"
        return db.execute(sql, row).rowcount == 1

    def _me(self) -> ProcessIdentity:
        if self._process is None:
            self._process = current_process()
        return self._process

    def forget_consumer(self) -> None:
        """See ``Backend``."""
        self._process = None
        self._consumer = 0

    # -- a queue as a whole --------------------------------------------------------------------

    def size(self, queue: str) -> int:
        """See ``Backend``."""
        sql = f"SELECT count(*) FROM delivery WHERE queue = {_QUEUE_ID} AND owner = 0"
        return int(self._file.read(sql, (queue,))[0][0])

    def purge(self, queue: str) -> int:
        """See ``Backend``."""
        with self._file.transaction(durable=True) as db:
            counts = [db.execute(*s).rowcount for s in removal(queue, only_ready=True)]
        return counts[-1]

    def queue_stats(self, queue: str) -> QueueStats:
        """See ``Backend``."""
        with self._file.snapshot() as db:
            (queue_id,) = db.execute(f"SELECT {_QUEUE_ID}", (queue,)).fetchone()
            if queue_id is None:
                raise BusError(f"there is no queue {queue!r} in {self._file.path}")
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
        """See ``Backend``."""
        version = self._file.version()
        self._file.compact(quiet=version == self._tidied_version)
        self._tidied_version = version

    def close(self) -> None:
        """See ``Backend``."""
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
                deadline = time.monotonic() + _LONGEST_CLEANING
                while self._file.compact(quiet=True) and time.monotonic() < deadline:
                    pass
        finally:
            self._file.close()


def _grouped(handles: Iterable[_Handle]) -> dict[tuple[int, int], list[int]]:
    """Return the ids by queue and owner, which are few, each in growing order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for queue, owner, id_ in handles:
        groups.setdefault((queue, owner), []).append(id_)
    for ids in groups.values():
        ids.sort()
    return groups


def _matching(ids: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
    """Return a condition on an id and its parameters; ids in a row, the usual case, cost least."""
    if ids[-1] - ids[0] == len(ids) - 1:
        return "BETWEEN ? AND ?", (ids[0], ids[-1])
    return "IN (SELECT value FROM json_each(?))", (json.dumps(ids),)


def _remove(db: sqlite3.Connection, handles: Iterable[_Handle]) -> int:
    """Remove the messages that are still held by the owner in their handle; return how many."""
    total = 0
    for (queue, owner), ids in _grouped(handles).items():
        matching, values = _matching(ids)
        removed = db.execute(
            f"DELETE FROM delivery WHERE queue = ? AND owner = ? AND id {matching}",
            (queue, owner, *values),
        ).rowcount
        total += removed
        if removed < len(ids):  # some are no longer ours: whoever has them needs the payload
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
