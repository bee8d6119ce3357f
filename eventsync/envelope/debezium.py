"""Debezium: converts events of the Debezium connectors for relational databases to changes.

The mapping is described in docs/envelope.md.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.changes.change import Change
from eventsync.changes.clock import Version, version_at
from eventsync.changes.stamp import DELETE, PUT, Op
from eventsync.envelope.codec import encode
from eventsync.errors import ChangeRefusedError, EnvelopeError, ValueRefusedError, malformed, shown
from eventsync.values.tagged_json import loads

__all__ = ["from_debezium", "version_of"]

_OPS: Final[Mapping[str, Op]] = {"c": PUT, "u": PUT, "r": PUT, "d": DELETE}
# A connector sends this text for a large column that did not change, if the database's log does not
# contain the value of the column.
_UNAVAILABLE: Final = "__debezium_unavailable_value"
_EPOCH_DAY: Final = dt.date(1970, 1, 1)
_EPOCH: Final = dt.datetime(1970, 1, 1)
_MIDNIGHT_ERROR: Final = "a time of day beyond 24 hours"


def from_debezium(
    event: Mapping[str, Any] | str | bytes | None,
    key: Mapping[str, Any] | str | bytes | None = None,
    *,
    key_text: Callable[[Mapping[str, Any]], str],
    type: str | None = None,
    version: Callable[[Mapping[str, Any]], Version] | None = None,
) -> Change | None:
    """Return the change that a Debezium event describes, or ``None`` for a Kafka tombstone.

    The same event always gives an equal change. ``event`` and ``key``: the value and the key of the
    Kafka message, as JSON, with or without schema. ``key_text``: a function that returns the
    record's key; its argument is the columns of ``key``, or the columns of the row if there is no
    ``key``. ``type``: the record type; by default the name of the table. ``version``: a function
    that returns the version for the ``source`` block of the event; by default ``version_of``.

    With a schema, the change contains Python dates, times, decimals, UUIDs and bytes. Without a
    schema, it contains the JSON values of the event; the record type converts them later.

    Raises ``EnvelopeError`` if the event is malformed. Raises ``ChangeRefusedError`` if the event
    does not describe one whole record (a truncated table, a row with missing columns). Does not
    catch the eventsync errors that ``key_text`` or ``version`` raise.
    """
    payload, schema = _unwrapped(event)
    if payload is None:
        return None
    op, source = _op(payload), payload.get("source")
    if not isinstance(source, Mapping):
        raise malformed("the Debezium event has no source block")
    side = "before" if op == DELETE else "after"
    row = _row(payload.get(side), _field(schema, side))
    columns = _key_columns(key) or row
    if columns is None:
        raise malformed(
            "the Debezium event has neither a key nor a row, so the record's key is unknown",
            hint="pass the argument key, or make the database log whole rows (in PostgreSQL: "
            "REPLICA IDENTITY FULL)",
        )
    name = type if type is not None else source.get("table")
    try:
        text = key_text(columns)
    except (LookupError, ValueError, TypeError) as error:
        raise malformed(
            f"the columns of the Debezium event do not make a key of record type {shown(name)}: "
            f"{error!r}"
        ) from error
    change = Change(
        type=name if isinstance(name, str) else "",
        key=text,
        op=op,
        version=version(source) if version is not None else version_of(source, payload),
        data=None if op == DELETE else _whole(row, name),
        source=str(source.get("name") or source.get("connector") or "debezium"),
    )
    seed = f"{change.source}\n{change.version.hex()}\n{change.type}\n{change.key}"
    change.id = hashlib.sha256(seed.encode(errors="replace")).digest()[:16]
    try:
        encode(change)  # raises if the change breaks a rule of envelopes
    except ValueRefusedError as error:
        raise malformed(f"malformed Debezium event: {error.message}", hint=error.hint) from error
    return change


def version_of(source: Mapping[str, Any], payload: Mapping[str, Any] | None = None) -> Version:
    """Return the version of a change, made from the ``source`` block of its Debezium event.

    ``payload``: the map that contains the block; its time is used if the block has none. The
    milliseconds and the counter of the version are the time of the change in the database. The node
    is the position in the database's log (48 bits) and a hash of the connector's name (16 bits):
    changes of the same instant keep the order of the log. Supports PostgreSQL, MySQL, MariaDB,
    SQL Server, Db2 and Oracle. Raises ``EnvelopeError`` if the time or the position is missing.
    """
    micros = _micros(source) or _micros(payload or {})
    place = _place(source)
    if micros is None or place is None:
        raise malformed(
            "the source block of the Debezium event has no time, or no log position that eventsync "
            "can read",
            hint="pass the argument version, a function that returns the version for such a block",
        )
    name = str(source.get("name", "")).encode(errors="replace")
    tag = int.from_bytes(hashlib.sha256(name).digest()[:2], "big")
    return version_at(micros, (place & (1 << 48) - 1) << 16 | tag)


# -- the parts of an event -------------------------------------------------------------------------


def _unwrapped(event: Mapping[str, Any] | str | bytes | None) -> tuple[Any, Any]:
    """Return the payload and the schema of an event or key. A missing one is ``None``.

    Raises ``EnvelopeError`` if the event or key is malformed.
    """
    # A Kafka tombstone is ``None`` or empty. Other false values, such as 0, are malformed events.
    found = loads(event) if isinstance(event, str | bytes) and event else event
    if found is None or found in ("", b""):
        return None, None
    if not isinstance(found, Mapping):
        raise malformed("the Debezium event or its key is not a JSON object", reason="envelope")
    if "payload" not in found:
        return found, None
    payload, schema = found["payload"], found.get("schema")
    if payload is not None and not isinstance(payload, Mapping):
        raise malformed("the payload of the Debezium event or of its key is not a JSON object")
    return payload, schema if isinstance(schema, Mapping) else None


def _op(payload: Mapping[str, Any]) -> Op:
    code = payload.get("op")
    if isinstance(code, str) and code in _OPS:
        return _OPS[code]
    if code in ("t", "m"):
        what = "a truncated table" if code == "t" else "a logical message"
        raise ChangeRefusedError(
            f"the Debezium event is {what}, not a change of one record",
            reason="unsupported-operation",
            hint="exclude such events with the connector's setting skipped.operations, or compare "
            "the stores with eventsync sync",
        )
    raise malformed(
        f"the Debezium event has the operation {shown(code)}, not c, u, r or d",
        reason="envelope",
        hint="if the connector flattens events with ExtractNewRecordState, remove this "
        "transformation",
    )


def _key_columns(key: Mapping[str, Any] | str | bytes | None) -> dict[str, Any] | None:
    payload, schema = _unwrapped(key)
    return _row(payload, schema)


def _row(row: Any, schema: Any) -> dict[str, Any] | None:
    if row is None:
        return None
    if not isinstance(row, Mapping):
        raise malformed(
            f"the row of the Debezium event is {shown(row)}, not a JSON object",
            hint="only the connectors for relational databases are supported",
        )
    return {name: _column(name, value, _field(schema, name)) for name, value in row.items()}


def _whole(row: dict[str, Any] | None, type: Any) -> dict[str, Any]:
    if row is None:
        raise malformed("the Debezium event creates or updates a row, but its entry after is null")
    missing = [n for n, value in row.items() if value in (_UNAVAILABLE, _UNAVAILABLE.encode())]
    if missing:
        raise ChangeRefusedError(
            f"the Debezium event has no values for the columns {', '.join(missing)} of a row of "
            f"{type}",
            reason="incomplete-row",
            hint="make the database log whole rows (in PostgreSQL: REPLICA IDENTITY FULL)",
        )
    return row


def _micros(block: Mapping[str, Any]) -> int | None:
    """Return the time of a block in microseconds since the epoch; ``None`` if missing or 0."""
    for name, up, down in (("ts_ns", 1, 1000), ("ts_us", 1, 1), ("ts_ms", 1000, 1)):
        found = block.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found:
            return found * up // down
    return None


def _place(source: Mapping[str, Any]) -> int | None:
    """Return the position of a change in the database's log, or ``None`` if it is missing.

    Later changes have greater positions. Raises ``EnvelopeError`` if the position is malformed.
    """
    found: Any = source.get("lsn")
    if found is None and source.get("pos") is not None:
        try:
            file = int(str(source.get("file") or "").rpartition(".")[2] or 0)
            pos, row = int(source["pos"]), int(source.get("row") or 0)
        except (ValueError, TypeError, OverflowError) as error:
            raise malformed("the log position in the Debezium event is malformed") from error
        return (file & 0xF) << 44 | (pos & 0xFFFF_FFFF) << 12 | row & 0xFFF
    if found is None:
        found = source.get("change_lsn") or source.get("scn")
    if found is None or isinstance(found, bool):
        return None
    try:
        # SQL Server and Db2 write three hexadecimal numbers, Oracle one decimal number.
        text = str(found)
        return int(text.replace(":", ""), 16) if ":" in text else int(text)
    except ValueError as error:
        raise malformed("the log position in the Debezium event is malformed") from error


# -- columns ---------------------------------------------------------------------------------------


def _field(schema: Any, name: str) -> Any:
    """Return the schema of the field ``name`` of a struct schema, or ``None`` if it has none."""
    fields = schema.get("fields") if isinstance(schema, Mapping) else None
    for field in fields if isinstance(fields, list) else ():
        if isinstance(field, Mapping) and field.get("field") == name:
            return field
    return None


def _column(name: str, value: Any, schema: Any) -> Any:
    try:
        return _value(value, schema)
    except EnvelopeError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
        raise malformed(
            f"the value of column {name[:60]!r} does not match the schema of the column"
        ) from error


def _value(value: Any, schema: Any) -> Any:
    if value is None or not isinstance(schema, Mapping) or value == _UNAVAILABLE:
        return value
    kind, logical = schema.get("type"), schema.get("name")
    if logical == "org.apache.kafka.connect.data.Decimal":
        return _decimal(value, int(schema["parameters"]["scale"]))
    if logical == "io.debezium.data.VariableScaleDecimal":
        return _decimal(value["value"], int(value["scale"]))
    if isinstance(logical, str) and logical in _LOGICAL:
        return _LOGICAL[logical](value)
    if kind == "bytes":
        return base64.b64decode(value, validate=True)
    if kind == "array":
        return [_value(item, schema.get("items")) for item in value]
    if kind == "struct":
        return {name: _value(item, _field(schema, name)) for name, item in value.items()}
    return value


def _decimal(encoded: Any, scale: int) -> Decimal:
    unscaled = int.from_bytes(base64.b64decode(encoded, validate=True), "big", signed=True)
    # Arithmetic with decimals would round to the precision of the decimal context; text does not.
    return Decimal(f"{unscaled}E{-scale}")


def _date(days: int) -> dt.date:
    return _EPOCH_DAY + dt.timedelta(days=days)


def _moment(micros: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=micros)


def _time(micros: int) -> dt.time:
    if not 0 <= micros < 86_400_000_000:
        raise ValueError(_MIDNIGHT_ERROR)
    return _moment(micros).time()


def _zoned(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a zoned timestamp has no zone")
    return moment.astimezone(dt.UTC)


_LOGICAL: Final[Mapping[str, Callable[[Any], Any]]] = {
    "io.debezium.time.Date": _date,
    "io.debezium.time.Time": lambda millis: _time(millis * 1000),
    "io.debezium.time.MicroTime": _time,
    "io.debezium.time.NanoTime": lambda nanos: _time(nanos // 1000),
    "io.debezium.time.ZonedTime": dt.time.fromisoformat,
    "io.debezium.time.Timestamp": lambda millis: _moment(millis * 1000),
    "io.debezium.time.MicroTimestamp": _moment,
    "io.debezium.time.NanoTimestamp": lambda nanos: _moment(nanos // 1000),
    "io.debezium.time.ZonedTimestamp": _zoned,
    "io.debezium.data.Json": loads,
    "io.debezium.data.Uuid": UUID,
    "org.apache.kafka.connect.data.Date": _date,
    "org.apache.kafka.connect.data.Time": lambda millis: _time(millis * 1000),
    "org.apache.kafka.connect.data.Timestamp": lambda millis: _moment(millis * 1000),
}
