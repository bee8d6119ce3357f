"""The Redis server that records are in: its client, its scripts, and its errors as eventsync's.

It knows nothing of records or versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, TypeAlias

import redis
import redis.cluster
from redis import exceptions

from eventsync.errors import ConfigError, StoreError, StoreUnavailableError

__all__ = ["Client", "Database", "Script", "Server"]

Client: TypeAlias = "redis.Redis | redis.cluster.RedisCluster"
Database: TypeAlias = "str | Client | Server"
Script: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""Takes keys and arguments."""

_FORBIDDEN: Final = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)
_ELSEWHERE: Final = (
    exceptions.MovedError,
    exceptions.AskError,
    exceptions.ClusterCrossSlotError,
)
# What a server answers that may take the same command later.
_LATER: Final = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)
_PAGE: Final = 1000


class Server:
    """A client of one Redis server or cluster, with errors that say what to do. Thread-safe.

    Nothing is connected to before first use. A client that was given is left open by ``close``.
    """

    def __init__(self, database: str | Client) -> None:
        """``database``: a URL as ``redis://host:6379/0``, or a client that gives bytes."""
        self._own = isinstance(database, str)
        if isinstance(database, str):
            try:
                self.client: Any = redis.Redis.from_url(database)
            except (ValueError, TypeError):
                # What is wrong with it may be in its password, so nothing of it is told.
                raise ConfigError(
                    "not a URL of a Redis server", hint="as in redis://localhost:6379/0"
                ) from None
        elif isinstance(database, redis.Redis | redis.cluster.RedisCluster):
            self.client = database
        else:
            raise ConfigError(
                f"a Redis store takes a URL or a client of redis-py, not {type(database).__name__}"
            )
        self.cluster = isinstance(self.client, redis.cluster.RedisCluster)
        if self._options().get("decode_responses"):
            raise ConfigError(
                "the Redis client decodes what it reads, which loses bytes that are not UTF-8",
                hint="make it without decode_responses",
            )

    @classmethod
    def of(cls, database: Database) -> Server:
        """The server that a caller names."""
        return database if isinstance(database, Server) else cls(database)

    def _options(self) -> dict[str, Any]:
        if self.cluster:
            return dict(self.client.get_connection_kwargs())
        return dict(self.client.connection_pool.connection_kwargs)

    @property
    def address(self) -> str:
        """Which database of which server; no password is in it."""
        if self.cluster:
            nodes = sorted(self.client.nodes_manager.startup_nodes)
            return f"cluster of {nodes[0]}" if nodes else "cluster"
        options = self._options()
        place = options.get("path") or f"{options.get('host')}:{options.get('port')}"
        return f"{place}/{options.get('db', 0)}"

    def __repr__(self) -> str:
        return f"Server({self.address!r})"

    def call(self, *command: Any) -> Any:
        """The answer to one command. Blocks."""
        with self.errors():
            return self.client.execute_command(*command)

    def script(self, name: str) -> Script:
        """The Lua script in the file ``name`` of this package; it is loaded where it is missing."""
        source = files(__package__).joinpath(name).read_text(encoding="utf-8")
        registered = self.client.register_script(source)

        def run(keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
            with self.errors():
                return registered(keys=keys, args=arguments)

        return run

    def scan(self, match: str, kind: str) -> Iterator[bytes]:
        """The names of all keys of a type that match a pattern; some may come twice.

        Does not block the server: keys that come or go meanwhile may be seen or not.
        """
        with self.errors():
            yield from self.client.scan_iter(match=match, count=_PAGE, _type=kind)

    def members(self, name: str) -> Iterator[bytes]:
        """The members of a set; some may come twice. Does not block the server."""
        with self.errors():
            yield from self.client.sscan_iter(name, count=_PAGE)

    def info(self, section: str) -> dict[str, Any]:
        """What the server tells of itself; nothing where it does not let this user ask."""
        try:
            with self.errors():
                told = self.client.info(section)
        except ConfigError:
            return {}
        return dict(told)

    def close(self) -> None:
        """Let go of connections. Idempotent; they are made again when used again."""
        if self._own:
            self.client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of the client into eventsync's."""
        try:
            yield
        except _FORBIDDEN as error:
            raise ConfigError(
                f"Redis at {self.address}: {error}",
                hint="correct user and password, or the user's access rules",
            ) from error
        except _ELSEWHERE as error:
            raise ConfigError(
                f"Redis at {self.address} is a cluster: {error}",
                hint="pass a redis.cluster.RedisCluster, and keep a store in one hash slot",
            ) from error
        except exceptions.ResponseError as error:
            text = str(error)
            if text.startswith(_LATER) or isinstance(error, exceptions.OutOfMemoryError):
                raise StoreUnavailableError(f"Redis at {self.address}: {text}") from error
            raise StoreError(f"Redis at {self.address}: {text}") from error
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailableError(f"Redis at {self.address}: {error}") from error
