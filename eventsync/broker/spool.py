"""The spool: a local file that takes envelopes durably where a producer has no database.

It owns the file, what is kept in it for how long, and its bound. It must not know how the broker is
reached (a ``Publisher`` takes the envelopes) or what they say.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eventsync.broker.broker_life import Broker, BrokerLife
from eventsync.broker.tracing import Tracing
from eventsync.changes.change import Change
from eventsync.engine.publisher import Publisher
from eventsync.envelope import codec
from eventsync.envelope.signing import Keyring
from eventsync.errors import BusUnavailableError, ConfigError, UnroutableError

__all__ = ["Spool", "SpoolState"]

_CHUNK: Final = 1000
_DROP_EVERY: Final = 1.0
_APPLICATION_ID: Final = 0x65737370  # "essp": eventsync spool
_SCHEMA_VERSION: Final = 1
# ``sent``: when the broker confirmed it, in seconds since the epoch; null while it waits.
_SCHEMA: Final = """
CREATE TABLE spool (
    number INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, body BLOB NOT NULL,
    made REAL NOT NULL, sent REAL);
CREATE INDEX spool_waiting ON spool (type, number) WHERE sent IS NULL;
CREATE INDEX spool_sent ON spool (sent) WHERE sent IS NOT NULL;
"""


@dataclass(slots=True, frozen=True)
class SpoolState:
    """How a spool stands: envelopes that wait, the age of the oldest of them in seconds, envelopes
    kept for a broker that forgets, and the bytes of the file in use.
    """

    waiting: int
    oldest: float | None
    kept: int
    bytes: int


class Spool:
    """Takes envelopes into a file, and publishes them from there; fits ``store.Publisher``.

    What ``publish`` took is on the disk when it returns, whether or not there is a broker.
    ``relay`` sends it on. What the broker has confirmed is kept for ``republish_window`` seconds,
    and until a later publish has gone well. When the broker was lost or started anew meanwhile, or
    another relay begins, it is published again, since the broker may have forgotten the last it had
    confirmed.
    What is published twice is applied once.

    ``keys``: sign what ``encode`` makes. ``tracing``: as of a ``Bus``. ``max_bytes``: how large the
    file may become by ``publish``, which then raises; the log that SQLite keeps beside it comes on
    top. Thread-safe and process-safe: any number of producers and relays may use one file on a
    local disk. Usable as a context manager.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keys: Keyring | None = None,
        max_envelope: int = codec.MAX_BYTES,
        republish_window: float = 10.0,
        max_bytes: int = 1 << 30,
        timeout: float = 30.0,
        tracing: Tracing | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``timeout``: how many seconds to wait for another writer. Opens the file at first use."""
        self.path = Path(path)
        self.name = self.path.name
        self._keys = keys
        self._max_envelope = max_envelope
        self._window = republish_window
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._tracing = tracing
        self._now = now
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"Spool({str(self.path)!r})"

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def encode(self, change: Change) -> bytes:
        """The envelope of ``change``, signed when keys are configured."""
        if self._tracing is not None:
            change = self._tracing.published(change)
        return codec.encode(change, keys=self._keys, max_bytes=self._max_envelope)

    def encode_all(self, changes: Iterable[Change]) -> list[bytes]:
        """The envelopes of changes in their order: quicker than one by one where they are alike."""
        if self._tracing is not None:
            changes = map(self._tracing.published, changes)
        return codec.encode_all(list(changes), keys=self._keys, max_bytes=self._max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Take envelopes of one record type: all of them are on the disk on return, or none.

        Raises ``BusUnavailableError`` when the spool is full or cannot be written now.
        """
        now = self._now()
        with self._writing() as connection:
            used = _bytes(connection)
            connection.executemany(
                "INSERT INTO spool (type, body, made) VALUES (?, ?, ?)",
                [(type, body, now) for body in envelopes],
            )
            # Looked at afterwards, when it is known what they take; the error undoes it.
            if _bytes(connection) > self._max_bytes:
                raise BusUnavailableError(
                    f"the spool {self.path} is full: {used:,} of {self._max_bytes:,} bytes are in "
                    f"use, and {len(envelopes)} envelopes more do not fit",
                    hint="see that eventsync relay --spool runs and that its broker answers, "
                    "or allow the spool more bytes",
                )

    def relay(self, publisher: Broker) -> SpoolRelay:
        """What publishes from this spool."""
        return SpoolRelay(self, publisher)

    def state(self) -> SpoolState:
        """How it stands. Raises ``BusUnavailableError``."""
        with self._errors():
            connection = self._open()
            waiting, made = connection.execute(
                "SELECT count(*), min(made) FROM spool WHERE sent IS NULL"
            ).fetchone()
            (kept,) = connection.execute(
                "SELECT count(*) FROM spool WHERE sent IS NOT NULL"
            ).fetchone()
            age = None if made is None else max(0.0, self._now() - made)
            return SpoolState(waiting, age, kept, _bytes(connection))

    def close(self) -> None:
        """Let go of this thread's hold of the file. Idempotent; it opens again when used again."""
        pid, connection = self._local.__dict__.pop("held", (0, None))
        if connection is not None and pid == os.getpid():
            connection.close()

    # -- for the relay -----------------------------------------------------------------------------

    def lock(self) -> sqlite3.Connection | None:
        """What nobody else has until it is closed, or its process dies; ``None`` if one has it."""
        with self._errors():
            lock = sqlite3.connect(
                self.path.with_name(f"{self.name}.relay"), timeout=0.0, isolation_level=None
            )
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                lock.close()
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                return None
            return lock

    def send(self, publisher: Publisher, where: str, arguments: Sequence[object] = ()) -> int:
        """Publish the rows that an SQL condition selects, in order, and note that; how many."""
        sent = 0
        with self._errors():
            query = f"SELECT DISTINCT type FROM spool WHERE {where}"
            types = [str(row[0]) for row in self._open().execute(query, arguments)]
        unroutable: UnroutableError | None = None
        for type in types:
            try:
                for count in self._send_type(publisher, type, where, arguments):
                    sent += count
            except UnroutableError as error:
                # Of a type that nobody takes all waits, and the others go on.
                unroutable = error
        if unroutable is not None:
            raise unroutable
        return sent

    def _send_type(
        self, publisher: Publisher, type: str, where: str, arguments: Sequence[object]
    ) -> Iterator[int]:
        after = 0
        while True:
            with self._errors():
                rows = (
                    self._open()
                    .execute(
                        f"SELECT number, body FROM spool WHERE type = ? AND number > ? AND {where}"
                        " ORDER BY number LIMIT ?",
                        [type, after, *arguments, _CHUNK],
                    )
                    .fetchall()
                )
            if not rows:
                return
            after = rows[-1][0]
            publisher.publish(type, [body for _, body in rows])
            now = self._now()
            with self._writing() as connection:
                connection.executemany(
                    "UPDATE spool SET sent = ? WHERE number = ?", [(now, n) for n, _ in rows]
                )
            yield len(rows)

    def last_kept(self, before: float) -> tuple[str, bytes] | None:
        """The type and envelope of the latest that was confirmed at a time or earlier."""
        with self._errors():
            row: tuple[str, bytes] | None = (
                self._open()
                .execute(
                    "SELECT type, body FROM spool WHERE sent <= ? ORDER BY sent DESC LIMIT 1",
                    [before],
                )
                .fetchone()
            )
            return row

    def drop(self, before: float) -> None:
        """Forget what was confirmed at a time or earlier, in seconds since the epoch."""
        with self._writing() as connection:
            connection.execute("DELETE FROM spool WHERE sent <= ?", [before])

    @property
    def settled_before(self) -> float:
        """A broker that still answers has all that it confirmed until then."""
        return self._now() - self._window

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            finally:
                if connection.in_transaction:
                    connection.rollback()

    def _open(self) -> sqlite3.Connection:
        """This thread's connection to the file; never one from before a fork."""
        pid, connection = self._local.__dict__.get("held", (0, None))
        if connection is not None and pid == os.getpid():
            return connection  # type: ignore[no-any-return]
        if not self.path.parent.is_dir():
            raise ConfigError(
                f"the folder {self.path.parent} of the spool {self.name} does not exist",
                hint="create it, or name another place for the spool",
            )
        opened = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
        try:
            self._prepare(opened)
        except BaseException:
            opened.close()
            raise
        self._local.held = (os.getpid(), opened)
        return opened

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Under the lock, so that of two that begin at once one makes it and the other finds it.
        connection.execute("BEGIN IMMEDIATE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and (application != _APPLICATION_ID or version > _SCHEMA_VERSION):
            raise ConfigError(
                f"{self.path} is no spool of this eventsync: a database of something else, "
                "or a newer spool",
                hint="name another file for the spool, or upgrade eventsync",
            )
        if not tables:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.commit()
        # Only now that it is known to be ours.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BusUnavailableError(
                f"the spool {self.path}: {error}", hint="is the disk full, or not writable?"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self.path} cannot be used as a spool: {error}",
                hint="name another file for the spool; nothing in this one was changed",
            ) from error


class SpoolRelay:
    """Publishes what waits in a spool. For one thread. Usable as a context manager.

    Of several that run at once the first does it until it is closed, dies or loses the broker; then
    another goes on where it was.
    """

    def __init__(self, spool: Spool, publisher: Broker) -> None:
        self.name = spool.name
        self._spool = spool
        self._publisher = publisher
        self._lock: sqlite3.Connection | None = None
        self._broker_life = BrokerLife(publisher)
        self._dropped = -math.inf

    def __enter__(self) -> SpoolRelay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave it to another. Idempotent."""
        lock, self._lock = self._lock, None
        # A restart of the broker while this relay does not look would go unnoticed.
        self._broker_life.forget()
        if lock is not None:
            lock.close()

    def run_once(self) -> int:
        """Publish what waits, unless another relay is at it; how many envelopes.

        Raises ``BusUnavailableError``, ``UnroutableError``; what was not published goes on waiting.
        """
        if self._lock is None:
            self._spool.state()  # a wrong file is told before anything is made beside it
            self._lock = self._spool.lock()
        if self._lock is None:
            return 0
        try:
            return self._publish()
        except BusUnavailableError:
            self.close()
            raise

    def _publish(self) -> int:
        spool, publisher = self._spool, self._publisher
        settled = spool.settled_before
        life = self._broker_life
        if life.may_have_forgotten() or life.seen_at is None:
            spool.send(publisher, "sent IS NOT NULL")
            life.confirm()
        elif (
            # Not at every look: it is a publish and a write that nobody waits for.
            abs(settled - self._dropped) >= _DROP_EVERY
            and (last := spool.last_kept(settled)) is not None
        ):
            # Only a broker that has answered since is known to have lived on.
            publisher.publish(last[0], [last[1]])
            spool.drop(settled)
            self._dropped = settled
        return spool.send(publisher, "sent IS NULL")


def _bytes(connection: sqlite3.Connection) -> int:
    """The bytes of the file in use."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)
