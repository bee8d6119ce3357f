"""Reading records in Redis: many at once, listed, and compared by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from eventsync.errors import RecordError
from eventsync.stores.redis.pattern import KeyPattern
from eventsync.stores.redis.server import Server

__all__ = ["PAGE", "Rows"]

PAGE: Final = 500
"""How many records to ask for at once."""

_ABSENT: Final = b"-"


class Rows:
    """The records of one type: hashes with ``fields``, or else strings. Thread-safe."""

    def __init__(
        self, server: Server, pattern: KeyPattern, fields: Sequence[str], type: str
    ) -> None:
        self._server = server
        self._pattern = pattern
        self._fields = fields
        self._type = type
        self._read = server.script("rows.lua")
        # By key, the names of records that stand under a name in another form.
        self._others: dict[str, str] = {}

    def fetch(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return what Redis keeps of those records that exist, by key."""
        self.refuse(keys)
        found: dict[str, Any] = {}
        kind = ["h", *self._fields] if self._fields else ["j"]
        for start in range(0, len(keys), PAGE):
            chunk = keys[start : start + PAGE]
            names = [self._pattern.name(key) for key in chunk]
            for key, name, kept in zip(chunk, names, self._read(names, kind), strict=True):
                if kept == 0:
                    raise RecordError(
                        f"the Redis key {name!r} does not hold a "
                        f"{'hash' if self._fields else 'string'}, so it is not a {self._type}",
                        hint="move it away, or give the records another key pattern",
                    )
                if kept is not None:
                    found[key] = kept
        return found

    def listed(self, report: Callable[[RecordError], None] | None = None) -> Iterator[str]:
        """Yield the keys of all records, each once.

        ``report``: called with an error for each name that holds a key in another form.
        """
        seen: set[bytes] = set()
        others: dict[str, str] = {}
        for name in self._server.scan(self._pattern.glob, "hash" if self._fields else "string"):
            if name not in seen:
                seen.add(name)
                try:
                    key = self._pattern.key(name.decode())
                except UnicodeDecodeError:
                    continue  # no key of a record has such a name
                if key is not None:
                    yield key
                elif (other := self._pattern.other_form(name.decode())) is not None:
                    others[other] = self._others[other] = name.decode()
                    if report is not None:
                        report(self._other_error(other))
        self._others = others

    def refuse(self, keys: Iterable[str]) -> None:
        """Raise ``RecordError`` for the first of ``keys`` that ``listed`` found in another form."""
        for key in keys if self._others else ():
            if key in self._others:
                raise self._other_error(key)

    def _other_error(self, key: str) -> RecordError:
        written = self._pattern.name(key)
        return RecordError(
            f"{self._type} {key!r} stands under the Redis key {self._others[key]!r}, but eventsync "
            f"writes {written!r}: it would add a second one",
            hint=f"rename it to {written!r}, or declare the key field as str",
        )

    def trace(self, kept: Any) -> bytes:
        """Return a digest of what was read, the same as ``trace`` of ``commit.lua``."""
        if kept is None:
            return _ABSENT
        if not self._fields:
            return hashlib.sha1(kept, usedforsecurity=False).hexdigest().encode()
        texts = [_ABSENT if v is None else b"%d:%b" % (len(v), v) for v in kept]
        return hashlib.sha1(b"".join(texts), usedforsecurity=False).hexdigest().encode()
