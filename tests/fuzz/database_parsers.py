"""The parsers of what databases and directories send: documents, entries, logs."""

from __future__ import annotations

import base64
import datetime as dt
import json
import struct
from typing import Any
from uuid import UUID

from bson import Decimal128, ObjectId
from bson.errors import BSONError
from fuzz.parser import Parser
from fuzz.record_parsers import VALUES, Thing

from eventsync.errors import RecordError
from eventsync.records.query import Query
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.ldap.schema import AttributeNames, Schema
from eventsync.stores.mongo import MongoAccessor
from eventsync.stores.sql.capture.pgoutput import Decoder


def _ignore(_: RecordError) -> None:
    """Take the error of one unreadable record."""


def _read(accessor: Any) -> None:
    for record in accessor._found(Query.parse(accessor.type, unreadable=_ignore)):
        record.raw()


# -- MongoDB ---------------------------------------------------------------------------------------

_MONGO = MongoAccessor(Thing, "mongodb://h/db")
_SPECIAL = {
    "oid": lambda text: ObjectId(text[:24].ljust(24, "0")),
    "uuid": lambda text: UUID(text[:32].ljust(32, "0")),
    "decimal": lambda text: Decimal128(text[:30]),
    "date": lambda text: dt.datetime.fromtimestamp(float(text) % 1e11, dt.UTC),
    "bytes": lambda text: text.encode("utf-8", "surrogatepass"),
}
"""Types that JSON lacks: ``{"$oid": "..."}`` stands for one."""


def _special(value: Any) -> Any:
    if isinstance(value, list):
        return [_special(one) for one in value]
    if not isinstance(value, dict):
        return value
    for name, make in _SPECIAL.items():
        if isinstance(value.get(f"${name}"), str):
            try:
                return make(value[f"${name}"])
            except (ValueError, ArithmeticError, TypeError, BSONError):
                return value[f"${name}"]
    return {key: _special(one) for key, one in value.items()}


def _document(raw: bytes) -> None:
    try:
        found = _special(json.loads(raw))
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        found.setdefault("_id", 7)  # each document has one
        _MONGO._documents = lambda condition: iter([found])  # type: ignore[method-assign]
        _read(_MONGO)


# -- LDAP ------------------------------------------------------------------------------------------

_LDAP = LdapAccessor(
    Thing, "ldap://h", dn="id={id},dc=example", object_classes=["thing"], user="u", password="p"
)
_LDAP._known = AttributeNames([*_LDAP._names], Schema(), owner="Thing")


def _entry(raw: bytes) -> None:
    found: dict[str, list[bytes]] = {}
    for line in raw.split(b"\n"):
        name, _, value = line.partition(b": ")
        found.setdefault(name.decode("utf-8", "replace"), []).append(value)
    query = Query.parse(_LDAP.type, unreadable=_ignore)
    for record in _LDAP.read([found], query):
        record.raw()


def _lines() -> bytes:
    encoded = _LDAP.record_to_data(Thing(**VALUES))
    return b"\n".join(
        name.encode() + b": " + value for name, values in encoded.items() for value in values
    )


# -- PostgreSQL's log ------------------------------------------------------------------------------


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _row(*values: str | None) -> bytes:
    cells = [b"n" if v is None else b"t" + struct.pack("!I", len(v)) + v.encode() for v in values]
    return struct.pack("!H", len(values)) + b"".join(cells)


def _log() -> list[bytes]:
    relation = b"R" + struct.pack("!I", 16) + _name("public") + _name("Thing") + b"d"
    relation += struct.pack("!H", 2)
    relation += b"\1" + _name("id") + struct.pack("!II", 20, 0xFFFFFFFF)
    relation += b"\0" + _name("name") + struct.pack("!II", 25, 0xFFFFFFFF)
    begin = b"B" + struct.pack("!qqI", 100, 1, 7)
    commit = b"C" + struct.pack("!Bqqq", 0, 100, 120, 1)
    table = struct.pack("!I", 16)
    insert = b"I" + table + b"N" + _row("1", "a")
    update = b"U" + table + b"K" + _row("1", None) + b"N" + _row("2", "b")
    delete = b"D" + table + b"K" + _row("2", None)
    truncate = b"T" + struct.pack("!IB", 1, 0) + table
    message = b"M" + struct.pack("!Bq", 1, 100) + _name("eventsync") + struct.pack("!I", 0)
    streamed = b"S" + struct.pack("!IB", 9, 1)
    inserted = b"I" + struct.pack("!I", 9) + table + b"N" + _row("3", "c")
    committed = b"c" + struct.pack("!IBqqq", 9, 0, 130, 140, 1)
    plain = [relation, begin, insert, update, delete, truncate, message, commit]
    streaming = [relation, streamed, inserted, b"E", committed]
    return [
        b"\n".join(base64.b64encode(one) for one in messages) for messages in (plain, streaming)
    ]


def _decode_log(raw: bytes) -> None:
    decoder = Decoder(lambda relation: ("id",))
    for line in raw.split(b"\n"):
        try:
            message = base64.b64decode(line)
        except ValueError:
            message = line
        if message:
            decoder.feed(message)


_DOCUMENT = {
    "_id": 7, "name": "n", "number": 3, "price": {"$decimal": "1.25"}, "size": 0.5,
    "seen": {"$date": "1700000000"}, "data": {"$bytes": "x"}, "token": {"$uuid": "0" * 32},
    "tags": ["a", "b"], "extra": {"a": 1}, "any": [1], "flag": True,
}  # fmt: skip

PARSERS = [
    Parser(
        name="mongo-document",
        parse=_document,
        samples=[json.dumps(_DOCUMENT).encode(), b'{"_id":{"$oid":"00"}}'],
        form="json",
        weight=0.5,
    ),
    Parser(name="ldap-entry", parse=_entry, samples=[_lines()], weight=0.5),
    Parser(name="postgresql-log", parse=_decode_log, samples=_log()),
]
