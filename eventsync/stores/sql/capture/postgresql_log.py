"""The log of PostgreSQL as a change source: logical decoding by ``pgoutput``."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import psycopg
import sqlalchemy as sa
from psycopg.adapt import Transformer

from eventsync.engine.change_source import Changes, MarkLostError, SourceState
from eventsync.engine.finding import Finding
from eventsync.errors import (
    EventSyncError,
    RecordError,
    StoreUnavailableError,
    shown,
)
from eventsync.stores.sql.capture.log_server import Ask, LogServer, quoted
from eventsync.stores.sql.capture.log_setup import PUBLICATION, LogSetup
from eventsync.stores.sql.capture.pgoutput import Decoder, Parts, Relation, Transaction
from eventsync.stores.sql.capture.replication import ReplicationStream, lsn_text, lsn_value
from eventsync.stores.sql.capture.source import Captured, CapturedTable, SqlSource
from eventsync.stores.sql.engine import errors, open_engine

__all__ = ["PostgresqlLog"]

# After so many distinct keys a call returns, at the end of a transaction.
_MOST_KEYS: Final = 200_000
# So many seconds a call reads at most. It then returns nothing, and the next one continues.
_SLICE: Final = 1.0
# For so many seconds, calls read on before they return what they have read.
_LONGEST: Final = 10.0
# After so many messages, a call looks at the clock.
_MESSAGES: Final = 500
# A commit that is older, in seconds, shows that the log is read late.
_LATE: Final = 1.0
# While the log is read late, wait so many seconds for more of it.
_LATE_WAIT: Final = 0.1
# The time between two heartbeats, in seconds.
_HEARTBEAT: Final = 10.0
# A server that does not answer for so many seconds is away.
_SILENCE: Final = 30.0
# The slot of a process that is silent for so many seconds is taken over.
_DEAD: Final = 10.0
_TAKE_OVER: Final = 3.0
_XIDS: Final = 1 << 32
_LONGEST_NAME: Final = 63
# The types that a query returns for columns of these types: those below the domains.
_BASE_TYPES: Final = """
WITH RECURSIVE base (type, below) AS (
    SELECT oid, oid FROM pg_type WHERE oid = ANY(%s)
    UNION ALL SELECT type, typbasetype FROM base JOIN pg_type ON oid = below WHERE typtype = 'd')
SELECT type::bigint, below::bigint FROM base JOIN pg_type ON oid = below WHERE typtype <> 'd'
"""


@dataclass(slots=True, frozen=True)
class _Mark:
    """A position in the log of one server: ``system``, its identity, and the position.

    ``identities``: those of ``LogSetup``.
    """

    system: str
    lsn: int
    identities: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        same = json.dumps(self.identities, separators=(",", ":"))
        return f"{self.system} {lsn_text(self.lsn)} {same}"

    @classmethod
    def parse(cls, text: str) -> _Mark:
        system, lsn, same = text.split(" ", 2)
        return cls(system, lsn_value(lsn), json.loads(same))


class PostgresqlLog(SqlSource):
    """Tells the keys of rows as PostgreSQL's log does: in the order of the commits, with deletes.

    It needs a server with ``wal_level=logical``, a publication of the captured tables, and a
    replication slot. Both have the name ``eventsync_DATABASE_STORE``, unless ``Replication`` says
    otherwise. ``install`` creates them, or an administrator does.

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
        given = self.replication
        name = _name(str(self.engine.url.database or ""), store)
        # A server has one slot of a name.
        self.name = given.slot or name
        """The name of the slot."""
        self.publication = given.publication or name
        """The name of the publication."""
        self._monotonic = monotonic
        self._stream: ReplicationStream | None = None
        self._decoder: Decoder | None = None
        self._batch = _Batch()
        self._system = ""
        self._identities: dict[str, str] = {}
        self._tables: dict[int, CapturedTable] = {}
        self._readers: dict[int, tuple[Relation, Callable[[Parts], str]]] = {}
        # What ``open`` found out and ``changes`` has to tell.
        self._anew: dict[str, str] = {}
        self._beat_at = 0.0
        self._marked = 0

    # -- the contract ------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        before = _Mark.parse(mark) if mark else None
        with self._asked() as ask:
            setup = self._setup(ask)
            setup.refuse_wrong()
            if before is not None:
                self._refuse_gap(before, setup)
            setup = self._installed(setup, ask)
            server = setup.server
            self._identities = setup.identities()
            if before is None:
                start, self._anew = self._begun(setup, ask), {}
            else:
                start, self._anew = before.lsn, _replaced(before.identities, self._identities)
            self._take_over(server, ask)
            options = server.options(self.publication)
        self._system = server.system
        self._tables = {table.oid: table.captured for table in setup.tables}
        self._decoder = Decoder(self._wanted)
        self._batch, self._readers = _Batch(), {}
        self._stream = ReplicationStream(
            self._url(), self.name, options, start, monotonic=self._monotonic
        )
        self._marked = start
        self._beat_at = 0.0
        return self._mark()

    def _begun(self, setup: LogSetup, ask: Ask) -> int:
        """Return the position to begin at: the present end of the log, or one before it."""
        server, slot = setup.server, setup.slot
        if slot is not None and slot["wal_status"] == "lost":
            ask("SELECT pg_drop_replication_slot(%s)", self.name)
            ask(server.slot_statement(self.name))
        elif slot is not None and slot["active_pid"] is None:
            # All records will be read, so what was written before is of no interest. The server
            # could not decode it if the publication is younger.
            server.advance(self.name)
        slot = server.slot(self.name)
        assert slot is not None
        return lsn_value(slot["confirmed_flush_lsn"])

    def _refuse_gap(self, mark: _Mark, setup: LogSetup) -> None:
        """Raise ``MarkLostError`` if changes after ``mark`` may be missing."""
        reason, slot = "", setup.slot
        published = setup.identities().get(PUBLICATION)
        if mark.system != setup.server.system:
            reason = "the database server is another one"
        elif slot is None:
            reason = f"the replication slot {self.name} is gone"
        elif slot["wal_status"] == "lost":
            reason = f"the server has dropped the log of the replication slot {self.name}"
        elif lsn_value(slot["confirmed_flush_lsn"]) > mark.lsn:
            reason = f"the replication slot {self.name} was made anew or read by somebody else"
        elif setup.server.position() < mark.lsn:
            reason = "the server was restored to a time before the last capture"
        elif mark.identities.get(PUBLICATION) != published:
            reason = f"the publication {self.publication} was dropped or made anew"
        if reason:
            raise MarkLostError(reason)

    def _take_over(self, server: LogServer, ask: Ask) -> None:
        """End the reader of the slot if it is dead. Raise ``StoreUnavailableError`` if it is not.

        A process that was suspended, or whose machine is gone, leaves its connection open. The
        server itself ends it after ``wal_sender_timeout``, a minute by default.
        """
        deadline = self._monotonic() + _TAKE_OVER
        while (slot := server.slot(self.name)) is not None and slot["active_pid"] is not None:
            process = int(slot["active_pid"])
            silence = server.silence(process)
            if silence is not None and silence > _DEAD:
                ask("SELECT pg_terminate_backend(%s)", process)
            elif silence is not None and self._monotonic() > deadline - _TAKE_OVER / 2:
                raise StoreUnavailableError(
                    f"the replication slot {self.name} is active for process {process} of the "
                    f"server, whose reader was heard {silence:.0f} s ago",
                    hint=f"it is taken over when that reader is silent for {_DEAD:.0f} s; if two "
                    "deployments use this store's name, give one of them another slot",
                )
            if self._monotonic() > deadline:
                raise StoreUnavailableError(
                    f"the replication slot {self.name} is active for process {process} of the "
                    "server, which does not end",
                    hint="the capture tries again by itself",
                )
            time.sleep(0.05)

    def changes(self, mark: str, *, wait: float) -> Changes:
        stream, batch = self._stream, self._batch
        assert stream is not None
        began = self._monotonic()
        self._beat()
        if self._anew:
            whole, self._anew = self._anew, {}
            return Changes(self._mark(), whole=whole, behind=True)
        if not batch.began:
            batch.began = began
        while True:
            arrived = self._read(batch, began + _SLICE)
            now = self._monotonic()
            if batch.count >= _MOST_KEYS:
                batch.behind = True
                break
            if now - began >= _SLICE and arrived:
                if now - batch.began < _LONGEST or not batch.tells:
                    stream.keep_alive()
                    return self._nothing()
                batch.behind = True
                break
            if arrived:
                continue
            late = batch.tells and time.time() - batch.moment > _LATE
            left = _LATE_WAIT if late else (0.0 if batch.tells else wait - (now - began))
            if left <= 0 or not stream.wait(left):
                break
        if stream.asked_at is not None and self._monotonic() - stream.asked_at > _SILENCE:
            raise StoreUnavailableError(
                f"the server has not answered on the replication connection for {_SILENCE:.0f} s",
                hint="the capture connects again by itself",
            )
        if batch.tells and not self._are_visible(batch.xids):
            return self._nothing()
        self._batch = _Batch()
        self._marked = max(self._marked, batch.end)
        return self._told(batch)

    def _nothing(self) -> Changes:
        """Return that more is being read."""
        return Changes(self._mark(), behind=True)

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

    def _mark(self) -> str:
        return str(_Mark(self._system, self._marked, self._identities))

    def _url(self) -> sa.URL:
        url = self.replication.url
        return self.engine.url if url is None else open_engine(url).url

    # -- reading the log ---------------------------------------------------------------------------

    def _read(self, batch: _Batch, until: float) -> bool:
        """Take in what has arrived, up to the limit of a batch. Return whether anything had.

        ``until``: when to stop although more has arrived.
        """
        stream, decoder = self._stream, self._decoder
        assert stream is not None
        assert decoder is not None
        read, feed = stream.read, decoder.feed
        count = 0
        while (message := read()) is not None:
            count += 1
            if (done := feed(message)) is not None:
                batch.add(done)
                if batch.count >= _MOST_KEYS:
                    break
            elif message[0] == 77 and decoder.is_between:  # M: the heartbeat has come back
                batch.end = max(batch.end, int.from_bytes(message[2:10], "big"))
            if not count % _MESSAGES and self._monotonic() >= until:
                break
        return count > 0

    def _beat(self) -> None:
        """Send a heartbeat if it is due, and look whether the tables are still the same."""
        now = self._monotonic()
        if now - self._beat_at < _HEARTBEAT:
            return
        assert self._stream is not None
        self._beat_at = now
        self._stream.ask()
        with self._asked() as ask:
            ask("SELECT pg_logical_emit_message(false, 'eventsync-heartbeat', '')")
            setup = self._setup(ask)
        if setup.identities() != self._identities:
            raise StoreUnavailableError(
                f"the tables of the publication {self.publication} were changed",
                hint="the capture opens the log again by itself",
            )

    def _are_visible(self, xids: set[int]) -> bool:
        """Wait until readers see these transactions: they may be in the log a moment before.

        Returns ``False`` after a while. With synchronous replication, a commit is visible only when
        the standby has it.
        """
        deadline, pause = self._monotonic() + _SLICE, 0.0005
        with self._asked() as ask:
            while True:
                _, high, running = ask("SELECT pg_current_snapshot()::text")[0][0].split(":")
                ahead = int(high) % _XIDS
                hidden = {int(xid) % _XIDS for xid in running.split(",") if xid}
                if not any(xid in hidden or _is_after(xid, ahead) for xid in xids):
                    return True
                if self._monotonic() > deadline:
                    return False
                self.keep_alive()
                time.sleep(pause)
                pause = min(pause * 1.5, 0.05)

    def _wanted(self, relation: int) -> tuple[str, ...] | None:
        table = self._tables.get(relation)
        return None if table is None else table.keys

    # -- keys --------------------------------------------------------------------------------------

    def _told(self, batch: _Batch) -> Changes:
        keys: dict[str, dict[str, float | None]] = {}
        unreadable: list[tuple[str, RecordError]] = []
        for relation, rows in batch.keys.items():
            type, read = self._tables[relation].type, self._reader(relation)
            of_type = keys.setdefault(type, {})
            for parts, moment in rows.items():
                try:
                    of_type[read(parts)] = moment
                except (EventSyncError, ValueError, psycopg.Error) as error:
                    unreadable.append((type, _no_key(type, parts, error)))
        tables = self._tables
        whole = {tables[one].type: text for one, text in batch.whole.items() if one in tables}
        return Changes(self._mark(), keys, whole, unreadable, behind=batch.behind, own=batch.own)

    def _reader(self, relation: int) -> Callable[[Parts], str]:
        """Return a function that makes keys of the rows of a table."""
        assert self._decoder is not None
        assert self._stream is not None
        known = self._decoder.relations[relation]
        before = self._readers.get(relation)
        # The server describes a table anew after each ALTER TABLE.
        if before is None or before[0] is not known:
            with self._asked() as ask:
                base = dict(ask(_BASE_TYPES, list(known.types)))
            loaders = Transformer(self._stream.connection)
            text = psycopg.pq.Format.TEXT
            loads = [loaders.get_loader(base.get(t, t), text).load for t in known.types]
            before = (known, _key_reader(self._tables[relation], loads))
            self._readers[relation] = before
        return before[1]

    # -- operation ---------------------------------------------------------------------------------

    def install(self) -> None:
        with self._asked() as ask:
            setup = self._setup(ask)
            setup.refuse_wrong()
            self._installed(setup, ask)

    def _installed(self, setup: LogSetup, ask: Ask) -> LogSetup:
        """Provide what is missing; return what the server has then."""
        missing = list(setup.missing())
        for statement in missing:
            ask(statement)
        return self._setup(ask) if missing else setup

    def remove(self) -> None:
        own = self._stream.process if self._stream is not None else None
        self.close()
        with self._asked() as ask:
            server = LogServer(ask)
            deadline = self._monotonic() + _TAKE_OVER
            while (slot := server.slot(self.name)) is not None and slot["active_pid"] is not None:
                if slot["active_pid"] != own or self._monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"the replication slot {self.name} is in use by process "
                        f"{slot['active_pid']} of the server",
                        hint="stop the worker and eventsync capture of this store first",
                    )
                time.sleep(0.05)
            if slot is not None:
                ask("SELECT pg_drop_replication_slot(%s)", self.name)
            if not self.replication.publication:
                ask(f"DROP PUBLICATION IF EXISTS {quoted(self.publication)}")

    def statements(self) -> tuple[str, ...]:
        with self._asked() as ask:
            return self._setup(ask).statements()

    def findings(self) -> Iterable[Finding]:
        with self._asked() as ask:
            return list(self._setup(ask).findings())

    def state(self) -> SourceState:
        with self._asked() as ask:
            return self._setup(ask).state()

    def _setup(self, ask: Ask) -> LogSetup:
        return LogSetup(
            LogServer(ask),
            self.tables(),
            slot=self.name,
            publication=self.publication,
            shared=bool(self.replication.publication),
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

    __slots__ = ("began", "behind", "count", "end", "keys", "moment", "own", "whole", "xids")

    def __init__(self) -> None:
        self.keys: dict[int, dict[Parts, float]] = {}
        self.whole: dict[int, str] = {}
        self.xids: set[int] = set()
        self.count = 0
        self.own = 0
        self.end = 0
        self.moment = 0.0
        self.began = 0.0
        self.behind = False

    @property
    def tells(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.count or self.whole)

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


def _replaced(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return the record types whose tables are others than before, with the reason."""
    reasons = {}
    for type, identity in now.items():
        if type != PUBLICATION and type not in before:
            reasons[type] = "its capture begins"
        elif type != PUBLICATION and before[type] != identity:
            reasons[type] = "the table was replaced, or left out of the publication for a time"
    return reasons


def _key_reader(
    table: CapturedTable, loads: Sequence[Callable[..., Any]]
) -> Callable[[Parts], str]:
    """Return a function that makes the key of a row. ``loads``: what makes values of texts."""
    key_text = table.key_text
    if len(loads) == 1:
        load = loads[0]

        def read_one(parts: Parts) -> str:
            (part,) = parts
            return key_text((None if part is None else load(part),))

        return read_one

    def read(parts: Parts) -> str:
        both = zip(loads, parts, strict=True)
        return key_text([None if part is None else load(part) for load, part in both])

    return read


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
