"""The accessor of records in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Literal, TypeVar

from eventsync.engine.accessor import Accessor, Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import Done, concerns_all, isolate, item_error
from eventsync.errors import ConfigError, RecordError, RejectedError, StoreUnavailableError
from eventsync.index import Index, IndexTransaction
from eventsync.records.key import CODERS, join
from eventsync.records.query import All, Compare, Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.loss import gone, told_of
from eventsync.stores.redis.codec import HashCodec, JsonCodec, framed
from eventsync.stores.redis.index import (
    Data,
    Layout,
    RedisIndex,
    RedisTransaction,
)
from eventsync.stores.redis.notifications import RedisNotifications
from eventsync.stores.redis.pattern import KeyPattern
from eventsync.stores.redis.replica import NewestWinsReplica
from eventsync.stores.redis.rights import lacking
from eventsync.stores.redis.row import PAGE, Rows
from eventsync.stores.redis.server import Database, Server

__all__ = ["RedisAccessor"]

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class RedisAccessor(Accessor[R]):
    """Records of one type, each under a Redis key of its own.

    ``database``: a URL (``redis://localhost:6379/0``), or a client of redis-py (a
    ``redis.cluster.RedisCluster`` for a cluster). ``key``: the pattern of the records' keys, like
    ``customer:{id}`` (see ``KeyPattern``); by default the type's name, a colon and the key.
    ``layout``: with ``hash``, a record is a hash with a field for each of its fields, where a
    missing field is ``None``; with ``json``, a record is a string that holds a JSON object.
    ``ttl``: seconds after which a record expires unless it is written again; an expired record is
    not taken for deleted. ``indexes``: fields by whose value ``find`` shall find records without
    reading all.

    Fields of a hash and members of a JSON object that the view does not name stay unchanged.

    Data, versions and outbox of a batch are written by one script, all or nothing. Any number of
    processes may write at once.
    """

    atomic: ClassVar[bool] = True

    def __init__(
        self,
        record_type: type[R],
        database: Database,
        *,
        key: str | None = None,
        layout: Literal["hash", "json"] = "hash",
        ttl: float | None = None,
        indexes: Iterable[str] = (),
        view: View | None = None,
    ) -> None:
        super().__init__(record_type, view=view)
        self._server = Server.of(database)
        if layout not in ("hash", "json"):
            raise ConfigError(f"layout={layout!r} is not valid: it must be 'hash' or 'json'")
        if ttl is not None and ttl < 0.001:
            raise ConfigError(f"ttl={ttl!r} is not valid: it must be a number of seconds above 0")
        # A type's name has no braces, so the default pattern is always valid.
        self.pattern = KeyPattern(key or f"{self.type.name}:{{key}}", self.type)
        self._hash = HashCodec(self.view) if layout == "hash" else None
        self._json = JsonCodec(self.view)
        names = tuple(self.view.names.values())
        self._layout = Layout(
            fields=names if layout == "hash" else (),
            life=None if ttl is None else round(ttl * 1000),
            indexed=self._checked_indexes(indexes),
        )
        self.forgets = ttl is not None
        self._rows = Rows(self._server, self.pattern, self._layout.fields, self.type.name)
        self._constant = self._hash.framed(self.view.constant)[0] if self._hash else b""
        self._untouched = self._texts({})
        if self.type.rule == "record" and (self._hash or not self.view.partial):
            self.replica_class = NewestWinsReplica

    def __repr__(self) -> str:
        return f"RedisAccessor({self.type.name}, {self.pattern.text!r})"

    def _checked_indexes(self, indexes: Iterable[str]) -> tuple[str, ...]:
        for name in indexes:
            if name not in self.view.names:
                raise ConfigError(
                    f"{self.type.name}: this store has no field {name!r} to index",
                    hint="name fields of the view in indexes=",
                )
            if self.type.fields[name].type not in CODERS:
                raise ConfigError(
                    f"{self.type.name}.{name} cannot be indexed: its type is "
                    f"{self.type.fields[name].expected}"
                )
        return tuple(dict.fromkeys(indexes))

    @property
    def _codec(self) -> HashCodec | JsonCodec:
        return self._hash or self._json

    # -- part of a store ---------------------------------------------------------------------------

    def default_index(self) -> Index:
        return RedisIndex(self._server, slot=self.pattern.tag or "eventsync")

    def bind(self, index: Index) -> None:
        if not isinstance(index, RedisIndex) or index.server.address != self._server.address:
            raise ConfigError(
                f"the Redis accessor of {self.type.name} needs a version index in its own database",
                hint="leave out the store's index, or pass a RedisIndex on the same database",
            )
        super().bind(index)

    @property
    def versions(self) -> RedisIndex:
        """The version index of the store."""
        return self._versions

    @classmethod
    def sources(cls, accessors: Sequence[RedisAccessor[Any]], store: str) -> Sequence[ChangeSource]:
        return [RedisNotifications(accessors)]

    @property
    def _versions(self) -> RedisIndex:
        # Without a store, an accessor reads and writes as any other program would.
        index = self.default_index() if self._index is None else self._index
        assert isinstance(index, RedisIndex)
        return index

    def ensure(self) -> None:
        self.ping()
        memory = self._server.info("memory")
        policy = str(memory.get("maxmemory_policy", ""))
        if policy.startswith("allkeys") and memory.get("maxmemory"):
            raise ConfigError(
                f"Redis at {self._server.address} may evict any key, also versions "
                f"(maxmemory-policy {policy}): deleted records would come back",
                hint="set maxmemory-policy to noeviction, or with ttl= to a volatile policy",
            )
        slot = self._versions.slot
        clustered = self._server.cluster or self._server.info("cluster").get("cluster_enabled")
        if clustered and self.pattern.tag != slot:
            raise ConfigError(
                f"on Redis Cluster, the keys of {self.type.name} and their versions must share the "
                f"hash slot of {{{slot}}}; the pattern {self.pattern.text!r} puts them in others",
                hint=f"begin the pattern with a hash tag: key='{{{{{slot}}}}}:{self.pattern.text}'",
            )
        self._register()

    def findings(self) -> Iterator[Finding]:
        name = self.pattern.name(join(["0"] * len(self.type.keys)))
        lack = lacking(self._server, [*self._commands(name), *self._versions.commands])
        if lack:
            words = sorted({command[0] for command in lack})
            user = self._server.user()
            patterns = sorted({self.pattern.glob, f"{self._versions.base}:*"})
            rights = [*(f"~{one}" for one in patterns), *(f"+{word.lower()}" for word in words)]
            yield Finding(
                Level.WRONG,
                self.type.name,
                f"this user may not run {', '.join(words)} on the keys of {self.type.name} and of "
                "its versions",
                (f"ACL SETUSER {user} {' '.join(rights)}",),
            )

    def _commands(self, name: str) -> list[list[str]]:
        """Return the commands that this accessor runs on the Redis key of a record."""
        own = [["HMGET", name, "f"], ["HSET", name, "f", "v"], ["HDEL", name, "f"]]
        if not self._hash:
            own = [["GET", name], ["SET", name, "v"]]
        return [*own, ["DEL", name], ["TYPE", name], ["SCAN", "0"]]

    def _register(self) -> None:
        place = f"{'hash' if self._hash else 'json'} {self.pattern.text}"
        self._versions.register(self.type.name, place)

    def ping(self) -> None:
        self._server.call("PING")

    def loss(self) -> str | None:
        if self._versions.is_lost():
            return (
                f"the versions of {self.type.name} at {self._server.address} are gone, as after "
                "FLUSHALL, and its records with them"
            )
        if self.forgets:
            return None
        return told_of(self._versions, self.type.name, self._there, self._server.address)

    def accept_loss(self) -> int:
        self._versions.accept_loss()
        self._register()
        forgotten = 0
        for keys in gone(self._versions, self.type.name, self._there):
            forgotten += self._versions.until_done(partial(self._forget, keys))
        return forgotten

    def _there(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that exist, be it under a Redis key of another type."""
        there: set[str] = set()
        for part in isolate(keys, self._rows.fetch):
            there |= set(part.result) if isinstance(part, Done) else {part.item}
        return there

    def _forget(self, keys: Sequence[str]) -> int:
        """Forget the entries of records that are still not there; return how many."""
        with self._versions.transaction() as transaction:
            transaction.layout = self._layout
            transaction.read(self.type.name, keys)
            found = self._rows.fetch(keys)
            missing = [key for key in keys if key not in found]
            for key in missing:
                transaction.saw(key, self.pattern.name(key), self._rows.trace(None), b"")
            transaction.forget(self.type.name, missing)
        return len(missing)

    def close(self) -> None:
        self._server.close()

    # -- the six methods of the contract -----------------------------------------------------------

    def add(self, record: R) -> None:
        self._write_now([Write(record.key, record.raw(), whole=True)], [])

    def update(self, record: R) -> None:
        self._write_now([Write(record.key, record.changes(), whole=False)], [])

    def get(self, key: str) -> R | None:
        rows = self._rows.fetch([key])
        return self._record(key, rows[key]) if key in rows else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._found(query))

    def count(self, query: Query) -> int:
        if query.where.fields:
            return super().count(query)
        return sum(1 for _ in self._rows.listed())

    def remove(self, key: str) -> None:
        self._write_now([], [key])

    def record_to_data(self, record: R) -> dict[str, Any]:
        """Return the fields of the hash, as bytes, or the members of the JSON object."""
        data = self._codec.encode(super().record_to_data(record))
        return {n: kept for n, kept in data.items() if kept is not None} if self._hash else data

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self._codec.decode(data))

    def _write_now(self, writes: Sequence[Write], removals: Sequence[str]) -> None:
        def attempt() -> None:
            with self._versions.transaction() as transaction:
                transaction._of(self.type.name)
                self.write_rows(writes, removals, transaction)

        self._versions.until_done(attempt)

    # -- many records at once ----------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        assert isinstance(transaction, RedisTransaction)
        transaction.layout = self._layout
        found = self._rows.fetch(keys)
        rows: dict[str, Mapping[str, Any]] = {}
        for key in keys:
            kept = found.get(key)
            values = None if kept is None else self._record(key, kept).raw()
            if values is not None:
                rows[key] = transaction.seen[key] = values
            trace = self._rows.trace(kept)
            transaction.saw(key, self.pattern.name(key), trace, self._texts(values or {}))
        return rows

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        assert isinstance(transaction, RedisTransaction)
        transaction.layout = self._layout
        self._rows.refuse([*(write.key for write in writes), *removals])
        # A JSON object is written whole, with the members that others put into it.
        needed = [write.key for write in writes if not (write.whole and self._hash)]
        behind: dict[str, Any] = {}
        if needed and (self._layout.indexed or not self._hash):
            behind = self._rows.fetch(needed)
        for write in writes:
            name = self.pattern.name(write.key)
            stored = self.view.to_store(write.values)
            values, kept = write.values, behind.get(write.key)
            if write.key in behind and self._layout.indexed and not write.whole:
                values = {**self._record(write.key, kept).raw(), **values}
            if self._hash:
                action = b"h" if write.whole else b"u"
                sets, drops = self._hash.framed(stored)
                fresh = self._constant if write.whole else b""
                staged = Data(action, sets, drops, fresh)
            else:
                staged = Data(b"j", self._json.text(self._document(write, stored, kept)))
                transaction.saw(write.key, name, self._rows.trace(kept), b"")
            transaction.stage(write.key, name, staged, self._texts(values))
        for key in removals:
            transaction.stage(key, self.pattern.name(key), Data(b"-"), self._untouched)

    def _document(self, write: Write, stored: dict[str, Any], kept: Any) -> dict[str, Any]:
        data = self._json.encode(stored)
        if kept is None and write.whole:
            return self._json.encode(self.view.constant) | data
        if kept is None:
            raise StoreUnavailableError(
                f"{self.type.name} {write.key!r} was removed while it was being updated"
            )
        try:
            return self._json.members(kept) | data
        except RecordError as error:
            raise RejectedError(
                f"{self.pattern.name(write.key)}, {self.type.name} {write.key!r}: {error.message}",
                hint="correct or remove what is there: it would be overwritten",
            ) from error

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # Redis stores values unchanged, so only a conversion can alter one.
        if not self.view.convert:
            return {}
        assert isinstance(transaction, RedisTransaction)
        back = {}
        for key, values in writes.items():
            data = self._codec.encode(self.view.to_store(values))
            kept = {n: value for n, value in data.items() if value is not None or not self._hash}
            converted = self.view.to_record(self._codec.decode(kept))
            now = {**values, **{n: value for n, value in converted.items() if n in values}}
            back[key] = {**transaction.seen.get(key, {}), **now}
        return back

    # -- rows --------------------------------------------------------------------------------------

    def _record(self, key: str, kept: Any) -> R:
        """Return the record that Redis keeps. Raises ``RecordError`` that names the Redis key."""
        try:
            if self._hash:
                pairs = zip(self._layout.fields, kept, strict=True)
                data = {name: value for name, value in pairs if value is not None}
            else:
                data = self._json.members(kept)
            record = self.data_to_record(data)
            # Key fields may be in the name of the Redis key only, not in its data.
            named = self.type.key_values(key)
            values = {**named, **record.raw()}
            if self.type.key_text(values) != key:
                raise RecordError(f"its data hold the key {self.type.key_text(values)!r}")
        except Exception as error:
            if concerns_all(error):
                raise
            known, name = item_error(error), self.pattern.name(key)
            unreadable = RecordError(
                f"{name}, {self.type.name} {key!r}: {known.message}", hint=known.hint
            )
            unreadable.key = key
            raise unreadable from error
        return record if len(values) == len(record.raw()) else self.make(values)

    def _found(self, query: Query) -> Iterator[R]:
        candidates = self._candidates(query)
        report = query.unreadable
        keys = iter(self._rows.listed(report) if candidates is None else candidates)
        while chunk := list(islice(keys, PAGE)):
            rows: dict[str, Any] = {}
            for part in isolate(chunk, self._rows.fetch):
                if isinstance(part, Done):  # else the type of a key has changed since it was listed
                    rows |= part.result
            for key, kept in rows.items():
                try:
                    yield self._record(key, kept)
                except Exception as error:
                    self.pass_over(error, query)

    def _candidates(self, query: Query) -> Iterable[str] | None:
        """Return keys that include those of all matching records; ``None`` if that is every key."""
        tree = query.where.tree
        for node in tree.parts if isinstance(tree, All) else (tree,):
            if not isinstance(node, Compare) or node.op not in ("$eq", "$in"):
                continue
            wanted = node.operand if node.op == "$in" else (node.operand,)
            if self.type.keys == (node.field,):
                return self._keys_of(wanted)
            if node.field in self._layout.indexed and "" not in wanted:
                return self._members_of(node.field, wanted)
        return None

    def _keys_of(self, wanted: Iterable[Any]) -> list[str]:
        keys = []
        for value in wanted:
            try:
                keys.append(self.type.key_of(value))
            except RecordError:
                continue  # no record can have such a key
        return list(dict.fromkeys(keys))

    def _members_of(self, field: str, wanted: Iterable[Any]) -> Iterator[str]:
        seen: set[bytes] = set()
        for value in wanted:
            name = self._versions.set_name(self.type.name, field, self._text(field, value))
            for member in self._server.members(name):
                if member not in seen:
                    seen.add(member)
                    yield member.decode()

    def _text(self, field: str, value: Any) -> str:
        try:
            return CODERS[self.type.fields[field].type][0](value)
        except ValueError as error:
            raise RejectedError(f"{self.type.name}.{field}: {error}") from error

    def _texts(self, values: Mapping[str, Any]) -> bytes:
        """Return the texts of a record's indexed values, by which index sets are named."""
        if not self._layout.indexed:
            return b""
        indexed = [(field, values.get(field)) for field in self._layout.indexed]
        return framed("" if v is None else self._text(field, v) for field, v in indexed)
