"""Unpacking: values decoded from msgpack bytes, which may come from anywhere.

The encoding is described in ``packing``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, SafeUUID

import msgpack

from eventsync.errors import ValueRefusedError, shown
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

# The types of values that may stand in a flat map. The decoder has checked the extension types.
_FLAT: Final = PLAIN | {Decimal, dt.datetime, dt.time, float}
# Python accepts more forms of a decimal than the digits, point, sign and exponent of ours.
_IN_NUMBERS: Final = b"0123456789.-"
_OF_EXPONENTS: Final = b"+eE"
_set_int: Final = vars(UUID)["int"].__set__
_set_safe: Final = vars(UUID)["is_safe"].__set__
_SAFE: Final = SafeUUID.unknown
# What msgpack raises for malformed bytes.
_BROKEN: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


def _text(payload: bytes) -> str:
    return payload.decode("ascii")


def _read_decimal(payload: bytes) -> Decimal:
    if len(payload) > MAX_DECIMAL:
        raise ValueError("not a decimal")
    beyond = payload.translate(None, _IN_NUMBERS)
    number = Decimal(payload.decode())
    if beyond and (beyond.translate(None, _OF_EXPONENTS) or abs(number.adjusted()) > MAX_DECIMAL):
        raise ValueError("it has other characters than a number, or too large an exponent")
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
    # The constructor accepts six kinds of arguments and takes longer than the rest of decoding.
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
    # Text that is not ASCII is no date, so it need not be checked.
    DATE_CODE: lambda payload: dt.date.fromisoformat(payload.decode()),
    TIME_CODE: lambda payload: dt.time.fromisoformat(_text(payload)),
    NAIVE_CODE: _read_naive,
    AWARE_CODE: _read_aware,
    UUID_CODE: _read_uuid,
    BIGINT_CODE: _read_bigint,
}

# The readers of payloads by their text alone, for the codes where that is enough.
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
    return refused(f"the extension type {code} is unknown")


def _malformed(code: int, error: Exception) -> ValueRefusedError:
    return refused(f"the extension type {code} has a malformed payload: {error}")


def unpack_column(code: int, payloads: Sequence[bytes]) -> list[Any]:
    """Decode the payloads of many extension types of one code. Thread-safe.

    Raises ``ValueRefusedError`` if one of them is malformed. The error does not say which one.
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
    """Return the payloads as texts, or ``None`` if one of them must be checked by itself."""
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
    """Decode one value, as ``pack`` encodes it, from bytes from anywhere. Thread-safe.

    Raises only ``ValueRefusedError``.
    """
    value = unpack_parts(raw)
    check(value)
    return value


def unpack_flat(raw: bytes) -> dict[str, Any] | None:
    """Decode a map without maps and arrays inside it. Thread-safe.

    Returns ``None`` for another value, and for a map that may be invalid: ``unpack`` then says what
    is wrong. Most records are flat, and this is the fastest way to decode them. Raises only
    ``ValueRefusedError``.
    """
    try:
        value = msgpack.unpackb(
            raw,
            ext_hook=_decode_special,
            # These also limit the memory that msgpack allocates for a declared length.
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except _BROKEN as error:
        raise _no_value(error) from error
    if type(value) is not dict:
        return None
    # If the map has as many entries as it declares, no key came twice.
    declared = raw[0] & 0x0F if raw[0] < 0x90 else int.from_bytes(raw[1:3], "big")
    kinds = set(map(type, value.values()))
    if len(value) != declared or not kinds <= _FLAT or not TEXTS.issuperset(map(type, value)):
        return None
    if float in kinds and any(item != item for item in value.values() if type(item) is float):
        return None
    return value


def unpack_body(raw: bytes) -> dict[str, Any]:
    """Decode the field values of a record from bytes from anywhere. Thread-safe.

    The keys may be in any order. Raises only ``ValueRefusedError``.
    """
    body = unpack_flat(raw)
    if body is None:
        body = unpack(raw)
        if type(body) is not dict:
            raise refused(f"the body of a record is {shown(body)}, not a map")
    return body


def unpack_parts(raw: bytes) -> Any:
    """Decode one value as ``unpack`` does, but without ``check``.

    It is for a map in which each value may nest ``MAX_DEPTH`` levels deep. The caller must
    ``check`` every part. Raises only ``ValueRefusedError``.
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
    """Decode a value that this package wrote where nobody else writes. Thread-safe.

    It is not checked. Raises only ``ValueRefusedError``.
    """
    try:
        return msgpack.unpackb(raw, ext_hook=_decode_special)
    except _BROKEN as error:
        raise _no_value(error) from error


def _no_value(error: Exception) -> ValueRefusedError:
    return refused(f"the bytes are not a msgpack value: {type(error).__name__}: {error}")
