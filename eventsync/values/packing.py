"""Packing: encodes the values that a record may carry as msgpack bytes, and computes digests.

A value *may travel* if it has one of the types below and is within the limits of this module.
``unpacking`` decodes the bytes.

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
"""The limit on the levels of maps and arrays inside one another."""

MAX_ENTRIES: Final = 1024
"""The limit on the entries of one map or array."""

NO_BODY: Final = bytes(32)
"""The digest that the stamp of a delete has, because a delete has no body."""

# Without these limits, a few bytes on the wire could become a number with gigabytes of digits.
MAX_DECIMAL: Final = 1024
"""The limit on the characters of a decimal, and on the places from its first digit to its point."""

MAX_BIGINT: Final = 512
"""The limit on the bytes of an integer."""

# The extension types.
DECIMAL_CODE: Final = 1
DATE_CODE: Final = 2
TIME_CODE: Final = 3
NAIVE_CODE: Final = 4
AWARE_CODE: Final = 5
UUID_CODE: Final = 6
BIGINT_CODE: Final = 7

# The types that msgpack encodes without the hook ``_encode_special``, except integers beyond 64
# bits.
_NATIVE: Final = frozenset({str, int, bool, type(None), bytes})
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, dt.date, UUID})
"""The types whose values need no check. ``float`` is not among them, because NaN may not travel."""

TEXTS: Final = frozenset({str})
"""The only type that the keys of a map may have, as a set for ``issuperset``."""

_UTC: Final = dt.UTC
# The default decimal context rounds to 28 digits; this context does not round.
_EXACT: Final = decimal.Context(
    prec=decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[]
)


def refused(message: str) -> ValueRefusedError:
    """Return, but do not raise, a ``ValueRefusedError`` with a hint at the documentation."""
    return ValueRefusedError(message, hint="see 'Values' in docs/envelope.md for what may travel")


# Makes an ``ExtType`` without the checks of its constructor. The codes of this module are valid.
_ext: Final[Callable[[tuple[int, bytes]], Any]] = partial(tuple.__new__, msgpack.ExtType)


def check(value: Any, *, depth: int = 0) -> None:
    """Raise ``ValueRefusedError`` unless ``value`` and everything inside it may travel.

    ``depth``: the number of maps and arrays that contain ``value``.
    """
    kind = type(value)
    if kind in PLAIN:
        return
    if kind is float:
        if value != value:
            raise refused(
                "NaN cannot travel: NaN does not equal itself, so stores would never agree on it"
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
    """Return the text of a decimal. Raises ``ValueRefusedError`` if the decimal may not travel."""
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
        # Some stores keep every digit, but return 1E+3 as 1000 and -0 as 0.
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


# Python type -> function that returns the code and the payload of the extension type.
_EXTENSIONS: Final[dict[type, Callable[[Any], tuple[int, bytes]]]] = {
    Decimal: _decimal_extension,
    dt.date: _date_extension,
    dt.time: _time_extension,
    dt.datetime: _moment_extension,
    UUID: _uuid_extension,
}


def _encode_special(value: Any) -> Any:
    """Encode a value that msgpack has no native type for. The packer calls this as its hook."""
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
    """Encode a value as ``_encode_special`` does, but give equal decimals equal bytes.

    For example, 1.10 and 1.1 get the same bytes.
    """
    if type(value) is Decimal:
        plain = value.normalize(_EXACT)
        # Stores lose the sign and the exponent of a zero, so every zero gets the same bytes.
        return _ext((DECIMAL_CODE, str(plain).encode() if plain else b"0"))
    return _encode_special(value)


def pack(value: Any) -> bytes:
    """Encode ``value`` as msgpack bytes. Thread-safe.

    Raises ``ValueRefusedError`` if ``value`` may not travel (see ``check``).
    """
    check(value)
    return _packed(_packer.pack, value)


def pack_own(value: Any) -> bytes:
    """Encode ``value`` as ``pack`` does, but without ``check``. Thread-safe.

    Use this only for a value that is known to be valid.
    """
    return _packed(_packer.pack, value)


class _Packer(threading.local):
    """The msgpack packers of one thread. Each packer reuses its buffer for the next value."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(default=_encode_special).pack
        self.pack_canonical: Callable[[Any], bytes] = msgpack.Packer(default=_encode_canonical).pack


_packer: Final = _Packer()


def _packed(pack: Callable[[Any], _T], value: Any) -> _T:
    """Return ``pack(value)``. Raises ``ValueRefusedError`` if ``value`` cannot be encoded."""
    try:
        return pack(value)
    except UnicodeEncodeError as error:
        raise refused("a string holds a lone surrogate, which has no UTF-8 form") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(f"a value cannot be encoded: {error}") from error


def _canonical(value: Any) -> Any:
    """Return a copy of ``value`` with the keys of every map sorted and every -0.0 made 0.0."""
    if type(value) is dict:
        return {key: _canonical(value[key]) for key in sorted(value)}
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is float:
        return value + 0.0  # a zero loses its sign
    return value


def pack_body(body: Mapping[str, Any]) -> bytes:
    """Encode the field values of a record in their canonical form. Thread-safe.

    The keys of every map are sorted, zeros have no sign, and datetimes with a zone are in UTC. The
    same values always give the same bytes. Raises ``ValueRefusedError`` if a value may not travel.
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
    """Return ``item``, a field value of type ``kind``, in a form that msgpack can encode.

    Raises ``ValueRefusedError`` if ``item`` may not travel.
    """
    if kind in _EXTENSIONS:
        return _ext(_EXTENSIONS[kind](item))
    if kind is float and item == item:
        return item + 0.0  # a zero loses its sign
    check(item, depth=1)
    return _canonical(item)


def pack_bodies(bodies: Sequence[Mapping[str, Any]]) -> list[Iterable[bytes]] | None:
    """Encode many bodies column by column. Faster than one ``pack_body`` call for each body.

    Returns columns of parts. Joining the n-th part of every column gives the n-th body. Returns
    ``None`` if the bodies do not all have the same field names, or if a value may not travel.
    Thread-safe.
    """
    if not TEXTS.issuperset(map(type, chain.from_iterable(bodies))):
        return None
    names = sorted(bodies[0])
    if set(map(len, bodies)) != {len(names)} or len(names) > MAX_ENTRIES:
        return None
    # Every body starts with the head of a map. Each field name and field value follow.
    parts: list[Iterable[bytes]] = [repeat(map_head(len(names)), len(bodies))]
    try:
        for name, packed in zip(names, pack_column(names), strict=True):
            parts += (repeat(packed), pack_column(list(map(itemgetter(name), bodies))))
    except (KeyError, TypeError, ValueRefusedError):
        return None
    return parts


def pack_column(items: Sequence[Any]) -> list[bytes]:
    """Encode each of ``items`` as ``pack_body`` encodes a field value. Thread-safe.

    Raises ``ValueRefusedError`` if one of ``items`` may not travel.
    """
    return _packed(_pack_each, items)


def _pack_each(items: Sequence[Any]) -> list[bytes]:
    kinds = set(map(type, items))
    if len(kinds) == 1 and kinds <= _EXTENSIONS.keys():
        # Faster than msgpack: ``_extension_head`` remembers the head, which is often the same.
        extensions = map(_EXTENSIONS[kinds.pop()], items)
        return [_extension_head(code, len(payload)) + payload for code, payload in extensions]
    if not kinds <= _NATIVE:
        items = [_form(item, type(item)) for item in items]
    return list(map(_packer.pack, items))


def map_head(count: int) -> bytes:
    """Return the first bytes of a msgpack map of ``count`` entries. ``count``: at most 65,535."""
    return b"%c" % (0x80 | count) if count < 16 else b"\xde" + count.to_bytes(2, "big")


@lru_cache(maxsize=1024)
def _extension_head(code: int, size: int) -> bytes:
    """Return the msgpack bytes that precede a payload of ``size`` bytes. Pure, cached."""
    return _packer.pack(_ext((code, bytes(size))))[:-size]


def digest_of_body(packed: bytes) -> bytes:
    """Return the SHA-256 digest (32 bytes) of a body that ``pack_body`` made. Thread-safe."""
    return hashlib.sha256(packed).digest()


def digests_of_bodies(packed: Iterable[bytes]) -> list[bytes]:
    """Return the result of ``digest_of_body`` for each body in ``packed``, in the same order."""
    sha256 = hashlib.sha256
    return [sha256(body).digest() for body in packed]


def digest(row: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 digest (32 bytes) of a row. Equal rows have equal digests. Thread-safe.

    Unlike the digest of a body, this digest ignores trailing zeros of decimals, because some stores
    lose them. Values of different types count as different. Raises ``ValueRefusedError`` if a value
    cannot be encoded.
    """
    ordered = {}
    for key in sorted(row):
        item = row[key]
        ordered[key] = item if type(item) in PLAIN else _canonical(item)
    return digest_of_body(_packed(_packer.pack_canonical, ordered))


def short_digest(value: Any) -> bytes:
    """Return the BLAKE2b digest (8 bytes) of one value. Thread-safe.

    Two values have equal digests where ``digest`` would treat the values as equal.
    """
    value = value if type(value) in PLAIN else _canonical(value)
    packed = _packed(_packer.pack_canonical, value)
    return hashlib.blake2b(packed, digest_size=8).digest()


def short_digests(items: Iterable[Any]) -> list[bytes]:
    """Return the result of ``short_digest`` for each of ``items``, in the same order."""
    canonical = [item if type(item) in PLAIN else _canonical(item) for item in items]
    blake2b = hashlib.blake2b
    packed = _packed(lambda each: list(map(_packer.pack_canonical, each)), canonical)
    return [blake2b(one, digest_size=8).digest() for one in packed]


def freeze(value: Any) -> Any:
    """Return a copy of ``value`` in which every dict and list is a new object."""
    if type(value) is dict:
        return {key: freeze(item) for key, item in value.items()}
    if type(value) is list:
        return [freeze(item) for item in value]
    return value
