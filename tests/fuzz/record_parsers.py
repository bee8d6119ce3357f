"""The parsers of changes on the wire, keys, filters and key files."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from fuzz.parser import Parser

from eventsync import Field, Record
from eventsync.changes.change import Change
from eventsync.changes.clock import version_at
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.envelope import codec
from eventsync.envelope.cloudevents import (
    from_cloudevent,
    from_cloudevents,
    from_headers,
    to_cloudevent,
    to_headers,
)
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.envelope.debezium import from_debezium
from eventsync.envelope.key_file import KeyFile
from eventsync.envelope.signing import Keyring
from eventsync.errors import EnvelopeError, EventSyncError, FilterError
from eventsync.records.query import Filter


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Thing(Record):
    """A record with a field of each kind."""

    id: int = Field(key=True)
    name: str = ""
    number: int | None = None
    price: Decimal | None = None
    size: float | None = None
    made: dt.date | None = None
    seen: dt.datetime | None = None
    at: dt.time | None = None
    flag: bool | None = None
    data: bytes | None = None
    token: UUID | None = None
    colour: Colour | None = None
    tags: list[str] | None = None
    prices: list[Decimal] | None = None
    extra: dict[str, Any] | None = None
    any: Any = None


class Visit(Record):
    """A record with a key of several fields."""

    day: dt.date = Field(key=True)
    place: str = Field(key=True)
    number: Decimal = Field(key=True)
    moment: dt.datetime = Field(key=True)
    token: UUID = Field(key=True)
    octets: bytes = Field(key=True)


VALUES: dict[str, Any] = {
    "id": 7,
    "name": "Ann Ä",
    "number": 2**63,
    "price": Decimal("12.50"),
    "size": 0.5,
    "made": dt.date(2026, 1, 2),
    "seen": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    "at": dt.time(3, 4, 5),
    "flag": True,
    "data": b"\x00\xff",
    "token": UUID(int=5),
    "colour": "red",
    "tags": ["a", "b"],
    "prices": [Decimal("1.5")],
    "extra": {"a": {"b": [1, None]}},
    "any": 2**70,
}
KEYS = Keyring("a", {"a": b"k" * 32})
_VERSION = version_at(1_767_225_600_000_000, 9)
_CHANGES = [
    Change(type="Thing", key="7", op=PUT, version=_VERSION, data=VALUES, source="shop"),
    Change(type="Thing", key="7", op=PATCH, version=_VERSION, data={"name": "B"}, source="shop"),
    Change(type="Thing", key="7", op=DELETE, version=_VERSION, data=None, source="shop"),
]
_ENVELOPES = [codec.encode(change) for change in _CHANGES]


def _of(change: Change) -> None:
    """Use a change as a worker does."""
    data = change.data
    if data is not None:
        Thing.load({"id": 7, **data}, partial=True)
    codec.encode(change)


def _envelope(raw: bytes) -> None:
    _of(codec.decode(raw))


def _signed(raw: bytes) -> None:
    _of(codec.decode(raw, keys=KEYS))


def _well_signed(raw: bytes) -> None:
    """Sign whatever it is: a producer with a key may send anything."""
    head = bytes([raw[0] + 2]) if raw and 0x80 <= raw[0] < 0x8E else raw[:1]
    _of(codec.decode(KEYS.sign(head + raw[1:]), keys=KEYS))


def _batch(raw: bytes) -> None:
    for found in codec.decode_all(codec.split_batch(raw)):
        if isinstance(found, EnvelopeError):
            str(found)
            continue
        try:
            _of(found)
        except EventSyncError:
            continue  # one change of a batch is refused alone


def _letter(raw: bytes) -> None:
    letter = DeadLetter.decode(raw)
    json.dumps(letter.to_json())
    letter.encode()


def _headers(raw: bytes) -> None:
    head, _, body = raw.partition(b"\n\n")
    lines = (line.partition(b": ") for line in head.split(b"\n"))
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, _, value in lines}
    _of(from_headers(headers, body))


def _batch_of_events(raw: bytes) -> None:
    for found in from_cloudevents(raw):
        if isinstance(found, Change):
            try:
                _of(found)
            except EventSyncError as error:
                str(error)


def _debezium(raw: bytes) -> None:
    change = from_debezium(raw, key_text=lambda columns: str(columns["id"]), type="Thing")
    if change is not None:
        _of(change)


def _filter(raw: bytes) -> None:
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        return  # the command line reads the JSON, not the filter
    if _mentions(tree, "$re"):
        return  # a regular expression takes the time that its author gave it
    found = Filter.parse(tree, Thing.__record__)
    found.matches(VALUES)
    found.matches({"name": "a" * 5000})
    Filter.parse(found.to_json(), Thing.__record__)


def _mentions(tree: Any, word: str) -> bool:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if word in node:
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False


def _like(raw: bytes) -> None:
    pattern, _, text = raw.decode("utf-8", "replace").partition("\n")
    try:
        found = Filter.parse({"name": {"$like": pattern}}, Thing.__record__)
    except FilterError:
        return
    found.matches({"name": text})
    found.matches({"name": "a" * 5000})


def _key(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    for kind in (Thing, Visit):
        try:
            kind.__record__.key_values(text)
        except EventSyncError:
            continue


_FOLDER = tempfile.TemporaryDirectory()
_FILE = Path(_FOLDER.name) / "keys"


def _keys(raw: bytes) -> None:
    _FILE.write_bytes(raw)
    KeyFile(_FILE).keyring.describe()


def _binary(change: Change) -> bytes:
    headers, body = to_headers(change)
    return (
        "\n".join(f"{name}: {value}" for name, value in headers.items()).encode() + b"\n\n" + body
    )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_SCHEMA = [
    {"field": "id", "type": "int32"},
    {"field": "price", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
     "parameters": {"scale": "2"}},
    {"field": "made", "type": "int32", "name": "io.debezium.time.Date"},
    {"field": "seen", "type": "string", "name": "io.debezium.time.ZonedTimestamp"},
    {"field": "at", "type": "int64", "name": "io.debezium.time.MicroTime"},
    {"field": "extra", "type": "string", "name": "io.debezium.data.Json"},
    {"field": "token", "type": "string", "name": "io.debezium.data.Uuid"},
    {"field": "tags", "type": "array", "items": {"type": "string"}},
    {"field": "any", "type": "struct", "name": "io.debezium.data.VariableScaleDecimal",
     "fields": [{"field": "value", "type": "bytes"}, {"field": "scale", "type": "int32"}]},
]  # fmt: skip
_ROW = {
    "id": 7, "price": "BOI=", "made": 20000, "seen": "2026-01-02T03:04:05Z", "at": 1000,
    "extra": '{"a": 1}', "token": str(UUID(int=5)), "tags": ["a"],
    "any": {"value": "BOI=", "scale": 1},
}  # fmt: skip
_SOURCES = [
    {"table": "Thing", "connector": "postgresql", "name": "pg", "ts_ms": 1767225600000, "lsn": 99},
    {"table": "Thing", "connector": "mysql", "name": "my", "ts_ms": 1767225600000,
     "file": "binlog.000003", "pos": 154, "row": 1},
    {"table": "Thing", "connector": "sqlserver", "name": "ms", "ts_ns": 1767225600000000000,
     "change_lsn": "00000027:00000758:0003"},
]  # fmt: skip
_DEBEZIUM = [
    _json({"op": op, "source": source, "before": _ROW, "after": _ROW})
    for source in _SOURCES
    for op in "cud"
] + [
    _json(
        {
            "schema": {"fields": [{"field": side, "fields": _SCHEMA} for side in ("after",)]},
            "payload": {"op": "c", "source": _SOURCES[0], "after": _ROW},
        }
    )
]
_FILTERS = [
    {"name": {"$like": "%a%a%_b"}, "number": {"$gt": 3, "$lte": "9"}},
    {"$or": [{"id": {"$in": [1, 2]}}, {"made": {"$lt": "2026-01-01"}}]},
    {"$nor": [{"tags": {"$len": {"$gt": 1}}}, {"number": {"$mod": [3, 1]}}]},
    {"name": {"$not": {"$exists": True}}, "price": {"$ne": "1.5"}, "size": 0.5},
    {"extra": {"$eq": {"a": 1}}, "seen": {"$gte": "2026-01-01T00:00:00Z"}, "data": "00ff"},
    {"token": {"$nin": [str(UUID(int=5))]}, "colour": "red", "flag": True, "any": [1]},
]
_LETTER = DeadLetter(
    reason="malformed", message="m", store="crm", queue="q", attempts=3, first_time=1.0,
    last_time=2.0, raw=_ENVELOPES[0], type="Thing", key="7", op="put", version=_VERSION,
)  # fmt: skip
_KEY_FILE = (
    b"# keys\n2027:bWFrZSB5b3VyIG93biBrZXlzLCBub3QgdGhlc2U=\n"
    b"shop:dGhpcyBpcyBvbmx5IGFuIGV4YW1wbGUgb2YgYSBrZXk= types=A,B ops=put fields=A.id sources=s\n"
)
_VISIT = Visit(
    day=dt.date(2026, 1, 2), place="a/b%", number=Decimal("1e50"), token=UUID(int=1), octets=b"\0",
    moment=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
)  # fmt: skip

PARSERS = [
    Parser(name="envelope", parse=_envelope, samples=_ENVELOPES, form="msgpack"),
    Parser(
        name="envelope-bad-signature",
        parse=_signed,
        samples=[codec.encode(change, keys=KEYS) for change in _CHANGES],
        form="msgpack",
    ),
    Parser(name="envelope-signed", parse=_well_signed, samples=_ENVELOPES, form="msgpack"),
    Parser(
        name="batch",
        parse=_batch,
        samples=[codec.join_batch(_ENVELOPES), codec.join_batch(_ENVELOPES[:1] * 9)],
    ),
    Parser(name="dead-letter", parse=_letter, samples=[_LETTER.encode()], form="msgpack"),
    Parser(
        name="cloudevent",
        parse=lambda raw: _of(from_cloudevent(raw)),
        samples=[_json(to_cloudevent(change)) for change in _CHANGES],
        form="json",
    ),
    Parser(
        name="cloudevents-batch",
        parse=_batch_of_events,
        samples=[_json([to_cloudevent(change) for change in _CHANGES[:3]])],
        form="json",
        weight=0.5,
    ),
    Parser(name="cloudevent-binary", parse=_headers, samples=[*map(_binary, _CHANGES)]),
    Parser(name="debezium", parse=_debezium, samples=_DEBEZIUM, form="json"),
    Parser(name="filter", parse=_filter, samples=[*map(_json, _FILTERS)], form="json"),
    Parser(
        name="like",
        parse=_like,
        samples=[b"%a%a%a%b\naaaaaaaaaaaaaaa", b"_%\\%\\_x\nabc%_x", "ä_%\näbc".encode()],
        weight=0.3,
    ),
    Parser(name="key", parse=_key, samples=[b"7", b"-12", _VISIT.key.encode()]),
    Parser(name="key-file", parse=_keys, samples=[_KEY_FILE, b"a:" + b"QUFB" * 8], weight=0.3),
]
