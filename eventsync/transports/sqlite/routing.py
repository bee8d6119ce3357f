"""The tables of a broker file, and the part of the backend that keeps the routing in them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

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

APPLICATION_ID = 0x65767371  # "evsq"
SCHEMA_VERSION = 1

_TABLES = (
    # One row: the epoch of the routing, the id of the next message.
    """CREATE TABLE broker (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, next_id INTEGER NOT NULL
    )""",
    # The ids of queues and consumers are never reused, because a process may still know an old one.
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
    # A row for each queue of a message. Owner 0 means ready, else it is the leasing consumer.
    """CREATE TABLE delivery (
        queue INTEGER NOT NULL, id INTEGER NOT NULL, owner INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0, redelivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (queue, id), CHECK (typeof(queue) = 'integer' AND typeof(id) = 'integer')
    ) WITHOUT ROWID""",
    # Only for messages in several queues. The last acknowledgement removes the payload.
    "CREATE TABLE copy (id INTEGER, queue INTEGER, PRIMARY KEY (id, queue)) WITHOUT ROWID",
    # A consumer, when it last refreshed (monotonic clock), and the latest message it leased.
    """CREATE TABLE consumer (
        id INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, pid INTEGER NOT NULL,
        started TEXT NOT NULL, lease REAL NOT NULL, seen REAL NOT NULL, last_id INTEGER NOT NULL
    )""",
)


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables of an empty broker file, within the caller's transaction."""
    for statement in _TABLES:
        db.execute(statement)
    # An epoch that no earlier file at this path had, because a publisher may remember one of those.
    db.execute("INSERT INTO broker VALUES (1, ?, 1)", (time.time_ns() // 1000,))


def decode_text(raw: Any) -> str:
    """Return the value of a text column, which is read as bytes, as text; never raise."""
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return "" if raw is None else str(raw)


class SQLiteRouting(Backend):
    """The part of ``Backend`` for queues, exchanges and bindings, on a broker file."""

    def __init__(self, file: BrokerFile) -> None:
        self._file = file
        # By epoch of the routing: the ids of the queues by name. Valid only for that epoch.
        self._queue_ids: dict[int, dict[str, int]] = {}

    def load_routing(self) -> RoutingTables:
        """See ``Backend``."""
        text = decode_text
        with self._file.snapshot() as db:
            (epoch,) = db.execute("SELECT epoch FROM broker").fetchone()
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
        return RoutingTables(epoch, tuple(queues), exchanges, bindings)

    def declare_queue(self, queue: str) -> None:
        """See ``Backend``."""
        self._change([("INSERT OR IGNORE INTO queue (name) VALUES (?)", (queue,))])

    def delete_queue(self, queue: str) -> None:
        """See ``Backend``."""
        self._change(
            [
                *removal(queue, only_ready=False),
                ("DELETE FROM binding WHERE queue = ?", (queue,)),
                ("DELETE FROM queue WHERE name = ?", (queue,)),
            ]
        )

    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """See ``Backend``."""
        row = (*exchange[:4], encode_object("arguments", exchange.arguments))
        self._change([("INSERT OR IGNORE INTO exchange VALUES (?, ?, ?, ?, ?)", row)])

    def delete_exchange(self, exchange: str) -> None:
        """See ``Backend``."""
        self._change(
            [
                ("DELETE FROM binding WHERE exchange = ?", (exchange,)),
                ("DELETE FROM exchange WHERE name = ?", (exchange,)),
            ]
        )

    def bind(self, binding: Binding) -> None:
        """See ``Backend``."""
        # Select from the tables, so that a queue deleted a moment ago gets no binding.
        sql = """INSERT OR IGNORE INTO binding
            SELECT exchange.name, ?, queue.name, ? FROM exchange, queue
            WHERE exchange.name = ? AND queue.name = ?"""
        arguments = encode_object("arguments", binding.arguments)
        row = (binding.routing_key, arguments, binding.exchange, binding.queue)
        self._change([(sql, row)])

    def unbind(self, binding: Binding) -> None:
        """See ``Backend``."""
        sql = "DELETE FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?"
        self._change([(sql, (binding.exchange, binding.routing_key, binding.queue))])

    def _change(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        with self._file.transaction(durable=True) as db:
            if sum(db.execute(sql, row).rowcount for sql, row in statements):
                db.execute("UPDATE broker SET epoch = epoch + 1")


def removal(queue: str, *, only_ready: bool) -> list[tuple[str, Sequence[Any]]]:
    """Return statements that remove the messages of a queue; the last one's row count is theirs."""
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
