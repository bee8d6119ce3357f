"""The values of columns: converts JSON values of Debezium events to values of records."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import ConfigError
from eventsync.values.tagged_json import exact_number

__all__ = ["UnsupportedValueError", "convert", "declared", "fields_of"]

_EPOCH_DAY: Final = dt.date(1970, 1, 1)
_EPOCH: Final = dt.datetime(1970, 1, 1)
_DAY: Final = 86_400_000_000
# PostgreSQL's connector writes infinity in this way.
_INFINITE_NANOS: Final = (2**63 - 1, -(2**63))
_DECIMAL: Final = "org.apache.kafka.connect.data.Decimal"
_VARIABLE: Final = "io.debezium.data.VariableScaleDecimal"
# PostgreSQL's infinity, and the texts of years before 1 and after 9999.
_BEYOND: Final = re.compile(r"[+-]?infinity|[+-][0-9]{4,}-.*|0000-.*|24:.*", re.IGNORECASE)


class UnsupportedValueError(Exception):
    """A sound value of a database that no record can hold. The text says what it is."""


def declared(name: str, schema: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a column whose type the caller declares.

    ``name``: the name of the column. ``schema``: a schema of Kafka Connect, the name of a semantic
    type, ``base64``, ``base64-url-safe`` or ``hex`` for bytes in a text, or ``uint64``. Raises
    ``ConfigError`` if the type is unknown.
    """
    if isinstance(schema, str):
        schema = {"name": schema}
    kind, logical = schema.get("type"), schema.get("name")
    if logical == _DECIMAL and not _scale(schema).lstrip("-").isdigit():
        problem = "is a Decimal without its scale"
    elif logical in _LOGICAL or logical in (_DECIMAL, _VARIABLE) or kind is not None:
        return schema
    else:
        problem = f"has the type {logical!r}, which is unknown"
    raise ConfigError(
        f"the column {name!r} in the argument columns {problem}",
        hint="give the name of a semantic type such as io.debezium.time.Date, one of base64, "
        "base64-url-safe, hex and uint64, or the schema of the column as in an event with schema: "
        f'{{"type": "bytes", "name": "{_DECIMAL}", "parameters": {{"scale": "2"}}}}',
    )


def fields_of(schema: Any) -> dict[str, Any]:
    """Return the schemas of the fields of a struct schema by name; empty if it has none."""
    fields = schema.get("fields") if isinstance(schema, Mapping) else None
    return {
        field["field"]: field
        for field in (fields if isinstance(fields, list) else ())
        if isinstance(field, Mapping) and isinstance(field.get("field"), str)
    }


def convert(value: Any, schema: Any) -> Any:
    """Return the value of a column as a value that a record can hold.

    ``schema``: the schema of the column; ``None`` to return ``value`` unchanged. Raises
    ``UnsupportedValueError`` if no record can hold the value. Raises ``ValueError``, ``TypeError``,
    ``KeyError``, ``ArithmeticError`` or ``AttributeError`` if ``value`` does not match the schema.
    """
    if value is None or not isinstance(schema, Mapping):
        return value
    kind, logical = schema.get("type"), schema.get("name")
    if logical == _DECIMAL:
        return _decimal(value, _scale(schema))
    if logical == _VARIABLE:
        return _decimal(value["value"], value["scale"])
    if isinstance(logical, str):
        if logical in _LOGICAL:
            return _LOGICAL[logical](value)
        if logical.startswith("io.debezium.time.Structured"):
            raise UnsupportedValueError(
                f"has the type {logical}; set time.precision.mode to another mode"
            )
    if kind == "bytes":
        return base64.b64decode(value, validate=True)
    if kind in ("float", "double"):
        return _float(value)
    if kind == "array":
        return [convert(item, schema.get("items")) for item in value]
    if kind == "map":
        pairs = value.items() if isinstance(value, Mapping) else value
        return {name: convert(item, schema.get("values")) for name, item in pairs}
    if kind == "struct":
        fields = fields_of(schema)
        return {name: convert(item, fields.get(name)) for name, item in value.items()}
    return value


# -- numbers and bytes -----------------------------------------------------------------------------


def _scale(schema: Mapping[str, Any]) -> str:
    parameters = schema.get("parameters")
    return str(parameters.get("scale", "")) if isinstance(parameters, Mapping) else ""


def _decimal(value: Any, scale: Any) -> Decimal:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int | float | Decimal):
        return Decimal(str(value))  # the converter's setting decimal.format is NUMERIC
    unscaled = int.from_bytes(base64.b64decode(value, validate=True), "big", signed=True)
    # Arithmetic with decimals would round to the precision of the decimal context; text does not.
    return Decimal(f"{unscaled}E{-int(scale)}")


def _float(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise UnsupportedValueError("is NaN")
    return number


def _base64(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _url_safe(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)


# -- times -----------------------------------------------------------------------------------------


def _date(days: int) -> dt.date:
    try:
        return _EPOCH_DAY + dt.timedelta(days=days)
    except OverflowError:
        raise _beyond("a date") from None


def _moment(micros: int) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(microseconds=micros)
    except OverflowError:
        raise _beyond("a time") from None


def _nanos(nanos: int) -> dt.datetime:
    if nanos in _INFINITE_NANOS:
        raise _beyond("a time")
    return _moment(nanos // 1000)


def _time(micros: int) -> dt.time:
    if not 0 <= micros < _DAY:
        raise UnsupportedValueError("is not a time of day from 00:00 to 24:00")
    return _moment(micros).time()


def _beyond(what: str) -> UnsupportedValueError:
    return UnsupportedValueError(f"is {what} outside the years 1 to 9999, or infinite")


def _parsed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return ``parse``, which raises ``UnsupportedValueError`` for times beyond Python's."""

    def parsed(text: Any) -> Any:
        try:
            return parse(text)
        except ValueError:
            if _BEYOND.fullmatch(text):
                raise _beyond("a time") from None
            raise

    return parsed


def _local(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return ``parse`` for a text of a local time. Mode ``isostring`` writes it with a Z."""
    return _parsed(lambda text: parse(text.removesuffix("Z")))


def _zoned(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a zoned timestamp has no zone")
    return moment.astimezone(dt.UTC)


# -- semantic types --------------------------------------------------------------------------------


def _document(text: str) -> Any:
    """Return the value of a JSON column. Of members with the same name, the last one counts.

    The database reads the column in the same way.
    """
    try:
        return json.loads(text, parse_float=exact_number, parse_constant=_refuse_constant)
    except RecursionError:
        raise UnsupportedValueError("is JSON that nests too deep") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_LOGICAL: Final[Mapping[str, Callable[[Any], Any]]] = {
    "io.debezium.time.Date": _date,
    "io.debezium.time.Time": lambda millis: _time(millis * 1000),
    "io.debezium.time.MicroTime": _time,
    "io.debezium.time.NanoTime": lambda nanos: _time(nanos // 1000),
    "io.debezium.time.ZonedTime": _parsed(dt.time.fromisoformat),
    "io.debezium.time.Timestamp": lambda millis: _moment(millis * 1000),
    "io.debezium.time.MicroTimestamp": _moment,
    "io.debezium.time.NanoTimestamp": _nanos,
    "io.debezium.time.ZonedTimestamp": _parsed(_zoned),
    "io.debezium.time.IsoDate": _local(dt.date.fromisoformat),
    "io.debezium.time.IsoTime": _local(dt.time.fromisoformat),
    "io.debezium.time.IsoTimestamp": _local(dt.datetime.fromisoformat),
    "io.debezium.data.Json": _document,
    "io.debezium.data.Uuid": UUID,
    "org.apache.kafka.connect.data.Date": _date,
    "org.apache.kafka.connect.data.Time": lambda millis: _time(millis * 1000),
    "org.apache.kafka.connect.data.Timestamp": lambda millis: _moment(millis * 1000),
    "base64": _base64,
    "base64-url-safe": _url_safe,
    "hex": bytes.fromhex,
    # By default, MySQL's connector writes them as signed integers of 64 bits.
    "uint64": lambda number: number % (1 << 64),
}
