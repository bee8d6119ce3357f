"""Packing: the values that a record may carry, encoded as msgpack bytes; and their digests.

A value *may travel* if it is of one of the types below and within the limits. ``unpacking`` decodes
the bytes.

Native msgpack: nil, bool, integers of 64 bits, float 64, str, bin, array, map with string keys.
Every other type is an extension type with a payload that any language can read:

==== ======================= ===========================================================
code type                    payload
==== ======================= ===========================================================
1    decimal                 ASCII text, as ``-12.340`` or ``1E-9``; finite, at most 1,024
                             characters, and its first digit at most 1,024 places from the point
2    date                    ASCII text, ISO 8601: ``2026-11-24``
3    time                    ASCII text, ISO 8601: ``10:15:30.250000``, with its offset if any
4    datetime without zone   ASCII text, ISO 8601: ``2026-11-24T10:15:30``
5    datetime with zone      ASCII text, ISO 8601 in UTC: ``2026-11-24T09:15:30+00:00``
6    UUID                    16 bytes, big-endian
7    integer beyond 64 bits  two's complement, big-endian, as short as possible; 512 bytes at most
==== ======================= ===========================================================
"""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache, partial
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Final, TypeVar
from uuid import UUID

import msgpack

from eventsync.errors import ValueRefusedError

__all__ = [
    "AWARE_CODE",
    "BIGINT_CODE",
    "DATE_CODE",
    "DECIMAL_CODE",
    "MAX_BIGINT",
    "MAX_DECIMAL",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "NAIVE_CODE",
    "NO_BODY",
    "PLAIN",
    "TEXTS",
    "TIME_CODE",
    "UUID_CODE",
    "check",
    "digest",
    "digest_of_body",
    "digests_of_bodies",
    "freeze",
    "map_head",
    "pack",
    "pack_bodies",
    "pack_body",
    "pack_column",
    "pack_own",
    "refused",
    "short_digest",
    "short_digests",
]

_T = TypeVar("_T")

MAX_DEPTH: Final = 16
"""The most levels of maps and arrays."""

MAX_ENTRIES: Final = 1024
"""The most entries that one map or array may have."""

NO_BODY: Final = bytes(32)
"""The digest of a delete, which has no body."""

# Limits that stop a few bytes on the wire from becoming gigabytes of digits.
MAX_DECIMAL: Final = 1024
"""The most characters of a decimal, and the most places between its first digit and its point."""

MAX_BIGINT: Final = 512
"""The most bytes that an integer may have."""

# The extension types.
DECIMAL_CODE: Final = 1
DATE_CODE: Final = 2
TIME_CODE: Final = 3
NAIVE_CODE: Final = 4
AWARE_CODE: Final = 5
UUID_CODE: Final = 6
BIGINT_CODE: Final = 7

# The types whose values msgpack encodes without our help.
_NATIVE: Final = frozenset({str, int, bool, type(None), bytes})
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, dt.date, UUID})
"""The types of which every value may travel. ``float`` is not one of them, because of NaN."""

TEXTS: Final = frozenset({str})
"""The types that a key of a map may have."""

_UTC: Final = dt.UTC
# The context of the running thread rounds to 28 digits; this one is exact.
_EXACT: Final = decimal.Context(
    prec=decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[]
)


def refused(message: str) -> ValueRefusedError:
    """Return the error for a value that may not travel, or for bytes that are no value."""
    return ValueRefusedError(message, hint="see 'Values' in docs/envelope.md for what may travel")


# Makes an ``ExtType`` without the checks of its constructor, because our codes are valid.
_ext: Final[Callable[[tuple[int, bytes]], Any]] = partial(tuple.__new__, msgpack.ExtType)


def check(value: Any, *, depth: int = 0) -> None:
    """Raise ``ValueRefusedError`` unless ``value`` and everything inside it may travel.

    ``depth``: the number of maps and arrays around it.
    """
    kind = type(value)
    if kind in PLAIN:
        return
    if kind is float:
        if value != value:
            raise refused(
                "NaN cannot travel: it does not equal itself, so stores would never agree on it"
            )
        return
    if kind is dict or kind is list:
        _check_container(value, depth + 1)
        return
    if kind is Decimal:
        _decimal_text(value)
        return
    if kind is dt.datetime or kind is dt.time:
        return
    raise _unknown(kind)


def _unknown(kind: type) -> ValueRefusedError:
    return refused(f"a value of type {kind.__module__}.{kind.__qualname__} cannot travel")


def _decimal_text(number: Decimal) -> str:
    """Return the text of a decimal. Raise ``ValueRefusedError`` if it may not travel."""
    if not number.is_finite():
        raise refused(f"Decimal {number} cannot travel: only finite decimals can")
    if abs(number.adjusted()) <= MAX_DECIMAL and len(text := str(number)) <= MAX_DECIMAL:
        return text
    raise refused(f"a decimal has more than {MAX_DECIMAL} digits, or too large an exponent")


def _check_container(value: dict[Any, Any] | list[Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise refused(f"maps and arrays nest deeper than {MAX_DEPTH} levels")
    if len(value) > MAX_ENTRIES:
        raise refused(f"a map or array has {len(value)} entries; {MAX_ENTRIES} is the limit")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise refused(f"a map key is {type(key).__name__}; only strings can be keys")
        items: Any = value.values()
    else:
        items = value
    for item in items:
        if type(item) not in PLAIN:
            check(item, depth=depth)


def _decimal_extension(number: Decimal) -> tuple[int, bytes]:
    text = _decimal_text(number)
    if "E+" in text or (text[0] == "-" and not number):
        # Even stores that keep every digit write 1E+3 as 1000, and zero without a sign.
        text = format(number if number else abs(number), "f")
    return DECIMAL_CODE, text.encode()


def _date_extension(date: dt.date) -> tuple[int, bytes]:
    return DATE_CODE, date.isoformat().encode()


def _time_extension(time: dt.time) -> tuple[int, bytes]:
    return TIME_CODE, time.isoformat().encode()


def _moment_extension(moment: dt.datetime) -> tuple[int, bytes]:
    if moment.tzinfo is None:
        return NAIVE_CODE, moment.isoformat().encode()
    return AWARE_CODE, moment.astimezone(_UTC).isoformat().encode()


def _uuid_extension(uuid: UUID) -> tuple[int, bytes]:
    return UUID_CODE, uuid.int.to_bytes(16, "big")


# For each type that is encoded as an extension type, the function that returns code and payload.
_EXTENSIONS: Final[dict[type, Callable[[Any], tuple[int, bytes]]]] = {
    Decimal: _decimal_extension,
    dt.date: _date_extension,
    dt.time: _time_extension,
    dt.datetime: _moment_extension,
    UUID: _uuid_extension,
}


def _encode_special(value: Any) -> Any:
    """Encode a value that msgpack cannot encode by itself; the hook of its packer."""
    kind = type(value)
    if kind in _EXTENSIONS:
        return _ext(_EXTENSIONS[kind](value))
    if kind is int:
        size = (value if value >= 0 else ~value).bit_length() // 8 + 1
        if size > MAX_BIGINT:
            raise refused(f"an integer has {size} bytes; {MAX_BIGINT} is the limit")
        return _ext((BIGINT_CODE, value.to_bytes(size, "big", signed=True)))
    raise _unknown(kind)


def _encode_canonical(value: Any) -> Any:
    """Encode as ``_encode_special`` does, but give equal decimals (1.10 and 1.1) equal bytes."""
    if type(value) is Decimal:
        plain = value.normalize(_EXACT)
        # Stores lose the sign and the exponent of a zero, so these must make no difference.
        return _ext((DECIMAL_CODE, str(plain).encode() if plain else b"0"))
    return _encode_special(value)


def pack(value: Any) -> bytes:
    """Encode ``value`` as msgpack bytes. Thread-safe.

    Raises ``ValueRefusedError`` if it may not travel (see ``check``).
    """
    check(value)
    return _packed(_packer.pack, value)


def pack_own(value: Any) -> bytes:
    """Encode a ``value`` that is known to be valid: as ``pack`` does, without ``check``.

    Thread-safe.
    """
    return _packed(_packer.pack, value)


class _Packer(threading.local):
    """The msgpack packers of one thread. They keep their buffers from value to value."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(default=_encode_special).pack
        self.pack_canonical: Callable[[Any], bytes] = msgpack.Packer(default=_encode_canonical).pack


_packer: Final = _Packer()


def _packed(pack: Callable[[Any], _T], value: Any) -> _T:
    """Call ``pack`` with ``value``. Raises only ``ValueRefusedError``."""
    try:
        return pack(value)
    except UnicodeEncodeError as error:
        raise refused("a string holds a lone surrogate, which has no UTF-8 form") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(f"a value cannot be encoded: {error}") from error


def _canonical(value: Any) -> Any:
    """Return ``value`` with the keys of every map in order and no negative zero."""
    if type(value) is dict:
        return {key: _canonical(value[key]) for key in sorted(value)}
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is float:
        return value + 0.0  # a zero loses its sign
    return value


def pack_body(body: Mapping[str, Any]) -> bytes:
    """Encode the field values of a record in their canonical form. Thread-safe.

    The keys of every map are in order, zeros have no sign, and datetimes with a zone are in UTC.
    Values that a store returns as it got them have the same bytes again. Raises
    ``ValueRefusedError`` if a value may not travel.
    """
    if len(body) > MAX_ENTRIES or not TEXTS.issuperset(map(type, body)):
        _check_container(dict(body), 1)  # raises the error that says what is wrong
    return _packed(_pack_ordered, body)


def _pack_ordered(body: Mapping[str, Any]) -> bytes:
    ordered = {}
    for name in sorted(body):
        item = body[name]
        kind = type(item)
        if kind not in _NATIVE:
            item = _form(item, kind)
        ordered[name] = item
    return _packer.pack(ordered)


def _form(item: Any, kind: type) -> Any:
    """Return a value of a body, of the type ``kind``, in a form that msgpack can encode."""
    if kind in _EXTENSIONS:
        return _ext(_EXTENSIONS[kind](item))
    if kind is float and item == item:
        return item + 0.0  # a zero loses its sign
    check(item, depth=1)
    return _canonical(item)


def pack_bodies(bodies: Sequence[Mapping[str, Any]]) -> list[Iterable[bytes]] | None:
    """Encode many bodies column by column, which takes less time than ``pack_body`` of each.

    Returns columns of parts: the first parts of all columns, joined, are the first body, and so on.
    Returns ``None`` if the bodies do not have the same names, or if a value may not travel.
    Thread-safe.
    """
    if not TEXTS.issuperset(map(type, chain.from_iterable(bodies))):
        return None
    names = sorted(bodies[0])
    if set(map(len, bodies)) != {len(names)} or len(names) > MAX_ENTRIES:
        return None
    # Every body starts with the head of a map; then follow each name and the body's value of it.
    parts: list[Iterable[bytes]] = [repeat(map_head(len(names)), len(bodies))]
    try:
        for name, packed in zip(names, pack_column(names), strict=True):
            parts += (repeat(packed), pack_column(list(map(itemgetter(name), bodies))))
    except (KeyError, TypeError, ValueRefusedError):
        return None
    return parts


def pack_column(items: Sequence[Any]) -> list[bytes]:
    """Encode each of ``items`` as a value of a body. Thread-safe.

    Raises ``ValueRefusedError`` if one of them may not travel.
    """
    return _packed(_pack_each, items)


def _pack_each(items: Sequence[Any]) -> list[bytes]:
    kinds = set(map(type, items))
    if len(kinds) == 1 and kinds <= _EXTENSIONS.keys():
        # Without msgpack: the heads of most extension types are the same.
        extensions = map(_EXTENSIONS[kinds.pop()], items)
        return [_extension_head(code, len(payload)) + payload for code, payload in extensions]
    if not kinds <= _NATIVE:
        items = [_form(item, type(item)) for item in items]
    return list(map(_packer.pack, items))


def map_head(count: int) -> bytes:
    """Return the bytes with which a map of ``count`` entries, at most 65,535, begins."""
    return b"%c" % (0x80 | count) if count < 16 else b"\xde" + count.to_bytes(2, "big")


@lru_cache(maxsize=1024)
def _extension_head(code: int, size: int) -> bytes:
    """Return the bytes before the payload of an extension type. A memo of a pure function."""
    return _packer.pack(_ext((code, bytes(size))))[:-size]


def digest_of_body(packed: bytes) -> bytes:
    """Return the SHA-256 of the bytes of a body: 32 bytes. Thread-safe."""
    return hashlib.sha256(packed).digest()


def digests_of_bodies(packed: Iterable[bytes]) -> list[bytes]:
    """Return what ``digest_of_body`` returns for each of many bodies."""
    sha256 = hashlib.sha256
    return [sha256(body).digest() for body in packed]


def digest(row: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of a row's values: 32 bytes, equal for equal rows. Thread-safe.

    Unlike the digest of ``pack_body`` it ignores trailing zeros of decimals, which some stores
    lose. Values of different types count as different.
    """
    ordered = {}
    for key in sorted(row):
        item = row[key]
        ordered[key] = item if type(item) in PLAIN else _canonical(item)
    return digest_of_body(_packed(_packer.pack_canonical, ordered))


def short_digest(value: Any) -> bytes:
    """Return eight bytes of BLAKE2b of one value. Equality is as for ``digest``. Thread-safe."""
    value = value if type(value) in PLAIN else _canonical(value)
    packed = _packed(_packer.pack_canonical, value)
    return hashlib.blake2b(packed, digest_size=8).digest()


def short_digests(items: Iterable[Any]) -> list[bytes]:
    """Return what ``short_digest`` returns for each of many values."""
    canonical = [item if type(item) in PLAIN else _canonical(item) for item in items]
    blake2b = hashlib.blake2b
    packed = _packed(lambda each: list(map(_packer.pack_canonical, each)), canonical)
    return [blake2b(one, digest_size=8).digest() for one in packed]


def freeze(value: Any) -> Any:
    """Return a deep copy of ``value``: it shares no list or dict with it."""
    if type(value) is dict:
        return {key: freeze(item) for key, item in value.items()}
    if type(value) is list:
        return [freeze(item) for item in value]
    return value
