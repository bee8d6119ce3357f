"""The spool: a local file in which programs without a database store envelopes durably."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eventsync.broker.broker_life import Broker, BrokerLife
from eventsync.broker.tracing import Tracing
from eventsync.changes.change import Change
from eventsync.database_file import DatabaseFile
from eventsync.engine.publisher import Publisher
from eventsync.envelope import codec
from eventsync.envelope.key_file import KeyFile
from eventsync.envelope.signing import Keyring
from eventsync.errors import BusUnavailableError, ConfigError, UnroutableError

__all__ = ["Spool", "SpoolState"]

# How many envelopes are read and published at a time.
_CHUNK: Final = 1000
# The shortest time between two removals of confirmed envelopes, in seconds.
_DROP_EVERY: Final = 1.0
_APPLICATION_ID: Final = 0x65737370  # "essp": eventsync spool
_SCHEMA_VERSION: Final = 1
# ``made``: when the envelope was stored. ``sent``: when the broker confirmed it; null before that.
# Both in seconds since the epoch.
_SCHEMA: Final = """
CREATE TABLE spool (
    number INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, body BLOB NOT NULL,
    made REAL NOT NULL, sent REAL);
CREATE INDEX spool_waiting ON spool (type, number) WHERE sent IS NULL;
CREATE INDEX spool_sent ON spool (sent) WHERE sent IS NOT NULL;
"""


@dataclass(slots=True, frozen=True)
class SpoolState:
    """The numbers of envelopes in a spool, and the size of the file."""

    waiting: int
    """The number of envelopes that are not published yet."""
    oldest: float | None
    """The age of the oldest unpublished envelope, in seconds; ``None`` if there is none."""
    kept: int
    """The number of published envelopes that stay in the spool in case the broker loses them."""
    bytes: int
    """The size of the used part of the file, in bytes."""


class Spool:
    """A ``Publisher`` that stores envelopes in a file. A ``SpoolRelay`` publishes them later.

    When ``publish`` returns, the envelopes are on the disk; no broker is needed. A confirmed
    envelope stays in the spool for at least ``republish_window`` seconds, and until a later publish
    has succeeded. The relay publishes these envelopes again when it starts and when the connection
    was lost or the broker was restarted, because the broker may have lost them. This does no harm:
    workers apply an envelope once, however often it is published.

    ``keys``: sign the envelopes with these keys. ``max_envelope``: the largest size of an envelope,
    in bytes. ``max_bytes``: the largest size of the file; when it is reached, ``publish`` raises an
    error. SQLite's log beside the file does not count. ``tracing``: records traces of the encoded
    changes. Any number of threads and processes may use one file on a local disk. Usable as a
    context manager.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keys: Keyring | KeyFile | None = None,
        max_envelope: int = codec.MAX_BYTES,
        republish_window: float = 10.0,
        max_bytes: int = 1 << 30,
        timeout: float = 30.0,
        tracing: Tracing | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Keep the settings; the first use opens the file.

        ``timeout``: how long to wait while another process locks the file, in seconds.
        """
        self.path = Path(path)
        self.name = self.path.name
        self._keys = keys
        self._max_envelope = max_envelope
        self._window = republish_window
        self._max_bytes = max_bytes
        self._tracing = tracing
        self._now = now
        self._file = DatabaseFile(
            path,
            kind="spool",
            application_id=_APPLICATION_ID,
            schema_version=_SCHEMA_VERSION,
            schema=_SCHEMA,
            unavailable=BusUnavailableError,
            invalid=ConfigError,
            repair="stop the spool's relay, move the file away, and try the `.recover` command of "
            "sqlite3 on the file",
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"Spool({str(self.path)!r})"

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def _keyring(self) -> Keyring | None:
        return self._keys.keyring if isinstance(self._keys, KeyFile) else self._keys

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change`` as bytes, signed if keys are configured.

        Raises ``ValueRefusedError`` if the change cannot be encoded.
        """
        if self._tracing is not None:
            change = self._tracing.published(change)
        return codec.encode(change, keys=self._keyring, max_bytes=self._max_envelope)

    def encode_all(self, changes: Iterable[Change]) -> list[bytes]:
        """Return the envelopes of ``changes``, in the same order.

        If consecutive changes are similar, this is faster than calling ``encode`` for each change.
        """
        if self._tracing is not None:
            changes = map(self._tracing.published, changes)
        return codec.encode_all(list(changes), keys=self._keyring, max_bytes=self._max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Store envelopes of one record type in the file, all or none.

        When this returns, the envelopes are on the disk. Raises ``BusUnavailableError`` if the
        spool is full or cannot be written at the moment.
        """
        now = self._now()
        with self._file.transaction() as connection:
            used = _bytes(connection)
            connection.executemany(
                "INSERT INTO spool (type, body, made) VALUES (?, ?, ?)",
                [(type, body, now) for body in envelopes],
            )
            # Checked after the insert, because only then the size is known. The error makes the
            # transaction roll back.
            if _bytes(connection) > self._max_bytes:
                raise BusUnavailableError(
                    f"the spool {self.path} is full: {used:,} of {self._max_bytes:,} bytes are in "
                    f"use, and another {len(envelopes)} envelopes do not fit",
                    hint="check that `eventsync relay --spool` runs and that its broker answers, "
                    "or raise max_bytes of the spool",
                )

    def relay(self, publisher: Broker) -> SpoolRelay:
        """Return a relay that publishes the envelopes of this spool through ``publisher``."""
        return SpoolRelay(self, publisher)

    def state(self) -> SpoolState:
        """Return the numbers of envelopes in the spool and the size of the file.

        Raises ``BusUnavailableError`` if the file cannot be read at the moment.
        """
        with self._file.connection() as connection:
            waiting, made = connection.execute(
                "SELECT count(*), min(made) FROM spool WHERE sent IS NULL"
            ).fetchone()
            (kept,) = connection.execute(
                "SELECT count(*) FROM spool WHERE sent IS NOT NULL"
            ).fetchone()
            age = None if made is None else max(0.0, self._now() - made)
            return SpoolState(waiting, age, kept, _bytes(connection))

    def close(self) -> None:
        """Close this thread's connection to the file. Idempotent. The next use opens a new one."""
        self._file.close()

    # -- for the relay -----------------------------------------------------------------------------

    def lock(self) -> sqlite3.Connection | None:
        """Take the lock that allows a relay to publish; return ``None`` if another relay has it.

        The returned connection holds the lock until it is closed or its process dies.
        """
        return self._file.try_lock("relay")

    def send(self, publisher: Publisher, where: str, arguments: Sequence[object] = ()) -> int:
        """Publish the envelopes that the SQL condition ``where`` selects, and mark them as sent.

        Returns how many were published. ``arguments``: the parameters of the condition. If no queue
        receives a record type, its envelopes stay unpublished; the other types are published, then
        ``UnroutableError`` is raised.
        """
        sent = 0
        rows = self._file.read(f"SELECT DISTINCT type FROM spool WHERE {where}", arguments)
        types = [str(row[0]) for row in rows]
        unroutable: UnroutableError | None = None
        for type in types:
            try:
                for count in self._send_type(publisher, type, where, arguments):
                    sent += count
            except UnroutableError as error:
                unroutable = error
        if unroutable is not None:
            raise unroutable
        return sent

    def _send_type(
        self, publisher: Publisher, type: str, where: str, arguments: Sequence[object]
    ) -> Iterator[int]:
        after = 0
        while True:
            rows = self._file.read(
                f"SELECT number, body FROM spool WHERE type = ? AND number > ? AND {where}"
                " ORDER BY number LIMIT ?",
                [type, after, *arguments, _CHUNK],
            )
            if not rows:
                return
            after = rows[-1][0]
            publisher.publish(type, [body for _, body in rows])
            now = self._now()
            with self._file.transaction() as connection:
                connection.executemany(
                    "UPDATE spool SET sent = ? WHERE number = ?", [(now, n) for n, _ in rows]
                )
            yield len(rows)

    def last_kept(self, before: float) -> tuple[str, bytes] | None:
        """Return the latest envelope that was confirmed at ``before`` or earlier, with its type.

        Returns (record type, envelope), or ``None`` if there is none. ``before``: in seconds since
        the epoch.
        """
        rows = self._file.read(
            "SELECT type, body FROM spool WHERE sent <= ? ORDER BY sent DESC LIMIT 1", [before]
        )
        return rows[0] if rows else None

    def drop(self, before: float) -> None:
        """Delete the envelopes that were confirmed at ``before`` or earlier.

        ``before``: in seconds since the epoch.
        """
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM spool WHERE sent <= ?", [before])

    @property
    def window_start(self) -> float:
        """The time ``republish_window`` seconds ago, in seconds since the epoch.

        Envelopes confirmed before this time are safe if the broker has not been lost since.
        """
        return self._now() - self._window


class SpoolRelay:
    """Publishes the envelopes of a spool. Not thread-safe. Usable as a context manager.

    Several relays may serve one spool, but only one of them publishes at a time. When this relay is
    closed, dies or loses the broker, another relay continues.
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
        """Release the spool's lock, so that another relay can publish. Idempotent."""
        lock, self._lock = self._lock, None
        # While this relay is closed, it cannot detect a restart of the broker.
        self._broker_life.forget()
        if lock is not None:
            lock.close()

    def run_once(self) -> int:
        """Publish waiting envelopes and return how many were published.

        Returns 0 if another relay of the spool publishes. Raises ``BusUnavailableError`` if the
        broker cannot be reached or the file cannot be used at the moment, and ``UnroutableError``
        if no queue receives a record type. Unpublished envelopes stay in the spool.
        """
        if self._lock is None:
            self._spool.state()  # raises if the file is wrong, before the lock file is created
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
        window_start = spool.window_start
        life = self._broker_life
        if life.may_have_forgotten() or life.seen_at is None:
            spool.send(publisher, "sent IS NOT NULL")
            life.confirm()
        elif (
            # Done rarely, because it costs a publish and a write.
            abs(window_start - self._dropped) >= _DROP_EVERY
            and (last := spool.last_kept(window_start)) is not None
        ):
            # If the broker confirms this publish, it has not been lost meanwhile.
            publisher.publish(last[0], [last[1]])
            spool.drop(window_start)
            self._dropped = window_start
        return spool.send(publisher, "sent IS NULL")


def _bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the used pages of the file, in bytes."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)
