"""The log of PostgreSQL as a change source: logical decoding by ``pgoutput``."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import psycopg
from psycopg.adapt import Transformer

from eventsync.engine.change_source import Changes, MarkLostError, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RecordError,
    StoreUnavailableError,
    shown,
)
from eventsync.stores.sql.capture.log_server import Ask, LogServer, quoted
from eventsync.stores.sql.capture.pgoutput import Decoder, Parts, Transaction
from eventsync.stores.sql.capture.replication import ReplicationStream, lsn_text, lsn_value
from eventsync.stores.sql.capture.source import Captured, CapturedTable, SqlSource
from eventsync.stores.sql.engine import errors

__all__ = ["PostgresqlLog"]

# After so many distinct keys a call returns, at the end of a transaction.
_MOST_KEYS: Final = 200_000
# A commit that is older, in seconds, shows that the log is read late.
_LATE: Final = 1.0
# While the log is read late, wait so many seconds for more of it.
_LATE_WAIT: Final = 0.1
# The time between two heartbeats, in seconds, and after how many the stream counts as dead.
_HEARTBEAT: Final = 10.0
_SILENCE: Final = 30.0
_XIDS: Final = 1 << 32
_LONGEST_NAME: Final = 63


@dataclass(slots=True, frozen=True)
class _Mark:
    """A position in the log of one server: ``system``, its identity, and the position."""

    system: str
    lsn: int

    def __str__(self) -> str:
        return f"{self.system} {lsn_text(self.lsn)}"

    @classmethod
    def parse(cls, text: str) -> _Mark:
        system, _, lsn = text.partition(" ")
        return cls(system, lsn_value(lsn))


class PostgresqlLog(SqlSource):
    """Tells the keys of rows as PostgreSQL's log does: in the order of the commits, with deletes.

    It needs a server with ``wal_level=logical``, a publication of the captured tables, and a
    replication slot. Both have the name
    ``eventsync_DATABASE_STORE``. ``install`` creates them, or an
    administrator does.

    The server keeps its log for the slot until the changes are captured, also while nobody reads
    it. A heartbeat every ten seconds keeps an idle database from retaining the log of others.
    """

    kind: ClassVar[str] = "log"

    def __init__(
        self,
        accessors: Sequence[Captured],
        store: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(accessors)
        self.name = _name(str(self.engine.url.database or ""), store)
        """The name of the slot and of the publication: a server has one slot of a name."""
        self._monotonic = monotonic
        self._stream: ReplicationStream | None = None
        self._decoder: Decoder | None = None
        self._system = ""
        self._by_name: dict[tuple[str, str], CapturedTable] = {}
        self._readers: dict[int, tuple[str, Callable[[Parts], str]]] = {}
        self._beat_at = 0.0
        self._heard_at = 0.0
        self._marked = 0

    # -- the contract ------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        self._by_name = {}
        with self._asked() as ask:
            server = LogServer(ask)
            self._system = server.system
            if server.publication(self.name) is None:
                raise ConfigError(
                    f"the publication {self.name} does not exist",
                    hint="run: eventsync capture install STORE",
                )
            slot = server.slot(self.name)
            if mark:
                start = self._continued(_Mark.parse(mark), slot, server)
            else:
                if slot is not None and slot["wal_status"] == "lost":
                    ask("SELECT pg_drop_replication_slot(%s)", self.name)
                    slot = None
                if slot is None:
                    ask(server.slot_statement(self.name))
                    slot = server.slot(self.name)
                    assert slot is not None
                start = lsn_value(slot["confirmed_flush_lsn"])
            default, options = server.schema, server.options(self.name)
        for table in self.tables():
            self._by_name[table.schema or default, table.name] = table
        self._decoder = Decoder(self._wanted)
        self._readers = {}
        self._stream = ReplicationStream(
            self.engine.url, self.name, options, start, monotonic=self._monotonic
        )
        self._marked = start
        self._heard_at = self._monotonic()
        self._beat_at = 0.0
        return str(_Mark(self._system, start))

    def _continued(self, mark: _Mark, slot: Mapping[str, Any] | None, server: LogServer) -> int:
        """Return the position to continue from. Raise ``MarkLostError`` if changes are missing."""
        reason = ""
        if mark.system != server.system:
            reason = "the database server is another one"
        elif slot is None:
            reason = f"the replication slot {self.name} is gone"
        elif slot["wal_status"] == "lost":
            reason = f"the server has dropped the log of the replication slot {self.name}"
        elif lsn_value(slot["confirmed_flush_lsn"]) > mark.lsn:
            reason = f"the replication slot {self.name} was made anew or read by somebody else"
        elif server.position() < mark.lsn:
            reason = "the server was restored to a time before the last capture"
        if reason:
            raise MarkLostError(reason)
        return mark.lsn

    def changes(self, mark: str, *, wait: float) -> Changes:
        assert self._stream is not None
        began = self._monotonic()
        self._beat()
        batch = _Batch()
        while True:
            arrived = self._read(batch)
            if batch.count >= _MOST_KEYS:
                batch.behind = True
                break
            passed = self._monotonic() - began
            if arrived:
                continue
            late = bool(batch.count) and time.time() - batch.moment > _LATE
            left = _LATE_WAIT if late else (0.0 if batch.count else wait - passed)
            if left <= 0 or not self._stream.wait(left):
                break
        if batch.end > self._marked:
            self._marked = batch.end
        if not batch.keys and not batch.whole:
            return Changes(str(_Mark(self._system, self._marked)), own=batch.own)
        self._await_visible(batch.xids)
        return self._told(batch)

    def settle(self, changes: Changes) -> None:
        if self._stream is not None:
            self._stream.flushed = max(self._stream.flushed, _Mark.parse(changes.mark).lsn)
            self._stream.tell()

    def keep_alive(self) -> None:
        if self._stream is not None:
            self._stream.keep_alive()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    # -- reading the log ---------------------------------------------------------------------------

    def _read(self, batch: _Batch) -> bool:
        """Take in what has arrived, up to the limit of a batch. Return whether anything had."""
        stream, decoder = self._stream, self._decoder
        assert stream is not None
        assert decoder is not None
        read, feed = stream.read, decoder.feed
        arrived = False
        while (message := read()) is not None:
            arrived = True
            if (done := feed(message)) is not None:
                batch.add(done)
                if batch.count >= _MOST_KEYS:
                    break
            elif message[0] == 77 and decoder.is_between:  # M: the heartbeat has come back
                batch.end = max(batch.end, int.from_bytes(message[2:10], "big"))
        if arrived:
            self._heard_at = self._monotonic()
        return arrived

    def _beat(self) -> None:
        """Send a heartbeat if it is due. Raise an error if none has come back for long."""
        now = self._monotonic()
        if now - self._heard_at > _SILENCE:
            raise StoreUnavailableError(
                f"the log has told nothing for {_SILENCE:.0f} s, although a heartbeat was sent",
                hint="the capture connects again by itself; look into the log of the server",
            )
        if now - self._beat_at >= _HEARTBEAT:
            self._beat_at = now
            with self._asked() as ask:
                ask("SELECT pg_logical_emit_message(false, 'eventsync-heartbeat', '')")

    def _await_visible(self, xids: set[int]) -> None:
        """Wait until readers see these transactions: they may be in the log a moment before."""
        with self._asked() as ask:
            while True:
                _, high, running = ask("SELECT pg_current_snapshot()::text")[0][0].split(":")
                ahead = int(high) % _XIDS
                hidden = {int(xid) % _XIDS for xid in running.split(",") if xid}
                if not any(xid in hidden or _is_after(xid, ahead) for xid in xids):
                    return
                time.sleep(0.0005)

    def _wanted(self, schema: str, name: str) -> tuple[str, ...] | None:
        table = self._by_name.get((schema, name))
        return None if table is None else table.keys

    # -- keys --------------------------------------------------------------------------------------

    def _told(self, batch: _Batch) -> Changes:
        assert self._decoder is not None
        keys: dict[str, dict[str, float | None]] = {}
        unreadable: list[tuple[str, RecordError]] = []
        for relation, rows in batch.keys.items():
            type, read = self._reader(relation)
            of_type = keys.setdefault(type, {})
            for parts, moment in rows.items():
                try:
                    of_type[read(parts)] = moment
                except (EventSyncError, ValueError, psycopg.Error) as error:
                    unreadable.append((type, _no_key(type, parts, error)))
        whole = {
            self._type_of(relation): text
            for relation, text in batch.whole.items()
            if self._type_of(relation)
        }
        mark = str(_Mark(self._system, self._marked))
        return Changes(mark, keys, whole, unreadable, behind=batch.behind, own=batch.own)

    def _type_of(self, relation: int) -> str:
        assert self._decoder is not None
        known = self._decoder.relations.get(relation)
        table = None if known is None else self._by_name.get((known.schema, known.name))
        return "" if table is None else table.type

    def _reader(self, relation: int) -> tuple[str, Callable[[Parts], str]]:
        """Return the record type of a table, and a function that makes keys of its rows."""
        assert self._decoder is not None
        known = self._decoder.relations[relation]
        reader = self._readers.get(relation)
        if reader is None:
            table = self._by_name[known.schema, known.name]
            with self.dialect.connected(self.engine) as connection:
                loaders = Transformer(self.dialect.raw(connection))
                loads = [loaders.get_loader(t, psycopg.pq.Format.TEXT).load for t in known.types]

            def read(parts: Parts) -> str:
                both = zip(loads, parts, strict=True)
                return table.key_text([None if p is None else load(p) for load, p in both])

            reader = self._readers[relation] = (table.type, read)
        return reader

    # -- operation ---------------------------------------------------------------------------------

    def install(self) -> None:
        found = [one for one in self.findings() if one.level is Level.WRONG]
        if found:
            raise ConfigError(
                "; ".join(one.text for one in found),
                hint="; ".join(text for one in found for text in one.statements)
                or "see docs/capture/postgresql.md",
            )
        with self._asked() as ask:
            for statement in self._missing(LogServer(ask)):
                ask(statement)

    def remove(self) -> None:
        self.close()
        with self._asked() as ask:
            server = LogServer(ask)
            slot = server.slot(self.name)
            if slot is not None and slot["active_pid"] is not None:
                raise StoreUnavailableError(
                    f"the replication slot {self.name} is in use by process {slot['active_pid']}",
                    hint="stop the worker and eventsync capture of this store first",
                )
            if slot is not None:
                ask("SELECT pg_drop_replication_slot(%s)", self.name)
            ask(f'DROP PUBLICATION IF EXISTS "{self.name}"')

    def statements(self) -> tuple[str, ...]:
        with self._asked() as ask:
            server = LogServer(ask)
            return (
                f'CREATE PUBLICATION "{self.name}" FOR TABLE {self._table_list(server)} WITH '
                f"({server.published})",
                server.slot_statement(self.name),
            )

    def _missing(self, server: LogServer) -> Iterator[str]:
        """Yield the statements that provide what is missing."""
        published = server.publication(self.name)
        if published is None:
            yield (
                f'CREATE PUBLICATION "{self.name}" FOR TABLE {self._table_list(server)} WITH '
                f"({server.published})"
            )
        elif published != set(self._qualified(server)):
            yield f'ALTER PUBLICATION "{self.name}" SET TABLE {self._table_list(server)}'
        if server.slot(self.name) is None:
            yield server.slot_statement(self.name)

    def _qualified(self, server: LogServer) -> list[tuple[str, str]]:
        return [(table.schema or server.schema, table.name) for table in self.tables()]

    def _table_list(self, server: LogServer) -> str:
        return ", ".join(f"{quoted(s)}.{quoted(n)}" for s, n in self._qualified(server))

    def findings(self) -> Iterator[Finding]:
        with self._asked() as ask:
            server = LogServer(ask)
            if server.setting("wal_level") != "logical":
                yield Finding(
                    Level.WRONG,
                    "log",
                    "wal_level is not logical; the server must be restarted after the change",
                    ("ALTER SYSTEM SET wal_level = logical",),
                )
            for name in ("max_replication_slots", "max_wal_senders"):
                if server.setting(name) == "0":
                    yield Finding(
                        Level.WRONG, "log", f"{name} is 0", (f"ALTER SYSTEM SET {name} = 10",)
                    )
            if not server.may_replicate:
                yield Finding(
                    Level.WRONG,
                    "log",
                    f"the role {server.role} may not replicate",
                    (f"ALTER ROLE {quoted(server.role)} REPLICATION",),
                )
            for table in self.tables():
                yield from server.identity(table)
            if server.setting("max_slot_wal_keep_size") == "-1":
                yield Finding(
                    Level.NOTE,
                    "log",
                    "max_slot_wal_keep_size is not set: while nobody captures, the log fills the "
                    "disk; a limit makes eventsync read all records instead",
                    ("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'",),
                )

    def state(self) -> SourceState:
        with self._asked() as ask:
            server = LogServer(ask)
            slot, published = server.slot(self.name), server.publication(self.name)
            installed = slot is not None and published == set(self._qualified(server))
            details = {"publication and slot": self.name}
            if slot is None:
                return SourceState(False, details=details)
            now = server.position()
            details["state of the log"] = str(slot["wal_status"])
            if slot["safe_wal_size"] is not None:
                details["bytes until it is dropped"] = f"{slot['safe_wal_size']:,}"
            if slot["active_pid"] is not None:
                details["read by process"] = str(slot["active_pid"])
            behind = max(0, now - lsn_value(slot["confirmed_flush_lsn"] or "0/0"))
            restart = slot["restart_lsn"]
            return SourceState(
                installed and slot["wal_status"] != "lost",
                lag_bytes=behind,
                retained_bytes=0 if restart is None else max(0, now - lsn_value(restart)),
                details=details,
            )

    @contextmanager
    def _asked(self) -> Iterator[Ask]:
        """Yield a function that asks the server, with an ordinary connection."""
        with (
            errors("capture", self.dialect, self.engine.url),
            self.dialect.reading(self.engine) as connection,
        ):
            raw = self.dialect.raw(connection)

            def ask(statement: str, *parameters: Any) -> list[Any]:
                cursor = raw.execute(statement, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []

            yield ask


class _Batch:
    """What was read from the log and not told yet: the last moment of each changed row."""

    __slots__ = ("behind", "count", "end", "keys", "moment", "own", "whole", "xids")

    def __init__(self) -> None:
        self.keys: dict[int, dict[Parts, float]] = {}
        self.whole: dict[int, str] = {}
        self.xids: set[int] = set()
        self.count = 0
        self.own = 0
        self.end = 0
        self.moment = 0.0
        self.behind = False

    def add(self, done: Transaction) -> None:
        """Take in a committed transaction."""
        self.end = done.end
        self.moment = done.moment
        if done.own:
            self.own += sum(map(len, done.keys.values()))
            return
        if not done.keys and not done.whole:
            return
        self.xids.add(done.xid)
        self.whole |= done.whole
        for relation, rows in done.keys.items():
            known = self.keys.setdefault(relation, {})
            before = len(known)
            known.update(dict.fromkeys(rows, done.moment))
            self.count += len(known) - before


def _name(database: str, store: str) -> str:
    """Return the name of slot and publication: letters, digits and ``_``, at most 63."""
    wanted = f"eventsync_{database}_{store}"
    name = re.sub("[^a-z0-9_]", "_", wanted.lower())
    if name != wanted or len(name) > _LONGEST_NAME:
        name = f"{name[:50]}_{hashlib.sha256(wanted.encode()).hexdigest()[:10]}"
    return name


def _is_after(xid: int, other: int) -> bool:
    """Return whether a transaction id is not before another one. Ids begin again after 2^32."""
    return (xid - other) % _XIDS < _XIDS // 2


def _no_key(type: str, parts: Parts, error: Exception) -> RecordError:
    """Return the error of a changed row that has no valid key."""
    values = ["NULL" if part is None else part.decode(errors="replace") for part in parts]
    place = "/".join(map(shown, values))
    unreadable = RecordError(f"{type} {place} cannot be captured: {error}")
    unreadable.place = place
    return unreadable
