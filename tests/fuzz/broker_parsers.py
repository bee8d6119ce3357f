"""The parsers of what a broker holds: labels, headers, control tables, frames, URLs."""

from __future__ import annotations

import json
import sqlite3
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from amqp import basic_message, spec
from fuzz.parser import Parser

from eventsync.errors import EventSyncError
from eventsync.transports.amqp.frames import TolerantChannel, frame_handler
from eventsync.transports.amqp.url import Endpoint
from eventsync.transports.leased.backend import RoutingTables
from eventsync.transports.leased.json_object import decode_object
from eventsync.transports.leased.message import ChannelMessage, OutboundMessage
from eventsync.transports.leased.publishing_channel import PublishingChannel
from eventsync.transports.leased.routing import Routing
from eventsync.transports.link import delivery_of
from eventsync.transports.redis.backend import RedisBackend
from eventsync.transports.redis.url import RedisSettings
from eventsync.transports.schemes import masked
from eventsync.transports.sqlite.transport import SQLiteSettings, SQLiteTransport  # noqa: F401

_TYPES = {name: kind(None) for name, kind in PublishingChannel.exchange_types.items()}


class _Server:
    """A Redis server whose control keys and queue hold what an input says."""

    place = "fuzz"
    failed_at = float("-inf")

    def __init__(self) -> None:
        self.answer: Any = None

    def run(self, *_: Any) -> Any:
        return self.answer

    command = run

    def close(self) -> None:
        pass


_SERVER = _Server()


def _redis() -> RedisBackend:
    settings = RedisSettings.from_url("redis://h/0")
    backend = RedisBackend.__new__(RedisBackend)
    RedisBackend.__init__(backend, _SERVER, settings=settings)  # type: ignore[arg-type]
    return backend


def _parts(raw: bytes) -> list[bytes]:
    return raw.split(b"\n")


def use(tables: RoutingTables) -> None:
    """Route a message, as a publisher does."""
    Routing(tables, _TYPES).match("eventsync", "Thing.put")


def _redis_control(raw: bytes) -> None:
    epoch, *parts = _parts(raw) + [b""] * 8
    _SERVER.answer = [epoch or b"1", parts[:2], parts[2:4], parts[4:6]]
    use(_REDIS_BACKEND.load_routing())


def _redis_message(raw: bytes) -> None:
    labels, headers, *body = [*_parts(raw), b""]
    entry = [b"1-0", [labels, b"\n".join(body), b"h", headers]]
    _SERVER.answer = [b"ok", [b"1-0"], [[[1], [entry]]]]
    for leased in _REDIS_BACKEND.lease(["q"], 10, []):
        message = ChannelMessage(leased, channel=None, delivery_tag=1)  # type: ignore[arg-type]
        delivery_of(message, "q")


_REDIS_BACKEND = _redis()

_FOLDER = tempfile.TemporaryDirectory()
_COUNT = iter(range(10**12))


def sqlite_backend(path: Path) -> Any:
    from eventsync.transports.sqlite.backend import SQLiteBackend
    from eventsync.transports.sqlite.file import BrokerFile
    from eventsync.transports.sqlite.routing import APPLICATION_ID, SCHEMA_VERSION, create_tables

    file = BrokerFile(
        str(path), application_id=APPLICATION_ID, schema_version=SCHEMA_VERSION,
        create_tables=create_tables, synchronous="normal", busy_timeout=1.0,
    )  # fmt: skip
    settings = SQLiteSettings.from_url(f"sqlite:///{path}")
    return SQLiteBackend(file, settings=settings, polling_interval=0.01)


def _template() -> bytes:
    path = Path(_FOLDER.name) / "template"
    backend = sqlite_backend(path)
    backend.declare_queue("q")
    epoch = backend.load_routing().epoch
    message = OutboundMessage(b"body", "q", headers={"a": 1})
    backend.store([(message, ["q"])], epoch)
    backend.close()
    return path.read_bytes()


_TEMPLATE = _template()
_TABLES = {"broker": 3, "queue": 2, "exchange": 5, "binding": 4, "consumer": 7, "message": 9,
           "delivery": 5, "copy": 2}  # fmt: skip


def _sqlite(raw: bytes) -> None:
    """Insert rows, as another program may do, and use every read of the broker file."""
    try:
        rows = json.loads(raw)
    except (ValueError, RecursionError):
        return
    path = Path(_FOLDER.name) / f"b{next(_COUNT) % 8}"
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    path.write_bytes(_TEMPLATE)
    path.chmod(0o600)
    database = sqlite3.connect(path)
    database.execute("PRAGMA ignore_check_constraints=ON")
    for row in rows if isinstance(rows, list) else ():
        try:
            table, *values = row
            signs = ", ".join("?" * _TABLES[table])
            if values == ["clear"]:
                database.execute(f"DELETE FROM {table}")
            else:
                database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({signs})", values)
        except (sqlite3.Error, TypeError, ValueError, KeyError, OverflowError):
            continue
    database.commit()
    database.close()
    backend = sqlite_backend(path)
    try:
        for call in (
            lambda: use(backend.load_routing()),
            backend.reclaim,
            lambda: backend.lease(["q"], 10, []),
            lambda: backend.queue_stats("q"),
            lambda: backend.size("q"),
            lambda: backend.declare_queue("other"),
            backend.extend,
        ):
            try:
                call()
            except EventSyncError:
                continue
    finally:
        backend.close()


def _amqp(raw: bytes) -> None:
    """Receive a message whose properties and labels are the input."""
    size, _, rest = raw.partition(b"\n")
    received: list[Any] = []
    connection = SimpleNamespace(bytes_recv=0)
    on_frame = frame_handler(1000)(connection, lambda *given: received.append(given))
    deliver = struct.pack(">HH", 60, 60) + rest[:600]
    body = rest[600:]
    head = struct.pack(">HHQ", 60, 0, len(body)) + size
    on_frame((1, 1, deliver))
    on_frame((2, 1, head))
    if body:
        on_frame((3, 1, body))
    for _, method, payload, content in received:
        channel = TolerantChannel.__new__(TolerantChannel)
        channel.is_closing = False
        channel._on_basic_deliver = lambda *_: None
        message = content
        message.headers  # noqa: B018
        message.content_type  # noqa: B018
        assert method == spec.Basic.Deliver
        assert isinstance(message, basic_message.Message)
        assert payload


def _headers(raw: bytes) -> None:
    decode_object(raw)
    decode_object(raw.decode("utf-8", "replace"))


def _url(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    masked(text)
    for read in (RedisSettings.from_url, Endpoint.parse, SQLiteSettings.from_url):
        try:
            read(text)
        except EventSyncError as error:
            str(error)


def _control_rows() -> list[bytes]:
    rows = [
        [["broker", 1, 5, 9], ["queue", 2, "p"]],
        [["exchange", "e", "topic", 1, 0, "{}"], ["binding", "e", "#", "q", "{}"]],
        [["consumer", 5, "host", 1, "1", 30.0, 5.0, 1], ["delivery", 1, 1, 5, 1, 1]],
        [["message", 1, 1.0, "e", "k", "t", "u", "{}", "{}", "body"], ["copy", 1, 1]],
        [["broker", "clear"], ["queue", "clear"], ["message", "clear"]],
    ]
    return [json.dumps(row).encode() for row in rows]


_LABELS = b'["application/x-eventsync","binary","eventsync","Thing.put"]'
_PROPERTIES = basic_message.Message(
    "b", application_headers={"a": 1, "t": [1, {"b": "c"}]}, content_type="text/plain"
)._serialize_properties()

PARSERS = [
    Parser(
        name="redis-control",
        parse=_redis_control,
        samples=[
            b'7\nq\nr\neventsync\n{"type":"topic","durable":true,"auto_delete":false,"arguments":{}}'
            b'\n["q","eventsync","Thing.*"]\n{}'
        ],
    ),
    Parser(
        name="redis-message",
        parse=_redis_message,
        samples=[_LABELS + b'\n[{"a":1},{"priority":0}]\nbody'],
    ),
    Parser(
        name="broker-headers",
        parse=_headers,
        samples=[b'{"a":1,"b":[1,2,{"c":null}],"x-delivery-count":3}'],
        form="json",
    ),
    Parser(name="sqlite-broker", parse=_sqlite, samples=_control_rows(), form="json", weight=0.01),
    Parser(
        name="amqp-frame",
        parse=_amqp,
        samples=[_PROPERTIES + b"\n" + b"\1t" + bytes(9) + b"\1e\1k" + b"x" * 700],
    ),
    Parser(
        name="broker-url",
        parse=_url,
        samples=[
            b"redis://user:pw@host:6379/0?prefix=a&lease=5",
            b"redis+socket://u:p@/tmp/s?db=0",
            b"sentinel://a:26379,b:26379/main/0",
            b"redis+cluster://u:p@a:1,b:2",
            b"amqps://u:p@host:5671/v%2Fh?ca=/f&heartbeat=5",
            b"sqlite:////tmp/a%20b.db?synchronous=normal&busy_timeout=1.5",
        ],
        weight=0.5,
    ),
]
