"""Unpacking: decodes values from msgpack bytes. The bytes may come from an attacker.

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

# The types of the values in a flat map. The extension types are checked when they are decoded.
_FLAT: Final = PLAIN | {Decimal, dt.datetime, dt.time, float}
# ``Decimal()`` accepts more characters than eventsync does, for example underscores.
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
        raise ValueError(f"the decimal has {len(payload)} characters; {MAX_DECIMAL} is the limit")
    beyond = payload.translate(None, _IN_NUMBERS)
    number = Decimal(payload.decode())
    if beyond and (beyond.translate(None, _OF_EXPONENTS) or abs(number.adjusted()) > MAX_DECIMAL):
        raise ValueError("the decimal has an invalid character, or too large an exponent")
    return number


def _read_naive(payload: bytes) -> dt.datetime:
    moment = dt.datetime.fromisoformat(_text(payload))
    if moment.tzinfo is not None:
        raise ValueError("the datetime has a zone, but this type has none")
    return moment


def _read_aware(payload: bytes) -> dt.datetime:
    moment = dt.datetime.fromisoformat(_text(payload))
    if moment.tzinfo is None:
        raise ValueError("the datetime has no zone, but this type needs one")
    return moment.astimezone(dt.UTC)


def _read_uuid(payload: bytes) -> UUID:
    if len(payload) != 16:
        raise ValueError(f"the UUID has {len(payload)} bytes, not 16")
    # Faster than ``UUID(bytes=payload)``, whose constructor takes longer than the other decoding.
    uuid = object.__new__(UUID)
    _set_int(uuid, int.from_bytes(payload, "big"))
    _set_safe(uuid, _SAFE)
    return uuid


def _read_bigint(payload: bytes) -> int:
    if not 0 < len(payload) <= MAX_BIGINT:
        raise ValueError(f"the integer has {len(payload)} bytes, not 1 to {MAX_BIGINT}")
    return int.from_bytes(payload, "big", signed=True)


_READERS: Final[Mapping[int, Callable[[bytes], Any]]] = {
    DECIMAL_CODE: _read_decimal,
    # ``date.fromisoformat`` refuses text that is not ASCII, so ``_text`` is not needed.
    DATE_CODE: lambda payload: dt.date.fromisoformat(payload.decode()),
    TIME_CODE: lambda payload: dt.time.fromisoformat(_text(payload)),
    NAIVE_CODE: _read_naive,
    AWARE_CODE: _read_aware,
    UUID_CODE: _read_uuid,
    BIGINT_CODE: _read_bigint,
}

# For some codes: a function that decodes the text of a payload, after the checks in ``_lines``.
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
    """Decode many payloads of the extension type ``code``. Thread-safe.

    Raises ``ValueRefusedError`` if a payload is malformed. The error does not say which payload.
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
    """Return the payloads as texts, or ``None`` if they must be decoded one by one.

    The caller decodes one by one if a decimal may be invalid, or if a payload has a line break.
    """
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
    """Return the value in ``raw``, bytes in the form that ``pack`` writes. Thread-safe.

    ``raw`` may come from an attacker. Raises ``ValueRefusedError``, and no other error, if the
    bytes are malformed or the value may not travel.
    """
    value = unpack_parts(raw)
    check(value)
    return value


def unpack_flat(raw: bytes) -> dict[str, Any] | None:
    """Decode a flat map: a map that contains no maps or arrays. Thread-safe.

    Most records are flat, and this is the fastest way to decode them. Returns ``None`` if the value
    is not a flat map or may be invalid; call ``unpack`` in this case. Raises ``ValueRefusedError``,
    and no other error, if the bytes are malformed.
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
    # If the dict has as many entries as the head of the map declares, no key occurred twice.
    declared = raw[0] & 0x0F if raw[0] < 0x90 else int.from_bytes(raw[1:3], "big")
    kinds = set(map(type, value.values()))
    if len(value) != declared or not kinds <= _FLAT or not TEXTS.issuperset(map(type, value)):
        return None
    if float in kinds and any(item != item for item in value.values() if type(item) is float):
        return None
    return value


def unpack_body(raw: bytes) -> dict[str, Any]:
    """Decode the field values of a record. Thread-safe.

    ``raw``: the body of a change; it may come from an attacker. The keys may be in any order.
    Raises ``ValueRefusedError``, and no other error, if the bytes are not a valid map.
    """
    body = unpack_flat(raw)
    if body is None:
        body = unpack(raw)
        if type(body) is not dict:
            raise refused(f"the body of a record is {shown(body)}, not a map")
    return body


def unpack_parts(raw: bytes) -> Any:
    """Decode one value as ``unpack`` does, but do not call ``check`` on the value.

    Use this for a map whose entries may each nest ``MAX_DEPTH`` levels deep: the whole map is then
    deeper than ``check`` allows. The caller must call ``check`` on each entry. Raises
    ``ValueRefusedError``, and no other error, if the bytes are malformed.
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
    """Decode a value from a place that only eventsync writes to. Thread-safe.

    Does not check whether the value may travel. Raises ``ValueRefusedError``, and no other error,
    if the bytes are malformed.
    """
    try:
        return msgpack.unpackb(raw, ext_hook=_decode_special)
    except _BROKEN as error:
        raise _no_value(error) from error


def _no_value(error: Exception) -> ValueRefusedError:
    return refused(f"the bytes are not a msgpack value: {type(error).__name__}: {error}")
