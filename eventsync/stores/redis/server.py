"""The client of a Redis server or cluster, its scripts, and its errors as eventsync's."""

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
"""A Lua script, called with keys and arguments."""

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
# Answers of a server that may take the same command later.
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

    Connects on first use. ``close`` leaves open a client that was passed in.
    """

    def __init__(self, database: str | Client) -> None:
        """``database``: a URL (``redis://host:6379/0``), or a client that returns bytes."""
        self._own = isinstance(database, str)
        if isinstance(database, str):
            try:
                self.client: Any = redis.Redis.from_url(database)
            except (ValueError, TypeError):
                # Nothing of the URL is shown, because the mistake may be in its password.
                raise ConfigError(
                    "the Redis URL is not valid", hint="write it like redis://localhost:6379/0"
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
                hint="create it without decode_responses",
            )

    @classmethod
    def of(cls, database: Database) -> Server:
        """Return the server that a caller names."""
        return database if isinstance(database, Server) else cls(database)

    def _options(self) -> dict[str, Any]:
        if self.cluster:
            return dict(self.client.get_connection_kwargs())
        return dict(self.client.connection_pool.connection_kwargs)

    @property
    def address(self) -> str:
        """The database and its server, without a password."""
        if self.cluster:
            nodes = sorted(self.client.nodes_manager.startup_nodes)
            return f"cluster of {nodes[0]}" if nodes else "cluster"
        options = self._options()
        place = options.get("path") or f"{options.get('host')}:{options.get('port')}"
        return f"{place}/{options.get('db', 0)}"

    def __repr__(self) -> str:
        return f"Server({self.address!r})"

    def call(self, *command: Any) -> Any:
        """Return the answer to one command. Blocks."""
        with self.errors():
            return self.client.execute_command(*command)

    def script(self, name: str) -> Script:
        """Return the Lua script in a file of this package; it is loaded where it is missing."""
        source = files(__package__).joinpath(name).read_text(encoding="utf-8")
        registered = self.client.register_script(source)

        def run(keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
            with self.errors():
                return registered(keys=keys, args=arguments)

        return run

    def scan(self, match: str, kind: str) -> Iterator[bytes]:
        """Yield the names of all keys of a type that match a pattern; some may come twice.

        Does not block the server. Keys that are added or removed meanwhile may be missed.
        """
        with self.errors():
            yield from self.client.scan_iter(match=match, count=_PAGE, _type=kind)

    def members(self, name: str) -> Iterator[bytes]:
        """Yield the members of a set; some may come twice. Does not block the server."""
        with self.errors():
            yield from self.client.sscan_iter(name, count=_PAGE)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of the server's INFO; empty if this user may not ask."""
        try:
            with self.errors():
                answer = self.client.info(section)
        except ConfigError:
            return {}
        return dict(answer)

    def close(self) -> None:
        """Close connections. Idempotent; a later use opens them again."""
        if self._own:
            self.client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the client as eventsync's."""
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
