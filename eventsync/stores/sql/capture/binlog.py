"""The binary log of MariaDB as a change source."""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from pymysqlreplication.event import (
    FormatDescriptionEvent,
    MariadbGtidEvent,
    NotImplementedEvent,
    QueryEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import RowsEvent, UpdateRowsEvent

from eventsync.engine.change_source import Changes, MarkLostError, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, EventSyncError, StoreUnavailableError
from eventsync.stores.sql.capture.binlog_server import Ask, BinlogServer, Gtids, gtids_of
from eventsync.stores.sql.capture.binlog_stream import BinlogStream
from eventsync.stores.sql.capture.source import Captured, CapturedTable, SqlSource
from eventsync.stores.sql.engine import errors

__all__ = ["Binlog"]

# After so many distinct keys a call returns.
_MOST_KEYS: Final = 200_000
# While nothing arrives, the server is asked for the end of its log after so many seconds.
_LOOK_EVERY: Final = 0.1
# For so many seconds a call waits for events that are in the log of the server already.
_CATCH_UP: Final = 3.0
# For so many seconds a call waits until changes that it has read are visible to readers.
_VISIBLE: Final = 30.0
# After so many seconds without an answer, the server counts as away.
_SILENCE: Final = 15
_COMPRESSED: Final = frozenset(range(165, 172))
_STANDALONE: Final = 1
_HARMLESS: Final = re.compile(
    r"(?i)\s*(BEGIN|START|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|XA (START|END)|GRANT|REVOKE|ANALYZE|"
    r"OPTIMIZE|FLUSH|SET|(CREATE|DROP)\s+(OR\s+REPLACE\s+)?(DEFINER\s*=\s*\S+\s+)?"
    r"(UNIQUE\s+)?(INDEX|TRIGGER|VIEW|USER|ROLE|PROCEDURE|FUNCTION|EVENT))\b"
)


@dataclass(slots=True, frozen=True)
class _Mark:
    """A position between two transactions of one binary log.

    - ``file``, ``position``: where it is; ``created``: when the file was begun.
    - ``gtids``: the last transaction of each domain before it.
    """

    file: str
    position: int
    created: int
    gtids: str

    def __str__(self) -> str:
        return json.dumps([self.file, self.position, self.created, self.gtids])

    @classmethod
    def parse(cls, text: str) -> _Mark:
        try:
            file, position, created, gtids = json.loads(text)
            return cls(str(file), int(position), int(created), str(gtids))
        except (ValueError, TypeError) as error:
            raise MarkLostError("the mark is not one of a binary log") from error


class Binlog(SqlSource):
    """Tells the keys of rows as MariaDB's binary log does: in the order of the commits.

    It needs a log in the format ROW with full metadata, and the rights of a replica. It creates
    nothing in the database. The server keeps its log as long as its own settings say; if the log is
    gone, or another one, all records are read once.

    An event has the second at which its statement began. A change that an earlier look at the end
    of the log did not see was committed after that look. So its moment is the later one of the two.

    Own writes of eventsync are told like others. They equal their fingerprints.
    """

    kind: ClassVar[str] = "log"

    def __init__(
        self,
        accessors: Sequence[Captured],
        *,
        limit: int = _MOST_KEYS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(accessors)
        self._limit = limit
        self._monotonic = monotonic
        self._sleep = sleep
        self._connection: sa.Connection | None = None
        self._stream: BinlogStream | None = None
        self._tables: dict[tuple[str, str], list[_Reader]] = {}
        self._reset()

    def _reset(self) -> None:
        self._done = _Mark("", 0, 0, "")
        self._gtids: Gtids = {}
        self._created = 0
        self._group = _Group()
        # By the text of the id of a prepared XA transaction: its keys.
        self._prepared: dict[str, dict[str, set[str]]] = {}
        self._seen_until = 0.0

    # -- the contract ------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        self._reset()
        with self._errors():
            server = BinlogServer(self._ask())
            self._refuse(server)
            if mark:
                start = _Mark.parse(mark)
                if server.gtids_at(start.file, start.position) != gtids_of(start.gtids):
                    raise MarkLostError(
                        "the binary log of the server is another one, was reset, or begins later"
                    )
            else:
                file, position, gtids = server.end()
                start = _Mark(file, position, 0, gtids)
            self._tables = {}
            for table in self.tables():
                place = (table.schema or server.database, table.name)
                self._tables.setdefault(place, []).append(_Reader(table, server))
        names = sorted({name for _, name in self._tables})
        self._gtids = gtids_of(start.gtids)
        self._done = start
        self._stream = BinlogStream(
            self._settings(), names, start.file, start.position, monotonic=self._monotonic
        )
        batch = _Batch()
        while not self._created:
            self._take(self._stream.read(), batch)
        if mark and self._created != start.created:
            raise MarkLostError(f"the binary log {start.file} was made anew")
        self._done = _Mark(start.file, start.position, self._created, start.gtids)
        return str(self._done)

    def changes(self, mark: str, *, wait: float) -> Changes:
        stream = self._stream
        assert stream is not None
        deadline = self._monotonic() + wait
        batch = _Batch()
        with self._errors():
            ask = self._ask()
            server = BinlogServer(ask)
            reached = False
            while True:
                end, now = server.now()
                self._refuse_reset(end)
                self._read_to(end, batch)
                reached = self._reached(end)
                if batch.count or batch.whole:
                    break
                if reached:
                    self._seen_until = max(self._seen_until, now)
                left = deadline - self._monotonic()
                if left <= 0:
                    break
                stream.wait(min(left, _LOOK_EVERY))
            if batch.count or batch.whole:
                self._await_visible(server, (stream.file, stream.position))
        earliest = self._seen_until
        if reached and not batch.behind:
            self._seen_until = max(self._seen_until, now)
        return Changes(
            str(self._done),
            {
                type: {key: max(moment, earliest) for key, moment in keys.items()}
                for type, keys in batch.keys.items()
            },
            batch.whole,
            behind=batch.behind,
        )

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError, self.dialect.error):
                connection.close()

    # -- reading the log ---------------------------------------------------------------------------

    def _read_to(self, end: Gtids, batch: _Batch) -> None:
        """Take in the events up to ``end``, and those that have arrived after it."""
        stream, began = self._stream, self._monotonic()
        assert stream is not None
        while batch.count < self._limit:
            reached = self._reached(end) and not self._group.open
            if not stream.wait(0.0 if reached else _LOOK_EVERY):
                if reached or self._monotonic() - began > _CATCH_UP:
                    return
                continue
            self._take(stream.read(), batch)
            if reached and self._monotonic() - began > _CATCH_UP:
                return
        # Of a transaction that is larger than this, the rest comes with the next call.
        self._merge(batch)
        batch.behind = True

    def _take(self, event: Any, batch: _Batch) -> None:
        group = self._group
        group.moment = max(group.moment, float(event.timestamp))
        if isinstance(event, RowsEvent):
            self._take_rows(event, batch)
        elif isinstance(event, MariadbGtidEvent):
            self._end_group(batch)
            self._group = _Group(
                (event.domain_id, event.server_id, event.gtid_seq_no),
                moment=float(event.timestamp),
                standalone=bool(event.flags & _STANDALONE),
            )
        elif isinstance(event, XidEvent):
            self._end_group(batch)
        elif isinstance(event, QueryEvent):
            self._take_query(event, batch)
        elif isinstance(event, XAPrepareEvent):
            self._prepare(event)
            self._end_group(batch)
        elif isinstance(event, NotImplementedEvent):
            if event.event_type in _COMPRESSED:
                self._all_whole(batch, "the binary log has compressed events: log_bin_compress")
        elif isinstance(event, FormatDescriptionEvent):
            self._end_group(batch)
            self._created = int(event.timestamp)
            assert self._stream is not None
            self._done = _Mark(
                self._stream.file, self._stream.position, self._created, _text(self._gtids)
            )

    def _take_rows(self, event: Any, batch: _Batch) -> None:
        place = (getattr(event, "schema", ""), getattr(event, "table", ""))
        for reader in self._tables.get(place, ()):
            type, keys = reader.table.type, self._group.keys.setdefault(reader.table.type, set())
            before = len(keys)
            try:
                for row in event.rows:
                    keys.update(reader.keys(row, update=isinstance(event, UpdateRowsEvent)))
            except Exception as error:
                batch.whole[type] = f"a row of the binary log cannot be read: {error}"
            batch.count += len(keys) - before

    def _take_query(self, event: Any, batch: _Batch) -> None:
        query = (
            event.query if isinstance(event.query, str) else event.query.decode(errors="replace")
        )
        first = query.strip().upper()
        if first.startswith(("XA COMMIT", "XA ROLLBACK")):
            self._finish_prepared(first, batch)
        elif not _HARMLESS.match(query):
            schema = event.schema.decode() if isinstance(event.schema, bytes) else event.schema
            self._take_statement(query, schema, batch)
        if self._group.standalone or first in ("COMMIT", "ROLLBACK") or first.startswith("XA COM"):
            self._end_group(batch)

    def _take_statement(self, query: str, schema: str, batch: _Batch) -> None:
        """Note that a statement is in the log itself: a DDL, or one in another format than ROW."""
        text = query.replace("``", "`").casefold()
        all_of = re.match(r"(?i)\s*DROP\s+(DATABASE|SCHEMA)", query)
        for (database, name), readers in self._tables.items():
            # A statement of another database names this one.
            near = schema == database or database.casefold() in text
            if near and (all_of or name.casefold() in text):
                verb = " ".join(query.split()[:2])
                batch.whole |= {r.table.type: f"the statement {verb}" for r in readers}

    def _prepare(self, event: Any) -> None:
        name = _xa_name(event.xid_gtrid, event.xid_bqual, event.xid_format_id)
        if sum(len(k) for one in self._prepared.values() for k in one.values()) < self._limit:
            self._prepared[name] = self._group.keys
        self._group.keys = {}

    def _finish_prepared(self, query: str, batch: _Batch) -> None:
        name = next((name for name in self._prepared if name in query), "")
        keys = self._prepared.pop(name, None)
        if query.startswith("XA ROLLBACK"):
            return
        if keys is None:
            self._all_whole(batch, "an XA transaction was committed that was prepared before")
            return
        for type, some in keys.items():
            self._group.keys.setdefault(type, set()).update(some)
            batch.count += len(some)

    def _all_whole(self, batch: _Batch, reason: str) -> None:
        batch.whole |= {r.table.type: reason for readers in self._tables.values() for r in readers}

    def _merge(self, batch: _Batch) -> None:
        for type, keys in self._group.keys.items():
            known = batch.keys.setdefault(type, {})
            for key in keys:
                known[key] = max(self._group.moment, known.get(key, 0.0))
        self._group.keys = {}

    def _end_group(self, batch: _Batch) -> None:
        """Note that a transaction has ended: the mark may move behind it."""
        group, stream = self._group, self._stream
        if not group.open:
            return
        assert stream is not None
        self._merge(batch)
        domain, server, number = group.gtid
        self._gtids[domain] = (server, number)
        self._done = _Mark(stream.file, stream.position, self._created, _text(self._gtids))
        self._group = _Group()

    def _reached(self, end: Gtids) -> bool:
        """Return whether everything up to ``end`` was read."""
        return all(
            self._gtids.get(domain, (0, 0)) == (server, number)
            or self._gtids.get(domain, (0, 0))[1] >= number
            for domain, (server, number) in end.items()
        )

    def _refuse_reset(self, end: Gtids) -> None:
        """Raise ``MarkLostError`` if the log ends before what was read of it."""
        for domain, (server, number) in self._gtids.items():
            other, last = end.get(domain, (server, 0))
            if other == server and last < number:
                raise MarkLostError("the binary log was reset")

    def _await_visible(self, server: BinlogServer, position: tuple[str, int]) -> None:
        """Wait until what was read is visible: the log has a commit before the tables have it."""
        deadline = self._monotonic() + _VISIBLE
        while not server.shows(*position):
            if self._monotonic() > deadline:
                raise StoreUnavailableError(
                    "a transaction of the binary log is not visible in the tables"
                )
            self._sleep(0.001)

    # -- what an operator does ---------------------------------------------------------------------

    def install(self) -> None:
        with self._errors(), self._asked() as ask:
            self._refuse(BinlogServer(ask))

    def statements(self) -> tuple[str, ...]:
        return tuple(text for one in self.findings() for text in one.statements)

    def findings(self) -> Iterator[Finding]:
        with self._errors(), self._asked() as ask:
            server = BinlogServer(ask)
            yield from server.findings(self.dialect.user, self.tables())

    def state(self) -> SourceState:
        with self._errors(), self._asked() as ask:
            server = BinlogServer(ask)
            wrong = [
                one
                for one in server.findings(self.dialect.user, self.tables())
                if one.level is Level.WRONG
            ]
            if wrong:
                return SourceState(False, details={"missing": "; ".join(o.text for o in wrong)})
            file, position, gtids = server.end()
            details = {"end of the log": f"{file} {position:,}", "last transactions": gtids}
            lag = None
            if self._done.file:
                details["read up to"] = f"{self._done.file} {self._done.position:,}"
                lag = server.bytes_between(self._done.file, self._done.position)
            return SourceState(True, lag_bytes=lag, details=details)

    def _refuse(self, server: BinlogServer) -> None:
        """Raise ``ConfigError`` if the server lacks what this source needs."""
        found = [
            one
            for one in server.findings(self.dialect.user, self.tables())
            if one.level is Level.WRONG
        ]
        if found:
            raise ConfigError(
                f"capture by the binary log: {'; '.join(one.text for one in found)}",
                hint="; ".join(text for one in found for text in one.statements)
                or 'use Store(capture="triggers")',
            )

    # -- connections -------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        _, settings = self.engine.dialect.create_connect_args(self.engine.url)
        return {"connect_timeout": 10, **settings}

    def _ask(self) -> Ask:
        """Return a function that asks the server, on the connection of this source."""
        if self._connection is None:
            self._connection = self._connect()
        return Ask(self.dialect.raw(self._connection), self._connection)

    @contextmanager
    def _asked(self) -> Iterator[Ask]:
        """Yield a function that asks the server, with an ordinary connection."""
        with self._connect() as connection:
            yield Ask(self.dialect.raw(connection), connection)

    def _connect(self) -> sa.Connection:
        """Return a new connection to the server, on which each statement is a transaction."""
        # Not of the store's pool: its connections wait for ever for a server that hangs, and may
        # not have rights yet that were granted since they were made.
        timeouts = {"read_timeout": _SILENCE, "write_timeout": _SILENCE, "connect_timeout": 10}
        engine = sa.create_engine(
            self.engine.url, poolclass=sa.pool.NullPool, connect_args=timeouts
        )
        connection = engine.connect()
        self.dialect.set_up(connection)
        self.dialect.raw(connection).autocommit(True)
        return connection

    def _errors(self) -> Any:
        return errors("the capture by the binary log", self.dialect, self.engine.url)


class _Group:
    """A transaction of the log that is being read."""

    __slots__ = ("gtid", "keys", "moment", "standalone")

    def __init__(
        self,
        gtid: tuple[int, int, int] = (0, 0, 0),
        *,
        moment: float = 0.0,
        standalone: bool = False,
    ) -> None:
        self.gtid = gtid
        self.keys: dict[str, set[str]] = {}
        self.moment = moment
        self.standalone = standalone

    @property
    def open(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self.gtid[2] > 0


class _Batch:
    """What was read from the log and not told yet: the last moment of each changed row."""

    __slots__ = ("behind", "count", "keys", "whole")

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, float]] = {}
        self.whole: dict[str, str] = {}
        self.count = 0
        self.behind = False


class _Reader:
    """Reads the keys of the rows of one table from events."""

    def __init__(self, table: CapturedTable, server: BinlogServer) -> None:
        self.table = table
        types = server.types(table)
        self._columns = [(name, _converter(types.get(name, ("", None)))) for name in table.keys]

    def keys(self, row: Mapping[str, Any], *, update: bool) -> list[str]:
        """Return the keys of a row before and after its change. Leave out what is no key."""
        if not update:
            images = [self._values(row["values"], row["none_sources"], {}, {})]
        else:
            before, absent = row["before_values"], row["before_none_sources"]
            images = [
                self._values(before, absent, {}, {}),
                self._values(row["after_values"], row["after_none_sources"], before, absent),
            ]
        found = []
        for values in images:
            with suppress(EventSyncError):  # a read of all records reports the row
                found.append(self.table.key_text(values))
        return found

    def _values(
        self,
        image: Mapping[str, Any],
        absent: Mapping[str, str],
        other: Mapping[str, Any],
        other_absent: Mapping[str, str],
    ) -> list[Any]:
        """Return the values of the key. A column that an update does not change may be absent."""
        values = []
        for name, convert in self._columns:
            if absent.get(name) == "cols_bitmap":
                image, absent = other, other_absent
            if name not in image or absent.get(name) == "cols_bitmap":
                raise ValueError(f"it has no column {name!r}")
            value = image[name]
            values.append(None if value is None else convert(value))
        return values


def _converter(kind: tuple[str, int | None]) -> Callable[[Any], Any]:
    """Return a function that returns a value of the log as the driver would return it."""
    name, length = kind
    if name == "bit":
        return lambda value: int(value, 2)
    if name == "binary" and length:
        size = length
        # The log leaves out zeros at the end.
        return lambda value: _bytes(value).ljust(size, b"\0")
    if name == "varbinary":
        return _bytes
    if name == "date":
        return lambda value: value.date() if isinstance(value, dt.datetime) else value
    return lambda value: value


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


def _text(gtids: Gtids) -> str:
    return ",".join(f"{d}-{server}-{number}" for d, (server, number) in sorted(gtids.items()))


def _xa_name(gtrid: Any, bqual: Any, format_id: int) -> str:
    """Return the id of an XA transaction as the log writes it in statements."""
    parts = [one.encode() if isinstance(one, str) else bytes(one) for one in (gtrid, bqual)]
    return ",".join([*(f"X'{part.hex().upper()}'" for part in parts), str(format_id)])
