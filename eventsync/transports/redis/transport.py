"""The Redis broker: a kombu transport that keeps its queues in Redis Streams."""

from __future__ import annotations

from typing import Any, ClassVar

import redis
from kombu.connection import Connection

from eventsync.errors import BusError, BusUnavailableError
from eventsync.transports.credential import masked
from eventsync.transports.leased.backend import Backend
from eventsync.transports.leased.transport import LeasedTransport
from eventsync.transports.redis.backend import RedisBackend
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.url import ALIASES, RedisSettings

__all__ = ["RedisSettings", "RedisTransport", "advice", "connect"]

_OLDEST = (6, 2)


class RedisTransport(LeasedTransport):
    """The kombu transport for Redis. Use ``kombu.Connection(url, transport=RedisTransport)``."""

    can_parse_url = True
    driver_type = "redis"
    driver_name = "redis"
    default_connection_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, client: Any, **kwargs: Any) -> None:
        self.settings: RedisSettings = RedisSettings.from_url(
            client.hostname, **client.transport_options
        )
        transport: Any = super()
        transport.__init__(client, **kwargs)

    def open_backend(self) -> Backend:
        """Connect to the Redis server and return a new backend.

        Blocks. Raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
        """
        client = RedisClient(self.settings)
        try:
            client.command("PING")
        except BusError:
            client.close()
            raise
        return RedisBackend(client, settings=self.settings)

    def driver_version(self) -> str:
        """Return the version of the Python package ``redis``."""
        return str(redis.__version__)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return ``uri`` with its password replaced by ``mask``, unless ``include_password``."""
        return uri if include_password else masked(uri, mask)


def connect(url: str, **options: Any) -> Connection:
    """Return a kombu connection to the Redis server of ``url``. The first use connects.

    ``options``: fields of ``RedisSettings`` and transport options of kombu. Does not block. Raises
    ``ConfigError`` if the URL or an option is wrong.
    """
    RedisSettings.from_url(url, **options)
    scheme, _, rest = url.partition(":")
    url = f"{ALIASES.get(scheme, scheme)}:{rest}"
    untyped: Any = Connection  # kombu does not annotate its constructor
    connection: Connection = untyped(url, transport=RedisTransport, transport_options=options)
    return connection


def advice(url: str) -> list[str]:
    """Return one sentence for each setting of the Redis server that may lose messages. Blocks.

    Raises ``ConfigError`` if the URL is wrong, ``BusUnavailableError`` if the server cannot be
    reached, and ``BusError`` if the server refuses the login or a command.
    """
    client = RedisClient(RedisSettings.from_url(url))
    try:
        return [*_weaknesses(client)]
    finally:
        client.close()


def _weaknesses(client: RedisClient) -> list[str]:
    info = {str(name): str(value) for name, value in client.command("INFO").items()}
    found = []
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        found.append(f"the server is Redis {version}; the transport needs 6.2 or later")
    try:
        reply = client.command("CONFIG", "GET", "appendfsync")
        fsync = reply[1].decode() if reply else ""
    except BusUnavailableError:
        raise
    except BusError:
        fsync = ""  # many hosted servers refuse the command
    if info.get("aof_enabled") != "1":
        found.append(
            "appendonly is off: when the server stops, it loses the messages published since its "
            "last snapshot; set `appendonly yes`"
        )
    elif not fsync:
        found.append(
            "the server does not report its setting appendfsync: unless the setting is `always`, a "
            "crash of the server's host may lose messages that were just published"
        )
    elif fsync != "always":
        lost = "in the last second" if fsync == "everysec" else "since the system's last write"
        found.append(
            f"appendfsync is {fsync}: a crash of the server's host may lose messages published "
            f"{lost}; set `appendfsync always` if that is too much"
        )
    if info.get("aof_enabled") == "1" and not _reads_its_log(client):
        found.append(
            "the server's default user may not run all commands: when the server starts, it reads "
            "its append-only file as that user and skips the commands that the user may not run; "
            "give that user `~* +@all` and a password"
        )
    policy = info.get("maxmemory_policy", "")
    if policy != "noeviction":
        found.append(
            f"maxmemory-policy is {policy or 'unknown'}: a server short of memory may delete whole "
            "queues; set `maxmemory-policy noeviction`"
        )
    return found


def _reads_its_log(client: RedisClient) -> bool:
    """Return whether the default user may run all commands on all keys.

    Returns True if the server does not report this.
    """
    try:
        reply = client.command("ACL", "GETUSER", "default")
    except BusUnavailableError:
        raise
    except BusError:
        return True
    if isinstance(reply, list):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    keys = reply[b"keys"]  # a text, or in Redis 6 a list of patterns
    patterns = keys.split() if isinstance(keys, bytes) else keys
    commands = reply[b"commands"].split()
    return b"+@all" in commands and len(commands) == 1 and {b"~*", b"*"} & set(patterns) != set()
