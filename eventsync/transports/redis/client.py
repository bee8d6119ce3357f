"""A client of a Redis server that raises eventsync's errors."""

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

from eventsync.errors import BusConfigError, BusError, BusUnavailableError
from eventsync.transports.redis.scripts import Script
from eventsync.transports.redis.url import RedisSettings

__all__ = ["RedisClient"]

# Errors after which the same command may succeed later: a word in the error's text, the class in
# the client library (an empty tuple if there is none), and what the error means.
_TEMPORARY: tuple[tuple[str, type[Exception] | tuple[()], str], ...] = (
    (
        "OOM",
        exceptions.OutOfMemoryError,
        "the server's memory is full and nothing was stored; raise maxmemory, or start workers "
        "that consume the messages",
    ),
    (
        "READONLY",
        exceptions.ReadOnlyError,
        "the server is a replica; name the primary in the broker URL, or use a sentinel:// URL",
    ),
    (
        "MASTERDOWN",
        exceptions.MasterDownError,
        "the server is a replica that has lost its primary",
    ),
    ("LOADING", exceptions.BusyLoadingError, "the server is still loading its data"),
    ("MISCONF", (), "the server cannot save its data; look at the server's log and disk"),
    ("NOREPLICAS", (), "the server has fewer replicas than its setting min-replicas-to-write"),
    ("CLUSTERDOWN", exceptions.ClusterDownError, "a node of the Redis cluster is missing"),
    ("TRYAGAIN", exceptions.TryAgainError, "the Redis cluster is moving keys to another node"),
    ("BUSY", (), "the server is busy running a script"),
    ("UNKILLABLE", (), "the server is busy running a script that writes"),
    (
        "UNBLOCKED",
        (),
        "the server became a replica during a blocking read; a failover may be under way",
    ),
    ("INPROG", (), "a failover is under way"),
)
# The same for errors that only somebody can end who changes the configuration.
_LASTING: tuple[tuple[str, str], ...] = (
    ("NOAUTH", "give the user and password in the broker URL"),
    ("WRONGPASS", "correct the user and password in the broker URL"),
    ("NOPERM", "give the user in the broker URL the right to run scripts and commands of streams"),
    # Since Redis 7, this is what a script gets.
    (
        "The user executing the script can't",
        "give the user in the broker URL the right to run commands of streams",
    ),
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

    The client never repeats a command: if an answer was lost, the command may have been executed.
    After an error the next call connects again. ``place``: the server's address for errors.
    ``failed_at``: the time of the last call that did not reach the server, on the monotonic clock.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.place = settings.place
        self.failed_at = -math.inf
        with self.errors():  # the client of a cluster connects in its constructor
            self._client: Any = _client(settings)  # Any, because redis-py is annotated only in part

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script and return its result.

        Raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
        """
        rest = (len(keys), *keys, *arguments)
        with self.errors():
            try:
                return self._client.execute_command("EVALSHA", script.sha, *rest)
            except exceptions.NoScriptError:
                # The server does not know the script. EVAL runs it and loads it for later EVALSHAs.
                return self._client.execute_command("EVAL", script.text, *rest)

    def command(self, *words: Any) -> Any:
        """Run a Redis command and return the reply.

        Raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
        """
        with self.errors():
            return self._client.execute_command(*words)

    def close(self) -> None:
        """Close the connections; the next call opens new ones. Idempotent."""
        self._client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the Redis driver's errors of the block as eventsync's errors."""
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


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _bus_error(place: str, error: Exception) -> BusError:
    text = str(error)
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return BusConfigError(
            f"the Redis server {place} refuses these credentials: {text}",
            hint="correct the user and password in the broker URL",
        )
    for word, kind, meaning in _TEMPORARY:
        # An error that occurs within a script has no class of its own, only the word in its text.
        if isinstance(error, kind) or re.search(rf"\b{word}\b", text):
            return BusUnavailableError(
                f"the Redis server {place} refuses a command for now: {text or word}", hint=meaning
            )
    if _is_untrusted(error):
        return BusConfigError(
            f"the Redis server {place} has a certificate that is not trusted: {text}",
            hint="name the authority that issued it as ca_file= in the broker URL",
        )
    if isinstance(
        error,
        redis.ConnectionError | redis.TimeoutError | exceptions.RedisClusterException | OSError,
    ):
        return BusUnavailableError(
            f"the Redis server {place} cannot be reached: {text}",
            hint="check that the server runs and that the broker URL is correct",
        )
    for word, hint in _LASTING:
        if word in text or isinstance(error, _CLASSES.get(word, ())):
            said = text if word in text else f"{word} {text}"
            return BusConfigError(f"the Redis server {place} refuses a command: {said}", hint=hint)
    if "WRONGTYPE" in text:
        return BusConfigError(
            f"the Redis server {place} holds data of another program under the broker's keys: "
            f"{text}",
            hint="choose another prefix in the broker URL",
        )
    return BusError(f"the Redis server {place} refuses a command: {text}")
