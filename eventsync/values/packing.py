"""The values that a record may carry, and their one encoding as msgpack bytes.

It owns what may travel, and in which form; ``unpacking`` reads that. It knows nothing of records,
versions or stores.

Native msgpack: nil, bool, integers of 64 bits, float 64, str, bin, array, map with string keys.
Everything else travels as an extension type whose payload other languages can read without help:

==== ======================= ===========================================================
code type                    payload
==== ======================= ===========================================================
1    decimal                 ASCII text, as ``-12.340`` or ``1E-9``; finite, at most 1,024
                             characters, and its first digit at most 1,024 places from the point
2    date                    ASCII text, ISO 8601: ``2026-11-24``
3    time                    ASCII text, ISO 8601: ``10:15:30.250000``, offset when it has one
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
"""How deep maps and arrays may nest."""

MAX_ENTRIES: Final = 1024
"""How many entries one map or array may have."""

NO_BODY: Final = bytes(32)
"""In place of the digest of a body that is not there (a delete's)."""

# Bounds that keep a few bytes on the wire from becoming gigabytes where they are written out.
MAX_DECIMAL: Final = 1024
"""How many characters a decimal may have, and how far from its point its first digit may be."""

MAX_BIGINT: Final = 512
"""How many bytes an integer may have."""

# The extension types.
DECIMAL_CODE: Final = 1
DATE_CODE: Final = 2
TIME_CODE: Final = 3
NAIVE_CODE: Final = 4
AWARE_CODE: Final = 5
UUID_CODE: Final = 6
BIGINT_CODE: Final = 7

# What msgpack encodes by itself as it is.
_NATIVE: Final = frozenset({str, int, bool, type(None), bytes})
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, dt.date, UUID})
"""The types of values that need no look inside. Floats are not among them: NaN."""

TEXTS: Final = frozenset({str})
"""The types that the keys of a map may be of."""

_UTC: Final = dt.UTC
# Exact, unlike the context of the running thread, which rounds to 28 digits.
_EXACT: Final = decimal.Context(
    prec=decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[]
)


def refused(message: str) -> ValueRefusedError:
    """The error of a value that may not travel, or of bytes that are none."""
    return ValueRefusedError(message, hint="see 'Values' in docs/envelope.md for what may travel")


# Without its constructor's look at a code and bytes that are ours.
_ext: Final[Callable[[tuple[int, bytes]], Any]] = partial(tuple.__new__, msgpack.ExtType)


def check(value: Any, *, depth: int = 0) -> None:
    """Raise ``ValueRefusedError`` unless ``value`` and all inside it may travel.

    ``depth`` is how many maps and arrays already surround it.
    """
    kind = type(value)
    if kind in PLAIN:
        return
    if kind is float:
        if value != value:
            raise refused(
                "NaN cannot travel: it is not equal to itself, so stores never agree on it"
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
    """The text of a decimal that may travel."""
    if not number.is_finite():
        raise refused(f"Decimal {number} cannot travel: only finite decimals can")
    if abs(number.adjusted()) <= MAX_DECIMAL and len(text := str(number)) <= MAX_DECIMAL:
        return text
    raise refused(f"a decimal has over {MAX_DECIMAL} digits or so large an exponent")


def _check_container(value: dict[Any, Any] | list[Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise refused(f"values nest deeper than {MAX_DEPTH}")
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
        # Stores that keep all its digits still write 1E+3 as 1000, and zero without a sign.
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


# By the type of a value that always travels as an extension type: code and payload of that.
_EXTENSIONS: Final[dict[type, Callable[[Any], tuple[int, bytes]]]] = {
    Decimal: _decimal_extension,
    dt.date: _date_extension,
    dt.time: _time_extension,
    dt.datetime: _moment_extension,
    UUID: _uuid_extension,
}


def _encode_special(value: Any) -> Any:
    """Msgpack's hook for what it cannot encode by itself."""
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
    """As ``_encode_special``, but equal decimals get equal bytes (1.10 and 1.1)."""
    if type(value) is Decimal:
        plain = value.normalize(_EXACT)
        # The sign of a zero and its exponent are lost by stores; they must not matter.
        return _ext((DECIMAL_CODE, str(plain).encode() if plain else b"0"))
    return _encode_special(value)


def pack(value: Any) -> bytes:
    """Encode ``value`` as msgpack bytes. Thread-safe.

    Raises ``ValueRefusedError`` for what may not travel (see ``check``).
    """
    check(value)
    return _packed(_packer.pack, value)


def pack_own(value: Any) -> bytes:
    """As ``pack``, of what is known to be fit for it: the same bytes, without a look at each part.

    Thread-safe.
    """
    return _packed(_packer.pack, value)


class _Packer(threading.local):
    """What msgpack makes of a value. Its buffers are worth keeping, for one thread each."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(default=_encode_special).pack
        self.pack_canonical: Callable[[Any], bytes] = msgpack.Packer(default=_encode_canonical).pack


_packer: Final = _Packer()


def _packed(pack: Callable[[Any], _T], value: Any) -> _T:
    """What ``pack`` makes of ``value``. Raises ``ValueRefusedError``, and nothing else."""
    try:
        return pack(value)
    except UnicodeEncodeError as error:
        raise refused("a string holds a lone surrogate, which has no UTF-8 form") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(f"a value cannot be encoded: {error}") from error


def _canonical(value: Any) -> Any:
    """``value`` with every map inside it in the order of its keys."""
    if type(value) is dict:
        return {key: _canonical(value[key]) for key in sorted(value)}
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is float:
        # The sign of a zero again.
        return value + 0.0
    return value


def pack_body(body: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a body: as ``pack``, with the keys of every map in order. Thread-safe.

    Zeros have no sign, and datetimes with a zone are in UTC. A body that has been to a store and
    back has the same bytes, unless the store keeps it in a form of its own.
    Raises ``ValueRefusedError`` for what may not travel.
    """
    if len(body) > MAX_ENTRIES or not TEXTS.issuperset(map(type, body)):
        _check_container(dict(body), 1)  # says what is wrong
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
    """What msgpack is given for an item of a body that is not native to it, of type ``kind``."""
    if kind in _EXTENSIONS:
        return _ext(_EXTENSIONS[kind](item))
    if kind is float and item == item:
        return item + 0.0  # a zero loses its sign
    check(item, depth=1)
    return _canonical(item)


def pack_bodies(bodies: Sequence[Mapping[str, Any]]) -> list[Iterable[bytes]] | None:
    """What ``pack_body`` makes of each, in parts to be joined, one of every item for each body.

    Made name by name, which is quicker. ``None`` unless all have the same names, or when one may
    not travel. Thread-safe.
    """
    if not TEXTS.issuperset(map(type, chain.from_iterable(bodies))):
        return None
    names = sorted(bodies[0])
    if set(map(len, bodies)) != {len(names)} or len(names) > MAX_ENTRIES:
        return None
    # The bytes of all bodies begin alike; then comes each name, and what each body has under it.
    parts: list[Iterable[bytes]] = [repeat(map_head(len(names)), len(bodies))]
    try:
        for name, packed in zip(names, pack_column(names), strict=True):
            parts += (repeat(packed), pack_column(list(map(itemgetter(name), bodies))))
    except (KeyError, TypeError, ValueRefusedError):
        return None
    return parts


def pack_column(items: Sequence[Any]) -> list[bytes]:
    """The bytes of each of ``items``, as they are in a body. Thread-safe.

    Raises ``ValueRefusedError`` when one of them may not travel.
    """
    return _packed(_pack_each, items)


def _pack_each(items: Sequence[Any]) -> list[bytes]:
    kinds = set(map(type, items))
    if len(kinds) == 1 and kinds <= _EXTENSIONS.keys():
        # Most of what it takes to have msgpack write an extension type is the same each time.
        extensions = map(_EXTENSIONS[kinds.pop()], items)
        return [_extension_head(code, len(payload)) + payload for code, payload in extensions]
    if not kinds <= _NATIVE:
        items = [_form(item, type(item)) for item in items]
    return list(map(_packer.pack, items))


def map_head(count: int) -> bytes:
    """The bytes with which a map of ``count`` entries begins; at most 65,535."""
    return b"%c" % (0x80 | count) if count < 16 else b"\xde" + count.to_bytes(2, "big")


@lru_cache(maxsize=1024)
def _extension_head(code: int, size: int) -> bytes:
    """What comes before the payload of an extension type. A memo of a pure function."""
    return _packer.pack(_ext((code, bytes(size))))[:-size]


def digest_of_body(packed: bytes) -> bytes:
    """The SHA-256 of the bytes of a body: 32 bytes. Thread-safe."""
    return hashlib.sha256(packed).digest()


def digests_of_bodies(packed: Iterable[bytes]) -> list[bytes]:
    """As ``digest_of_body``, for many."""
    sha256 = hashlib.sha256
    return [sha256(body).digest() for body in packed]


def digest(row: Mapping[str, Any]) -> bytes:
    """The SHA-256 of what a row says, whatever form its store gives its decimals: 32 bytes.

    As that of ``pack_body``, but decimals are taken without trailing zeros: rows that are equal
    have equal digests, where values of different types count as different. Thread-safe.
    """
    ordered = {}
    for key in sorted(row):
        item = row[key]
        ordered[key] = item if type(item) in PLAIN else _canonical(item)
    return digest_of_body(_packed(_packer.pack_canonical, ordered))


def short_digest(held: Any) -> bytes:
    """Eight bytes of a digest of one value, whatever form its store gives its decimals: equal for
    equal values, as ``digest``. Thread-safe.
    """
    held = held if type(held) in PLAIN else _canonical(held)
    packed = _packed(_packer.pack_canonical, held)
    return hashlib.blake2b(packed, digest_size=8).digest()


def short_digests(items: Iterable[Any]) -> list[bytes]:
    """As ``short_digest``, for many."""
    canonical = [item if type(item) in PLAIN else _canonical(item) for item in items]
    blake2b = hashlib.blake2b
    packed = _packed(lambda each: list(map(_packer.pack_canonical, each)), canonical)
    return [blake2b(one, digest_size=8).digest() for one in packed]


def freeze(value: Any) -> Any:
    """A copy of ``value`` that no later change to a list or dict inside it can reach."""
    if type(value) is dict:
        return {key: freeze(item) for key, item in value.items()}
    if type(value) is list:
        return [freeze(item) for item in value]
    return value
