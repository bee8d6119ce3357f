"""The client of a Redis server or cluster, its scripts, and its errors as eventsync's."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, TypeAlias

import redis
import redis.cluster
from redis import exceptions

from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RejectedError,
    StoreError,
    StoreUnavailableError,
)

__all__ = ["MEANINGS", "PHRASES", "Client", "Database", "Script", "Server", "code_of"]

Client: TypeAlias = "redis.Redis | redis.cluster.RedisCluster"
Database: TypeAlias = "str | Client | Server"
Script: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""A Lua script, called with keys and arguments."""

# What an error code means: the store may take the same command later; the configuration or the
# server's is wrong; or the record cannot be stored. Any other code is a StoreError: most likely of
# the record, never of the whole store.
MEANINGS: Final[Mapping[str, type[EventSyncError]]] = {
    "BUSY": StoreUnavailableError,
    "CLUSTERDOWN": StoreUnavailableError,
    "INPROG": StoreUnavailableError,
    "LOADING": StoreUnavailableError,
    "MASTERDOWN": StoreUnavailableError,
    "MISCONF": StoreUnavailableError,
    "NOGOODSLAVE": StoreUnavailableError,
    "NOREPLICAS": StoreUnavailableError,
    "NOSCRIPT": StoreUnavailableError,
    "OOM": StoreUnavailableError,
    "READONLY": StoreUnavailableError,
    "TRYAGAIN": StoreUnavailableError,
    "UNBLOCKED": StoreUnavailableError,
    "UNKILLABLE": StoreUnavailableError,
    "ASK": ConfigError,
    "CROSSSLOT": ConfigError,
    "DENIED": ConfigError,
    "MOVED": ConfigError,
    "NOAUTH": ConfigError,
    "NOPERM": ConfigError,
    "NOPROTO": ConfigError,
    "WRONGPASS": ConfigError,
    "WRONGTYPE": RejectedError,
}
# The same for errors that have no code of their own, by words of their text.
PHRASES: Final[tuple[tuple[str, type[EventSyncError]], ...]] = (
    ("max number of clients reached", StoreUnavailableError),
    ("DB index is out of range", ConfigError),
    ("invalid DB index", ConfigError),
    ("SELECT is not allowed in cluster mode", ConfigError),
    ("unknown command", ConfigError),
    ("without any password configured", ConfigError),
    ("string exceeds maximum allowed size", RejectedError),
)
_HINTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("ASK", "MOVED", "CROSSSLOT"),
        "pass a redis.cluster.RedisCluster, and keep a store in one hash slot",
    ),
    **dict.fromkeys(
        ("NOAUTH", "NOPERM", "WRONGPASS"), "correct user and password, or the user's access rules"
    ),
    "DENIED": "set a password for the server, or bind it to the address that clients use",
    "OOM": "raise maxmemory of the server",
    "READONLY": "name the primary; after a failover the write is tried again",
    "MISCONF": "see the log of the server: it cannot save to its disk",
}
# redis-py removes the code from the text of errors for which it has a class.
_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.AuthorizationError, "NOPERM"),
    (exceptions.AuthenticationError, "WRONGPASS"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.BusyLoadingError, "LOADING"),
)
# Up to version 6, the error of a command in a script is a part of the error of the script.
_IN_SCRIPT: Final = re.compile(r": -([A-Z]+) ")
# Since version 7, a missing right within a script has no code.
_DENIED_TO_SCRIPT: Final = "The user executing the script can't"
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

    @property
    def database_number(self) -> int:
        """The number of the database on its server; a cluster has only 0."""
        return 0 if self.cluster else int(self._options().get("db") or 0)

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

    def pubsub(self, key: str) -> Any:
        """Return a connection for messages, on a cluster to the node that has ``key``."""
        if not self.cluster:
            return self.client.pubsub()
        return self.client.pubsub(node=self.client.get_node_from_key(key))

    def config(self, setting: str, key: str) -> str:
        """Return a setting of the server, on a cluster of the node that has ``key``.

        Raises ``ConfigError`` if this user may not ask, or the server does not tell.
        """
        more = {"target_nodes": self.client.get_node_from_key(key)} if self.cluster else {}
        with self.errors():
            found = self.client.config_get(setting, **more)
        for value in found.values():
            return value.decode() if isinstance(value, bytes) else str(value)
        raise ConfigError(f"Redis at {self.address} does not tell its setting {setting}")

    def set_config(self, setting: str, value: str) -> None:
        """Change a setting of the server, or of all nodes of the cluster, until it restarts."""
        more = {"target_nodes": redis.cluster.RedisCluster.ALL_NODES} if self.cluster else {}
        with self.errors():
            self.client.config_set(setting, value, **more)

    def user(self) -> str:
        """Return the name of the user of this client."""
        return str(self._options().get("username") or "default")

    def close(self) -> None:
        """Close connections. Idempotent; a later use opens them again."""
        if self._own:
            self.client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the client as eventsync's."""
        try:
            yield
        except (redis.RedisError, exceptions.RedisClusterException, OSError) as error:
            raise self.error_of(error) from error

    def error_of(self, error: Exception) -> EventSyncError:
        """Return an error of the client as one of eventsync's, by the tables of this module."""
        code, text = code_of(error), str(error)
        meaning = MEANINGS.get(code)
        if meaning is None:
            meaning = next((kind for phrase, kind in PHRASES if phrase in text), None)
        if meaning is None and not isinstance(error, exceptions.ResponseError):
            if _is_untrusted(error):
                return ConfigError(
                    f"Redis at {self.address}: {text}",
                    hint="correct ssl_ca_certs of the client, or the certificate of the server",
                )
            return StoreUnavailableError(f"Redis at {self.address}: {text}")
        said = text if not code or code in text else f"{code} {text}"
        return (meaning or StoreError)(
            f"Redis at {self.address}: {said}", hint=_HINTS.get(code, "")
        )


def code_of(error: Exception) -> str:
    """Return the code of a server's error, like ``READONLY``; empty if it has none."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, exceptions.ResponseError):
        return ""
    text = str(error)
    if _DENIED_TO_SCRIPT in text:
        return "NOPERM"
    nested = _IN_SCRIPT.search(text)
    word = nested[1] if nested else text.partition(" ")[0]
    return word if word.isalpha() and word.isupper() else ""


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
