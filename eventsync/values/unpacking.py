"""Unpacking: values out of their bytes, which may come from anywhere.

It owns what is refused there. The form is that of ``value``. It knows nothing of records, versions
or stores.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, SafeUUID

import msgpack

from eventsync.errors import ValueRefusedError
from eventsync.values.packing import (
    AWARE_CODE,
    BIGINT_CODE,
    DATE_CODE,
    DECIMAL_CODE,
    MAX_BIGINT,
    MAX_DECIMAL,
    MAX_ENTRIES,
    NAIVE_CODE,
    PLAIN,
    TEXTS,
    TIME_CODE,
    UUID_CODE,
    check,
    refused,
)

__all__ = [
    "unpack",
    "unpack_body",
    "unpack_column",
    "unpack_flat",
    "unpack_own",
    "unpack_parts",
]

# What needs no look inside once it has been decoded.
_SOUND: Final = frozenset({Decimal, dt.datetime, dt.time})
# What the values of a flat map may be.
_FLAT: Final = PLAIN | _SOUND | {float}
# Python reads more as a decimal than the digits, point, sign and exponent that travel.
_IN_NUMBERS: Final = b"0123456789.-"
_OF_EXPONENTS: Final = b"+eE"
_set_int: Final = vars(UUID)["int"].__set__
_set_safe: Final = vars(UUID)["is_safe"].__set__
_SAFE: Final = SafeUUID.unknown
# What msgpack raises for bytes that are not a value of its.
_BROKEN: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


def _text(payload: bytes) -> str:
    return payload.decode("ascii")


def _read_decimal(payload: bytes) -> Decimal:
    if len(payload) > MAX_DECIMAL:
        raise ValueError("not a decimal")
    beyond = payload.translate(None, _IN_NUMBERS)
    number = Decimal(payload.decode())
    if beyond and (beyond.translate(None, _OF_EXPONENTS) or abs(number.adjusted()) > MAX_DECIMAL):
        raise ValueError("it has other letters, or too large an exponent")
    return number


def _read_naive(payload: bytes) -> dt.datetime:
    moment = dt.datetime.fromisoformat(_text(payload))
    if moment.tzinfo is not None:
        raise ValueError("it has a zone")
    return moment


def _read_aware(payload: bytes) -> dt.datetime:
    moment = dt.datetime.fromisoformat(_text(payload))
    if moment.tzinfo is None:
        raise ValueError("it has no zone")
    return moment.astimezone(dt.UTC)


def _read_uuid(payload: bytes) -> UUID:
    if len(payload) != 16:
        raise ValueError(f"it has {len(payload)} bytes")
    # Its constructor takes its arguments in six forms, and longer than all else that is read.
    uuid = object.__new__(UUID)
    _set_int(uuid, int.from_bytes(payload, "big"))
    _set_safe(uuid, _SAFE)
    return uuid


def _read_bigint(payload: bytes) -> int:
    if not 0 < len(payload) <= MAX_BIGINT:
        raise ValueError(f"it has {len(payload)} bytes")
    return int.from_bytes(payload, "big", signed=True)


_READERS: Final[Mapping[int, Callable[[bytes], Any]]] = {
    DECIMAL_CODE: _read_decimal,
    # What is not ASCII is no date either.
    DATE_CODE: lambda payload: dt.date.fromisoformat(payload.decode()),
    TIME_CODE: lambda payload: dt.time.fromisoformat(_text(payload)),
    NAIVE_CODE: _read_naive,
    AWARE_CODE: _read_aware,
    UUID_CODE: _read_uuid,
    BIGINT_CODE: _read_bigint,
}

# By code, what reads the text of a payload, where that does.
_OF_LINES: Final[Mapping[int, Callable[[str], Any]]] = {
    DECIMAL_CODE: Decimal,
    DATE_CODE: dt.date.fromisoformat,
    TIME_CODE: dt.time.fromisoformat,
}


def _decode_special(code: int, payload: bytes) -> Any:
    try:
        return _READERS[code](payload)
    except KeyError:
        raise _unknown_code(code) from None
    except (ValueError, ArithmeticError) as error:
        raise _malformed(code, error) from error


def _unknown_code(code: int) -> ValueRefusedError:
    return refused(f"extension type {code} is unknown")


def _malformed(code: int, error: Exception) -> ValueRefusedError:
    return refused(f"extension type {code} has a malformed payload: {error}")


def unpack_column(code: int, payloads: Sequence[bytes]) -> list[Any]:
    """The values of many extension types of one code. Thread-safe.

    Raises ``ValueRefusedError`` if one of them is malformed; which, can be found out one by one.
    """
    try:
        texts = _lines(code, payloads) if code in _OF_LINES else None
        if texts is not None:
            return list(map(_OF_LINES[code], texts))
        return list(map(_READERS[code], payloads))
    except KeyError:
        raise _unknown_code(code) from None
    except (ValueError, ArithmeticError) as error:
        raise _malformed(code, error) from error


def _lines(code: int, payloads: Sequence[bytes]) -> list[str] | None:
    """The texts of payloads with which nothing is the matter; ``None`` if one takes a look."""
    lines = b"\n".join(payloads)
    if code == DECIMAL_CODE and (
        lines.translate(None, _IN_NUMBERS + b"\n") or max(map(len, payloads)) > MAX_DECIMAL
    ):
        return None
    texts = lines.decode("ascii").split("\n")
    return texts if len(texts) == len(payloads) else None


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise refused("a map has the same key twice")
    return found


def unpack(raw: bytes) -> Any:
    """Decode what ``pack`` wrote, on bytes from anywhere. Thread-safe.

    Raises ``ValueRefusedError``, and nothing else, for bytes that are not one such value.
    """
    value = unpack_parts(raw)
    check(value)
    return value


def unpack_flat(raw: bytes) -> dict[str, Any] | None:
    """As ``unpack``, for a map with no map or array inside it; ``None`` for anything else.

    The quickest way for what most records are, of whatever type.
    """
    try:
        value = msgpack.unpackb(
            raw,
            ext_hook=_decode_special,
            # Also keeps what a declared length makes msgpack allocate at once small.
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except _BROKEN as error:
        raise _no_value(error) from error
    if type(value) is not dict:
        return None
    # No key came twice: the number of entries tells.
    declared = raw[0] & 0x0F if raw[0] < 0x90 else int.from_bytes(raw[1:3], "big")
    kinds = set(map(type, value.values()))
    if len(value) != declared or not kinds <= _FLAT or not TEXTS.issuperset(map(type, value)):
        return None
    if float in kinds and any(item != item for item in value.values() if type(item) is float):
        return None
    return value


def unpack_body(raw: bytes) -> dict[str, Any]:
    """The body in its bytes, which may come from anywhere. Thread-safe.

    Raises ``ValueRefusedError``, and nothing else, for bytes that are not one map as ``pack_body``
    makes it, but for the order of its keys.
    """
    body = unpack_flat(raw)
    if body is None:
        body = unpack(raw)
        if type(body) is not dict:
            raise refused("a body is a map")
    return body


def unpack_parts(raw: bytes) -> Any:
    """As ``unpack``, but the caller is to ``check`` each part itself.

    For a map whose parts each have the whole of ``MAX_DEPTH`` to themselves.
    """
    try:
        return msgpack.unpackb(
            raw,
            object_pairs_hook=_unique,
            ext_hook=_decode_special,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except _BROKEN as error:
        raise _no_value(error) from error


def unpack_own(raw: bytes) -> Any:
    """As ``unpack``, of what this package wrote itself where no others write. Thread-safe.

    Raises ``ValueRefusedError``, and nothing else, for bytes that are no value.
    """
    try:
        return msgpack.unpackb(raw, ext_hook=_decode_special)
    except _BROKEN as error:
        raise _no_value(error) from error


def _no_value(error: Exception) -> ValueRefusedError:
    return refused(f"not a msgpack value: {type(error).__name__}: {error}")
