"""A replication connection to PostgreSQL: streams the log of a slot through psycopg."""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.conninfo import make_conninfo

from eventsync.errors import ConfigError, StoreUnavailableError

__all__ = ["ReplicationStream", "lsn_text", "lsn_value"]

_EPOCH_MICROS: Final = 946_684_800_000_000  # 2000-01-01, in microseconds since 1970
_DATA = struct.Struct("!Bqqq")
_KEEPALIVE = struct.Struct("!BqqB")
_STATUS = struct.Struct("!BqqqqB")
# The server ends a connection that is silent for a minute, by default. Another process takes over
# the slot of one that is silent for ten seconds.
_STATUS_EVERY: Final = 3.0
# The form of values does not depend on the settings of role and database.
_FORM: Final = (
    "-c datestyle=ISO,YMD -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
)


def lsn_text(lsn: int) -> str:
    """Return a position in the log as PostgreSQL writes it, for example ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_value(text: str) -> int:
    """Return a position in the log, given as PostgreSQL writes it."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


class ReplicationStream:
    """The stream of one replication slot, from a position on. Not thread-safe.

    ``url``: the URL of the database; it must lead to the server itself, not to a pooler. ``slot``:
    the name of the slot. ``options``: the options of ``pgoutput``. ``start``: the position.

    Raises ``StoreUnavailableError`` if the server is away or somebody else reads the slot, and
    ``ConfigError`` if the server refuses the connection.
    """

    def __init__(
        self,
        url: sa.URL,
        slot: str,
        options: str,
        start: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self.flushed = start
        """The position up to which the server may forget the log."""
        self.sent = start
        """The position up to which the server has sent everything."""
        self.asked_at: float | None = None
        """Since when the server has not answered ``ask``; ``None`` if it has."""
        self._told = 0.0
        self._connection = _connect(url)
        try:
            self._raw: Any = self._connection.pgconn
            self._start(slot, options, start)
        except BaseException:
            self.close()
            raise

    def _start(self, slot: str, options: str, start: int) -> None:
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL {lsn_text(start)} ({options})'
        result = self._raw.exec_(command.encode())
        if result.status == pq.ExecStatus.COPY_BOTH:
            return
        text = result.error_message.decode(errors="replace").strip()
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        if state in ("55006", "53300", "57P03"):  # in use, too many connections, starting up
            raise StoreUnavailableError(f"replication slot {slot}: {text}")
        raise ConfigError(
            f"replication slot {slot}: {text}",
            hint="eventsync capture status STORE says what is missing",
        )

    def read(self) -> bytes | None:
        """Return the next message of ``pgoutput``, or ``None`` if none has arrived. Do not wait."""
        while True:
            length, data = self._raw.get_copy_data(1)
            if length > 0:
                self.asked_at = None
                kind = data[0]
                if kind == 119:  # w
                    return bytes(data[25:])
                if kind == 107:  # k
                    _, self.sent, _, wants_answer = _KEEPALIVE.unpack(data)
                    if wants_answer:
                        self.tell()
                continue
            if length == 0:
                if not self._consume():
                    return None
                continue
            raise StoreUnavailableError(
                f"the server ended the replication: {self._last_error()}",
                hint="the capture connects again by itself",
            )

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives, at most ``seconds``. Return whether something did."""
        self.keep_alive()
        ready, _, _ = select.select([self._raw.socket], [], [], max(0.0, seconds))
        return bool(ready)

    def ask(self) -> None:
        """Ask the server for a sign of life. It answers even while it has nothing to send."""
        self.tell(answer=True)
        if self.asked_at is None:
            self.asked_at = self._monotonic()

    def tell(self, *, answer: bool = False) -> None:
        """Tell the server what is flushed, which is also a sign of life."""
        micros = time.time_ns() // 1000 - _EPOCH_MICROS
        status = _STATUS.pack(114, self.flushed, self.flushed, self.flushed, micros, answer)  # r
        try:
            self._raw.put_copy_data(status)
            self._raw.flush()
        except psycopg.Error as error:
            raise StoreUnavailableError(f"the replication connection is lost: {error}") from error
        self._told = self._monotonic()

    def keep_alive(self) -> None:
        """Tell the server that this side lives, if that is due."""
        if self._monotonic() - self._told > _STATUS_EVERY:
            self.tell()

    @property
    def process(self) -> int:
        """The number of the server's process that reads the log for this connection."""
        return self._connection.info.backend_pid

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, whose settings say which form the values have."""
        return self._connection

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def _consume(self) -> bool:
        """Take in what has arrived. Return whether anything has."""
        if not select.select([self._raw.socket], [], [], 0)[0]:
            return False
        try:
            self._raw.consume_input()
        except psycopg.Error as error:
            raise StoreUnavailableError(
                f"the replication connection is lost: {str(error).strip()}"
            ) from error
        return True

    def _last_error(self) -> str:
        result = self._raw.get_result()
        text = b"" if result is None else result.error_message
        return text.decode(errors="replace").strip() or "no reason was given"


def _connect(url: sa.URL) -> psycopg.Connection[Any]:
    parameters = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
        **url.query,
    }
    given = {name: str(value) for name, value in parameters.items() if value is not None}
    given = {"connect_timeout": "10", "application_name": "eventsync capture", **given}
    given["client_encoding"] = "UTF8"
    given["options"] = f"{given.get('options', '')} {_FORM}".strip()
    try:
        where = make_conninfo("", replication="database", **given)
        return psycopg.connect(where, autocommit=True)
    except psycopg.OperationalError as error:
        text = str(error).strip()
        if "unsupported startup parameter" in text:
            raise ConfigError(
                f"no replication connection to {url.host}: {text}",
                hint="the URL leads to a pooler; give the accessor of the store the URL of the "
                "server itself: SqlAccessor(..., replication=Replication(url=...))",
            ) from None
        about = f"no replication connection to {url.host or 'the server'}: {text}"
        if any(sign in text for sign in ("permission denied", "authentication", "pg_hba.conf")):
            raise ConfigError(
                about,
                hint="the role needs REPLICATION, and pg_hba.conf a line for it",
            ) from None
        raise StoreUnavailableError(about) from error
