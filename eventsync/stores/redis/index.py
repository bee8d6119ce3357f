"""The version index of a Redis store: entries and outbox, in one hash slot with the data.

A transaction takes no lock. It notes what it reads, and its commit takes effect only if nothing of
that has changed. Otherwise it raises ``UndoneError``, and the caller begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from uuid import uuid4

from eventsync.changes.stamp import Stamp
from eventsync.errors import ConfigError, RejectedError
from eventsync.index import (
    Entry,
    Index,
    IndexTransaction,
    Intent,
    Outgoing,
    Presence,
    UndoneError,
)
from eventsync.stores.redis.codec import framed
from eventsync.stores.redis.server import Database, Script, Server

__all__ = ["Data", "RedisIndex", "RedisTransaction"]

_BORN: Final = "born"  # the mark with which an index is told from the one that replaces it
_NO_ECHO: Final = 0xFFFFFFFF
_SEQUENCE: Final = 20  # the low bits of an outbox number: the counter within a millisecond


@dataclass(slots=True, frozen=True)
class Data:
    """A write to the data of one record: the parts of an operation of ``commit.lua``.

    ``sets``, ``drops`` and ``fresh`` are framed. ``sets`` of the action ``j`` is the string itself.
    """

    action: bytes
    sets: bytes = b""
    drops: bytes = b""
    fresh: bytes = b""


@dataclass(slots=True, frozen=True)
class Layout:
    """How the records of a type are stored in Redis.

    ``fields``: the names of a hash's fields, empty for strings. ``life``: milliseconds until a
    record expires, ``None`` if it does not. ``indexed``: the fields that have index sets.
    """

    fields: tuple[str, ...] = ()
    life: int | None = None
    indexed: tuple[str, ...] = ()


class RedisIndex(Index):
    """The versions of a Redis store, in keys named ``eventsync:{slot}:...`` beside its data.

    ``slot``: the text between the braces. On Redis Cluster it must be the hash tag of the records'
    keys. Two stores with records of the same type in one database need two slots. ``prefix``:
    replaces ``eventsync``.
    """

    attempts: ClassVar[int] = 60

    def __init__(
        self, database: Database, *, slot: str = "eventsync", prefix: str = "eventsync"
    ) -> None:
        if not slot or set("{}") & set(slot + prefix):
            raise ConfigError(
                f"slot={slot!r} and prefix={prefix!r} cannot name a version index: slot must not "
                "be empty, and neither may contain braces"
            )
        self.server = Server.of(database)
        self.slot = slot
        self._base = f"{prefix}:{{{slot}}}"
        self._commit: Script = self.server.script("commit.lua")
        self._born: str | None = None

    def __repr__(self) -> str:
        return f"RedisIndex({self.server.address!r}, {self._base!r})"

    @contextmanager
    def transaction(self) -> Iterator[RedisTransaction]:
        """Begin; commit at the end of the block.

        Raises ``UndoneError`` if another writer changed what was read; then nothing is written.
        """
        transaction = RedisTransaction(self)
        yield transaction
        transaction.commit()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        first = f"({after}" if after else "-"
        keys: set[str] = set()
        for each in Presence if presence is None else (presence,):
            found = self.server.call(
                "ZRANGEBYLEX", self.keys_name(type, each), first, "+", "LIMIT", 0, limit
            )
            keys.update(key.decode() for key in found)
        entries = self.read_entries(type, sorted(keys)[:limit])
        return [
            (key, entry)
            for key, entry in entries.items()
            if presence is None or entry.presence is presence
        ]

    def counts(self, type: str) -> dict[Presence, int]:
        return {
            each: int(self.server.call("ZCARD", self.keys_name(type, each))) for each in Presence
        }

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        with self.server.errors():
            waiting = self.server.client.xrange(self.outbox_name, count=limit)
        found = []
        for id, parts in waiting:
            millis, _, sequence = id.decode().partition("-")
            number = int(millis) << _SEQUENCE | int(sequence)
            found.append(Outgoing(number, parts[b"type"].decode(), parts[b"body"]))
        return found

    def sent(self, numbers: Sequence[int]) -> None:
        if numbers:
            mask = (1 << _SEQUENCE) - 1
            ids = [f"{number >> _SEQUENCE}-{number & mask}" for number in numbers]
            self.server.call("XDEL", self.outbox_name, *ids)

    def load_mark(self, name: str) -> str:
        text = self.server.call("HGET", f"{self._base}:mark", name)
        return text.decode() if text else ""

    def marks(self, prefix: str) -> dict[str, str]:
        with self.server.errors():
            found = self.server.client.hgetall(f"{self._base}:mark")
        named = {name.decode(): text.decode() for name, text in found.items()}
        return {name: text for name, text in named.items() if name.startswith(prefix)}

    def save_marks(self, marks: Mapping[str, str]) -> None:
        saved = [part for mark in marks.items() if mark[1] for part in mark]
        removed = [name for name, text in marks.items() if not text]
        if saved:
            self.server.call("HSET", f"{self._base}:mark", *saved)
        if removed:
            self.server.call("HDEL", f"{self._base}:mark", *removed)

    def close(self) -> None:
        self.server.close()

    # -- for the accessors of this store -----------------------------------------------------------

    def register(self, type: str, place: str) -> None:
        """Note under which pattern the records of a type are. Idempotent.

        Raises ``ConfigError`` if another pattern is noted, because versions of records in one place
        say nothing about those in another.
        """
        name = f"{self._base}:records"
        if self._born is None:
            self.accept_loss()
        self.server.call("HSETNX", name, type, place)
        noted = self.server.call("HGET", name, type)
        if noted is not None and noted.decode() != place:
            raise ConfigError(
                f"the version index {self._base} belongs to another store, which keeps {type} "
                f"under {noted.decode()!r}; this store keeps it under {place!r}",
                hint="give each store a slot of its own: Store(..., index=RedisIndex(..., "
                'slot="..."))',
            )

    def is_lost(self) -> bool:
        """Return whether this index was removed, as by FLUSHALL, since this process opened it."""
        return self._born is not None and self.load_mark(_BORN) != self._born

    def accept_loss(self) -> None:
        """Go on with the index as it is now. Idempotent."""
        name = f"{self._base}:mark"
        self.server.call("HSETNX", name, _BORN, uuid4().hex)
        self._born = self.load_mark(_BORN)

    @property
    def base(self) -> str:
        """The beginning of the names of all keys of this index."""
        return self._base

    @property
    def commands(self) -> list[list[str]]:
        """The commands that this index runs, each with the name of one of its keys."""
        name = f"{self._base}:version:x"
        return [
            ["EVALSHA", "0", "0"],
            ["HGET", name, "f"],
            ["HSET", name, "f", "v"],
            ["HSETNX", name, "f", "v"],
            ["HDEL", name, "f"],
            ["ZADD", name, "0", "m"],
            ["ZREM", name, "m"],
            ["ZCARD", name],
            ["ZRANGEBYLEX", name, "-", "+"],
            ["XADD", name, "*", "f", "v"],
            ["XDEL", name, "0-1"],
            ["XRANGE", name, "-", "+"],
        ]

    def missing(self) -> str:
        if self.server.call("EXISTS", f"{self._base}:records"):
            return ""
        return f"the version index {self._base} at {self.server.address}"

    def read_entries(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of those of ``keys`` that have one."""
        if not keys:
            return {}
        found = self.server.call("HMGET", self.version_name(type), *keys)
        return {k: _unpacked(raw) for k, raw in zip(keys, found, strict=True) if raw is not None}

    def version_name(self, type: str) -> str:
        """Return the name of the hash of a type's entries."""
        return f"{self._base}:version:{type}"

    def keys_name(self, type: str, presence: Presence) -> str:
        """Return the name of the sorted set of the keys of entries of one type and presence."""
        return f"{self._base}:{presence.name.lower()}:{type}"

    @property
    def outbox_name(self) -> str:
        """The name of the stream of envelopes that wait to be published."""
        return f"{self._base}:outbox"

    def set_name(self, type: str, field: str, text: str) -> str:
        """Return the name of the index set of records with this value in that field."""
        return f"{self._base}:by:{type}:{field.replace('%', '%25').replace(':', '%3A')}:{text}"

    def commit(
        self,
        type: str,
        layout: Layout,
        operations: Mapping[str, Sequence[bytes]],
        names: Sequence[str],
        outgoing: Iterable[tuple[str, bytes]] = (),
    ) -> dict[str, Entry]:
        """Run ``commit.lua``: operations by record key, and the names of the records' Redis keys.

        Returns the stored entries that are not older than the new ones, or have the same version.
        Raises ``UndoneError``, ``RejectedError``.
        """
        header = [b"" if layout.life is None else b"%d" % layout.life, framed(layout.fields)]
        for field in layout.indexed:
            header.append(self.set_name(type, field, "").encode())
            header.append(f"{self._base}:in:{type}:{field}".encode())
        keys = [
            self.version_name(type),
            *(self.keys_name(type, presence) for presence in Presence),
            self.outbox_name,
            *names,
        ]
        arguments: list[Any] = [framed(header), len(operations)]
        arguments += [framed((key, *op)) for key, op in operations.items()]
        for of_type, body in outgoing:
            arguments += (of_type, body)
        code, *rest = self._commit(keys, arguments)
        if code == 0:
            raise UndoneError(
                f"other writers kept changing {type} in {self._base}",
                hint="the write is tried again",
            )
        if code == 1:
            raise RejectedError(
                f"the Redis key {names[rest[0] - 1]!r} holds a {rest[1].decode()}, so it is not a "
                f"{type}",
                hint="move it away, or give the records another key pattern",
            )
        order = list(operations)
        return {
            order[place - 1]: _unpacked(raw)
            for place, raw in zip(rest[::2], rest[1::2], strict=True)
        }


class RedisTransaction(IndexTransaction):
    """A transaction about records of one type; nothing is written before its commit.

    ``newest_wins``: an entry takes effect only if the stored one is older. ``met``: after the
    commit, the stored entries that are not older, or have the same version. ``seen``: the rows that
    were read.
    """

    intents: ClassVar[bool] = False

    def __init__(self, index: RedisIndex) -> None:
        self.index = index
        self.layout = Layout()
        self.newest_wins = False
        self.met: dict[str, Entry] = {}
        self.seen: dict[str, Mapping[str, Any]] = {}
        self._type: str | None = None
        self._read: dict[str, bytes] = {}
        self._written: dict[str, bytes] = {}
        self._entries: dict[str, Entry | None] = {}
        self._names: dict[str, str] = {}
        self._rows: dict[str, bytes] = {}
        self._data: dict[str, Data] = {}
        self._texts: dict[str, bytes] = {}
        self._outgoing: list[tuple[str, bytes]] = []

    def _of(self, type: str) -> None:
        if self._type not in (None, type):
            raise ConfigError(f"one transaction cannot be about both {self._type} and {type}")
        self._type = type

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        self._of(type)
        missing = [key for key in keys if key not in self._read]
        if missing:
            found = self.index.server.call("HMGET", self.index.version_name(type), *missing)
            for key, raw in zip(missing, found, strict=True):
                self._read[key] = raw or b""
        entries: dict[str, Entry] = {}
        for key in keys:
            raw = self._read[key]
            entry = self._entries[key] if key in self._entries else raw and _unpacked(raw)
            if entry:
                entries[key] = entry
        return entries

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self._of(type)
        for key, entry in entries.items():
            self._written[key] = _packed(entry)
            self._entries[key] = entry

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self._of(type)
        for key in keys:
            self._written[key] = b"-"
            self._entries[key] = None

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        self.send(type, bodies)

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self._outgoing.extend((type, body) for body in bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Do nothing: what is not committed was never written."""

    def keep(self) -> None:
        """Do nothing, for the same reason."""

    # -- data --------------------------------------------------------------------------------------

    def saw(self, key: str, name: str, trace: bytes, texts: bytes) -> None:
        """Note what was read of a record's data, which must still be the same at the commit.

        ``trace``: its digest. ``texts``: of its values in index sets, in case only its version is
        written.
        """
        self._names[key] = name
        self._rows.setdefault(key, trace)
        self._texts.setdefault(key, texts)

    def stage(self, key: str, name: str, data: Data, texts: bytes) -> None:
        """Write data with the commit, and put the record into its index sets."""
        self._names[key] = name
        self._data[key] = data
        self._texts[key] = texts

    def commit(self) -> None:
        """Write everything at once. Raises ``UndoneError``, ``RejectedError``."""
        keys = dict.fromkeys([*self._rows, *self._data, *self._read, *self._written])
        if not keys and not self._outgoing:
            return
        # The script finds names by position, so the records that have one go first.
        order = sorted(keys, key=lambda key: key not in self._names)
        operations = {key: self._operation(key) for key in order}
        names = [self._names[key] for key in order if key in self._names]
        type = self._type or self._outgoing[0][0]
        self.met = self.index.commit(type, self.layout, operations, names, self._outgoing)

    def _operation(self, key: str) -> Sequence[bytes]:
        data = self._data.get(key)
        entry = self._written.get(key, b"")
        mode, guard = b"", b""
        if key in self._read:
            mode, guard = b"=", self._read[key]
        elif self.newest_wins and entry:
            mode = b">"
        head = (mode, guard, entry, self._rows.get(key, b""))
        touched = entry or data is not None
        texts = self._texts.get(key, b"") if touched else b""
        if data is None:
            return (*head, b"", b"", b"", b"", texts)
        return (*head, data.action, data.sets, data.drops, data.fresh, texts)


def _packed(entry: Entry) -> bytes:
    """Return presence, length of the stamp, stamp, length of the echo, echo and detail as bytes."""
    echo = entry.echo
    size = _NO_ECHO if echo is None else len(echo)
    head = bytes((entry.presence, len(entry.stamp))) + entry.stamp + size.to_bytes(4, "big")
    return head + (echo or b"") + (entry.pack_detail() or b"")


def _unpacked(raw: bytes) -> Entry:
    end = 2 + raw[1]
    size = int.from_bytes(raw[end : end + 4], "big")
    start = end + 4
    echo = None if size == _NO_ECHO else raw[start : start + size]
    detail = raw[start + len(echo or b"") :] or None
    return Entry.unpack(Stamp(raw[2:end]), raw[0], detail, echo)
