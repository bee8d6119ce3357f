"""The client of a Redis server, which raises eventsync's errors."""

from __future__ import annotations

import math
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from eventsync.errors import BusError, BusUnavailableError
from eventsync.transports.redis.scripts import Script
from eventsync.transports.redis.url import RedisSettings

__all__ = ["RedisClient"]

# Errors of a server after which the same command may succeed later: the word in their text, the
# client's class if it has one, and what the error means.
_TEMPORARY: tuple[tuple[str, type[Exception] | tuple[()], str], ...] = (
    (
        "OOM",
        exceptions.OutOfMemoryError,
        "its memory is full and nothing was stored; raise maxmemory, or let the workers drain it",
    ),
    (
        "READONLY",
        exceptions.ReadOnlyError,
        "it is a replica; name the primary in the broker URL, or use a sentinel:// URL",
    ),
    ("MASTERDOWN", exceptions.MasterDownError, "it is a replica that has lost its primary"),
    ("LOADING", exceptions.BusyLoadingError, "it is still loading its data"),
    ("MISCONF", (), "it cannot save its data; look at its log and its disk"),
    ("NOREPLICAS", (), "it has fewer replicas than its min-replicas-to-write"),
    ("CLUSTERDOWN", exceptions.ClusterDownError, "its cluster is not complete"),
    ("TRYAGAIN", exceptions.TryAgainError, "its cluster is moving keys to another node"),
    ("BUSY", (), "it is busy running a script"),
    ("UNKILLABLE", (), "it is busy running a script that writes"),
    ("UNBLOCKED", (), "it became a replica during a blocking read; a failover may be under way"),
    ("INPROG", (), "a failover is under way"),
)
# The same for errors that only somebody can end who changes the configuration.
_LASTING: tuple[tuple[str, str], ...] = (
    ("NOAUTH", "give the user and password in the broker URL"),
    ("WRONGPASS", "correct the user and password in the broker URL"),
    ("NOPERM", "give the user in the broker URL the right to run scripts and commands of streams"),
    ("DENIED", "set a password for the server, or bind it to the address that clients use"),
    ("CROSSSLOT", "use a rediscluster:// URL"),
    ("MOVED", "use a rediscluster:// URL"),
    ("DB index is out of range", "correct the database number in the broker URL"),
    ("unknown command", "use Redis 6.2 or later, with the commands of streams and scripts enabled"),
)


# Those whose code the client removes from the text.
_CLASSES: dict[str, type[Exception]] = {
    "NOPERM": exceptions.NoPermissionError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "MOVED": exceptions.MovedError,
}


class RedisClient:
    """A client that runs scripts and raises eventsync's errors. Thread-safe, usable after a fork.

    It repeats no command, because a publish whose answer was lost may have been stored. After an
    error the next call connects again. ``failed_at``: when the server was last unreachable, by the
    monotonic clock.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.place = settings.place
        self.failed_at = -math.inf
        with self.errors():  # the client of a cluster connects in its constructor
            self._client: Any = _client(settings)  # annotated in part only

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script. Raises: BusUnavailableError, BusError."""
        rest = (len(keys), *keys, *arguments)
        with self.errors():
            try:
                return self._client.execute_command("EVALSHA", script.sha, *rest)
            except exceptions.NoScriptError:
                # The server did not run it. EVAL runs it and loads it for the next EVALSHA.
                return self._client.execute_command("EVAL", script.text, *rest)

    def command(self, *words: Any) -> Any:
        """Run a command. Raises: BusUnavailableError, BusError."""
        with self.errors():
            return self._client.execute_command(*words)

    def close(self) -> None:
        """Close the connections; the next call opens new ones. Idempotent."""
        self._client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors into eventsync's."""
        try:
            yield
        except (redis.RedisError, exceptions.RedisClusterException, OSError) as error:
            bus_error = _bus_error(self.place, error)
            if isinstance(bus_error, BusUnavailableError):
                self.failed_at = time.monotonic()
            raise bus_error from error


def _client(settings: RedisSettings) -> Any:
    options: dict[str, Any] = {
        "username": settings.username,
        "password": settings.password,
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if settings.scheme == "rediscluster":
        node: Any = ClusterNode
        nodes = [node(host, port) for host, port in settings.hosts]
        return RedisCluster(startup_nodes=nodes, **options)
    options["db"] = settings.db
    if settings.path:
        return redis.Redis(unix_socket_path=settings.path, **options)
    options["socket_keepalive"] = True
    if settings.service:
        untyped: Any = Sentinel
        sentinel = untyped(
            settings.hosts,
            sentinel_kwargs={
                "socket_timeout": settings.timeout,
                "socket_connect_timeout": settings.timeout,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        return sentinel.master_for(settings.service, **options)
    ((host, port),) = settings.hosts
    if settings.scheme == "rediss":
        options |= {
            "ssl": True,
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_check_hostname": True,
            "ssl_ca_certs": settings.ca_file or None,
            "ssl_certfile": settings.cert_file or None,
            "ssl_keyfile": settings.key_file or None,
        }
    return redis.Redis(host=host, port=port, **options)


def _bus_error(place: str, error: Exception) -> BusError:
    text = str(error)
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return BusError(
            f"the Redis server {place} refuses these credentials: {text}",
            hint="correct the user and password in the broker URL",
        )
    for word, kind, meaning in _TEMPORARY:
        # An error raised within a script contains these words, but has no class of its own.
        if isinstance(error, kind) or re.search(rf"\b{word}\b", text):
            return BusUnavailableError(f"the Redis server {place}: {text or word}", hint=meaning)
    if isinstance(
        error,
        redis.ConnectionError | redis.TimeoutError | exceptions.RedisClusterException | OSError,
    ):
        return BusUnavailableError(f"the Redis server {place} cannot be reached: {text}")
    for word, hint in _LASTING:
        if word in text or isinstance(error, _CLASSES.get(word, ())):
            said = text if word in text else f"{word} {text}"
            return BusError(f"the Redis server {place} refuses a command: {said}", hint=hint)
    if "WRONGTYPE" in text:
        return BusError(
            f"the Redis server {place} holds other data under the broker's keys: {text}",
            hint="choose another prefix in the broker URL",
        )
    return BusError(f"the Redis server {place} refuses a command: {text}")
