"""The tables of a broker file, and the part of the backend that stores the routing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from eventsync.errors import BusError
from eventsync.transports.leased.backend import Backend, Binding, ExchangeDeclaration, RoutingTables
from eventsync.transports.leased.json_object import decode_object, encode_object
from eventsync.transports.sqlite.file import BrokerFile

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "SQLiteRouting",
    "create_tables",
    "decode_text",
]

# SQLite's integers end at 2^63.
_LARGEST_ID = 1 << 62
APPLICATION_ID = 0x65767371  # "evsq"
SCHEMA_VERSION = 1

_TABLES = (
    # One row: the epoch of the routing, and the id of the next message.
    """CREATE TABLE broker (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, next_id INTEGER NOT NULL
    )""",
    # Ids of queues and consumers are never reused, because a process may still use a deleted id.
    "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE exchange (
        name TEXT PRIMARY KEY, type TEXT NOT NULL, durable INTEGER NOT NULL,
        auto_delete INTEGER NOT NULL, arguments TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE binding (
        exchange TEXT NOT NULL, routing_key TEXT NOT NULL, queue TEXT NOT NULL,
        arguments TEXT NOT NULL, PRIMARY KEY (exchange, routing_key, queue)
    ) WITHOUT ROWID""",
    # The payload, stored once for all queues and never updated.
    """CREATE TABLE message (
        id INTEGER PRIMARY KEY, published REAL, exchange TEXT, routing_key TEXT,
        content_type TEXT, content_encoding TEXT, headers TEXT, properties TEXT, body BLOB
    )""",
    # One row for each queue of a message. ``owner``: the consumer that leases it; 0 if it is ready.
    # ``redelivered``: 0, 1, or 2 if the message was moved here from another queue.
    """CREATE TABLE delivery (
        queue INTEGER NOT NULL, id INTEGER NOT NULL, owner INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0, redelivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (queue, id), CHECK (typeof(queue) = 'integer' AND typeof(id) = 'integer')
    ) WITHOUT ROWID""",
    # The queues of each message that is in several queues. Removing the last removes the payload.
    "CREATE TABLE copy (id INTEGER, queue INTEGER, PRIMARY KEY (id, queue)) WITHOUT ROWID",
    # ``seen``: when the consumer last renewed its lease, on the monotonic clock. ``last_id``: the
    # newest message that it has leased.
    """CREATE TABLE consumer (
        id INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, pid INTEGER NOT NULL,
        started TEXT NOT NULL, lease REAL NOT NULL, seen REAL NOT NULL, last_id INTEGER NOT NULL
    )""",
)


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables of an empty broker file, within the caller's transaction."""
    for statement in _TABLES:
        db.execute(statement)
    # A publisher may remember the epoch of an earlier file at this path. The time differs from it.
    db.execute("INSERT INTO broker VALUES (1, ?, 1)", (time.time_ns() // 1000,))


def decode_text(raw: Any) -> str:
    """Return the value of a text column, read as bytes, as ``str``; never raise.

    Bytes that are not UTF-8 are replaced; ``None`` becomes an empty text.
    """
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return "" if raw is None else str(raw)


class SQLiteRouting(Backend):
    """The part of ``Backend`` that stores queues, exchanges and bindings in a broker file."""

    def __init__(self, file: BrokerFile) -> None:
        self._file = file
        # The ids of the queues by name, for the epoch of the routing that was read last.
        self._queue_ids: dict[int, dict[str, int]] = {}

    def load_routing(self) -> RoutingTables:
        """Read all queues, exchanges and bindings in one consistent step and return them."""
        text = decode_text
        with self._file.snapshot() as db:
            epoch, _ = self._numbers(db)
            queues = {text(name): id_ for name, id_ in db.execute("SELECT name, id FROM queue")}
            exchanges = [
                ExchangeDeclaration(
                    text(name), text(kind), bool(durable), bool(auto_delete), decode_object(rest)
                )
                for name, kind, durable, auto_delete, rest in db.execute(
                    "SELECT name, type, durable, auto_delete, arguments FROM exchange"
                )
            ]
            bindings = [
                Binding(text(queue), text(exchange), text(key), decode_object(arguments))
                for queue, exchange, key, arguments in db.execute(
                    "SELECT queue, exchange, routing_key, arguments FROM binding"
                )
            ]
        self._queue_ids = {epoch: queues}
        place = f"the broker file {self._file.path}"
        return RoutingTables(epoch, tuple(queues), exchanges, bindings, place)

    def _numbers(self, db: sqlite3.Connection) -> tuple[int, int]:
        """Return the epoch of the routing and the id of the next message."""
        row = db.execute("SELECT epoch, next_id FROM broker").fetchone()
        if row is None or not all(type(n) is int and 0 <= n < _LARGEST_ID for n in row):
            raise self._strange_row("broker", "has not one row with an epoch and a next id")
        return row[0], row[1]

    def _strange_row(self, table: str, what: str) -> BusError:
        return BusError(
            f"the table {table!r} of the broker file {self._file.path} {what}",
            hint="another program wrote into the file; stop everything, save a copy, and correct "
            "or remove the row with sqlite3",
        )

    def declare_queue(self, queue: str) -> None:
        """Create a durable queue. Idempotent."""
        self._change([("INSERT OR IGNORE INTO queue (name) VALUES (?)", (queue,))])

    def delete_queue(self, queue: str) -> None:
        """Remove a queue, its bindings and its messages. Idempotent."""
        self._change(
            [
                *removal(queue, only_ready=False),
                ("DELETE FROM binding WHERE queue = ?", (queue,)),
                ("DELETE FROM queue WHERE name = ?", (queue,)),
            ]
        )

    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """Create a durable exchange, unless an exchange of that name exists. Idempotent."""
        row = (*exchange[:4], encode_object("arguments", exchange.arguments))
        self._change([("INSERT OR IGNORE INTO exchange VALUES (?, ?, ?, ?, ?)", row)])

    def delete_exchange(self, exchange: str) -> None:
        """Remove an exchange and its bindings. Idempotent."""
        self._change(
            [
                ("DELETE FROM binding WHERE exchange = ?", (exchange,)),
                ("DELETE FROM exchange WHERE name = ?", (exchange,)),
            ]
        )

    def bind(self, binding: Binding) -> None:
        """Create a durable binding. Does nothing if queue or exchange do not exist."""
        # Selects from the tables, so that a queue or exchange deleted meanwhile gets no binding.
        sql = """INSERT OR IGNORE INTO binding
            SELECT exchange.name, ?, queue.name, ? FROM exchange, queue
            WHERE exchange.name = ? AND queue.name = ?"""
        arguments = encode_object("arguments", binding.arguments)
        row = (binding.routing_key, arguments, binding.exchange, binding.queue)
        self._change([(sql, row)])

    def unbind(self, binding: Binding) -> None:
        """Remove a binding. Idempotent."""
        sql = "DELETE FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?"
        self._change([(sql, (binding.exchange, binding.routing_key, binding.queue))])

    def _change(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        with self._file.transaction(durable=True) as db:
            if sum(db.execute(sql, row).rowcount for sql, row in statements):
                db.execute("UPDATE broker SET epoch = epoch + 1")


def removal(queue: str, *, only_ready: bool) -> list[tuple[str, Sequence[Any]]]:
    """Return SQL statements, with parameters, that remove the messages of a queue.

    The row count of the last statement is the number of removed messages. ``only_ready``: keep
    leased messages.
    """
    number = "(SELECT id FROM queue WHERE name = ?)"
    rows = f"FROM delivery WHERE queue = {number}" + (" AND owner = 0" if only_ready else "")
    return [
        (f"DELETE FROM copy WHERE queue = {number} AND id IN (SELECT id {rows})", (queue, queue)),
        (
            f"DELETE FROM message WHERE id IN (SELECT id {rows}) "
            "AND NOT EXISTS (SELECT 1 FROM copy WHERE copy.id = message.id)",
            (queue,),
        ),
        (f"DELETE {rows}", (queue,)),
    ]
