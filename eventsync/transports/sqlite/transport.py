"""The embedded broker: a kombu transport that keeps its queues in one SQLite file.

Any number of processes and threads of one host may share the file, also from several containers.
The file must not be on a network file system.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from kombu.connection import Connection

from eventsync.errors import ConfigError
from eventsync.transports.leased.backend import Backend, LeaseSettings
from eventsync.transports.leased.transport import LeasedTransport
from eventsync.transports.sqlite.backend import SQLiteBackend
from eventsync.transports.sqlite.file import BrokerFile
from eventsync.transports.sqlite.routing import APPLICATION_ID, SCHEMA_VERSION, create_tables

__all__ = ["SQLiteSettings", "SQLiteTransport", "connect"]

_SCHEME = "sqlite://"


@dataclass(frozen=True, kw_only=True)
class SQLiteSettings(LeaseSettings):
    """The path of the broker file and the settings of the transport; times are in seconds.

    ``synchronous``: with ``full``, published messages survive a power failure; with ``normal``,
    they survive only crashes of processes. ``busy_timeout``: how long to wait while other
    connections lock the file. ``polling_interval``: the longest pause between two checks of an idle
    queue for new messages.
    """

    path: str
    synchronous: str = "full"
    busy_timeout: float = 30.0
    polling_interval: float = 0.02

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteSettings:
        """Return the settings of ``sqlite:///relative?name=value`` or ``sqlite:////absolute``.

        In a path ``?``, ``;`` and ``%`` must be percent-encoded. Settings in the URL override
        ``options``. Raises ``ConfigError`` if the URL or a setting is wrong.
        """
        location, _, query = url.removeprefix(_SCHEME).partition("?")
        if not url.startswith(_SCHEME) or not location.startswith("/"):
            raise ConfigError(
                f"{url!r} is not the URL of a broker file",
                hint="write sqlite:///relative/path or sqlite:////absolute/path",
            )
        path = unquote(location[1:])
        if path in ("", ":memory:") or path.endswith("/"):
            raise ConfigError(
                f"the broker URL {url!r} names no file",
                hint="write sqlite:///relative/path or sqlite:////absolute/path, because processes "
                "share the broker by its file",
            )
        settings = cls.read(
            query=dict(parse_qsl(query, keep_blank_values=True)),
            options=options,
            path=os.path.abspath(path),
        )
        if settings.synchronous not in ("full", "normal"):
            raise ConfigError(
                f"broker setting synchronous={settings.synchronous!r} is neither full nor normal",
                hint="write synchronous=full or synchronous=normal in the broker URL",
            )
        return settings


class SQLiteTransport(LeasedTransport):
    """The kombu transport for broker files.

    Use ``kombu.Connection(url, transport=SQLiteTransport)``.
    """

    # kombu's own parser drops the slash that distinguishes an absolute path from a relative one.
    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "sqlite3"
    default_connection_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, client: Any, **kwargs: Any) -> None:
        self.settings: SQLiteSettings = SQLiteSettings.from_url(
            client.hostname, **client.transport_options
        )
        transport: Any = super()
        transport.__init__(client, **kwargs)

    def open_backend(self) -> Backend:
        """Open the broker file, creating it if necessary, and return a new backend.

        Blocks. Raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
        """
        file = BrokerFile(
            self.settings.path,
            application_id=APPLICATION_ID,
            schema_version=SCHEMA_VERSION,
            create_tables=create_tables,
            synchronous=self.settings.synchronous,
            busy_timeout=self.settings.busy_timeout,
        )
        return SQLiteBackend(
            file, settings=self.settings, polling_interval=self.settings.polling_interval
        )

    def driver_version(self) -> str:
        """Return the version of the SQLite library."""
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return ``uri`` unchanged, because the URL of a broker file contains no password."""
        return uri


def connect(url: str, **options: Any) -> Connection:
    """Return a kombu connection to the broker file of ``url``. The first use opens the file.

    ``options``: fields of ``SQLiteSettings`` and transport options of kombu. Does not block. Raises
    ``ConfigError`` if the URL or an option is wrong.
    """
    SQLiteSettings.from_url(url, **options)
    untyped: Any = Connection  # kombu does not annotate its constructor
    connection: Connection = untyped(url, transport=SQLiteTransport, transport_options=options)
    return connection
