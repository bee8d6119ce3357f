"""A connection that streams the binary log of MariaDB, through ``mysql-replication``."""

from __future__ import annotations

import secrets
import select
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pymysql
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.event import (
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    MariadbGtidEvent,
    NotImplementedEvent,
    QueryEvent,
    RotateEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from eventsync.engine.change_source import MarkLostError
from eventsync.errors import StoreUnavailableError

__all__ = ["BinlogStream"]

_EVENTS: Final = (
    DeleteRowsEvent,
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    MariadbGtidEvent,
    NotImplementedEvent,
    QueryEvent,
    RotateEvent,
    UpdateRowsEvent,
    WriteRowsEvent,
    XAPrepareEvent,
    XidEvent,
)
# The server sends a sign of life after so many seconds without an event.
_HEARTBEAT: Final = 2.0
# After so many seconds without anything, the connection counts as dead.
_SILENCE: Final = 15.0
_UNREADABLE: Final = frozenset({1220, 1236, 1373})
"""Errors of a server that does not have the log from the position on."""


class BinlogStream:
    """The stream of a binary log from a position on. Not thread-safe.

    ``settings``: what ``pymysql.connect`` needs. ``tables``: the names of the tables whose rows are
    wanted. ``file``, ``position``: where to begin.

    Raises ``StoreUnavailableError`` if the connection is lost, and ``MarkLostError`` if the server
    does not have the log from there on.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        tables: list[str],
        file: str,
        position: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._heard_at = monotonic()
        self._connections: list[Any] = []
        self._reader = BinLogStreamReader(
            connection_settings={**settings, "read_timeout": _SILENCE, "write_timeout": _SILENCE},
            # The server ends an older stream of the same id: so no two have the same.
            server_id=secrets.randbelow(1 << 31) + (1 << 31),
            log_file=file,
            log_pos=position,
            resume_stream=True,
            blocking=True,
            only_events=_EVENTS,
            filter_non_implemented_events=False,
            only_tables=tables,
            slave_heartbeat=_HEARTBEAT,
            pymysql_wrapper=self._connect,
            enable_logging=False,
        )

    @property
    def file(self) -> str:
        """The name of the file that is read."""
        return str(self._reader.log_file)

    @property
    def position(self) -> int:
        """The position in the file after the last event."""
        return int(self._reader.log_pos)

    def read(self) -> Any:
        """Return the next event. Wait for it."""
        try:
            event = self._reader.fetchone()
        except pymysql.err.MySQLError as error:
            number = error.args[0] if error.args else 0
            if number in _UNREADABLE:
                raise MarkLostError(
                    f"the server no longer has the binary log from the mark on: {error.args[-1]}"
                ) from error
            raise StoreUnavailableError(f"the stream of the binary log ended: {error}") from error
        if event is None:
            raise StoreUnavailableError("the server ended the stream of the binary log")
        self._heard_at = self._monotonic()
        return event

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives, at most ``seconds``. Return whether something did."""
        if self._arrived(seconds):
            return True
        if self._monotonic() - self._heard_at > _SILENCE:
            raise StoreUnavailableError(
                f"the stream of the binary log is silent for {_SILENCE:.0f} s"
            )
        return False

    def close(self) -> None:
        """Close the connections. Idempotent."""
        connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(Exception):
                connection._force_close()

    def _arrived(self, seconds: float) -> bool:
        connection = self._connections[0]
        sock = connection._sock
        if sock is None:
            return True  # the next read tells what happened
        # What has arrived is in the socket, or in the buffer of the driver.
        sock.settimeout(0)
        try:
            if connection._rfile.peek(1):
                return True
        except ssl.SSLWantReadError:
            pass
        except OSError:
            return True
        finally:
            sock.settimeout(_SILENCE)
        return bool(select.select([sock], [], [], max(0.0, seconds))[0])

    def _connect(self, **settings: Any) -> Any:
        """Return a connection: one for the stream, one that the library asks for settings."""
        # The library would connect again by itself, perhaps to another server.
        if len(self._connections) >= 2:
            raise StoreUnavailableError("the stream of the binary log was cut")
        made = pymysql.connect(**settings)
        self._connections.append(made)
        return made
