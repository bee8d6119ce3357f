"""Owns how a Redis server is reached: the settings of a URL, the client, and its errors.

It must not know what is kept there.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from eventsync.errors import BusError, BusUnavailableError, ConfigError
from eventsync.transports.backend import LeaseSettings
from eventsync.transports.redis_script import Script

__all__ = ["SCHEMES", "RedisClient", "RedisSettings", "masked"]

SCHEMES = frozenset({"redis", "rediss", "redis+socket", "unix", "sentinel"})

_PORT = 6379
_SENTINEL_PORT = 26379
# What a server says when the same command may succeed later. An error within a script comes with
# other words around these.
_PASSING = (
    ("OOM", "its memory is full; nothing was stored: raise maxmemory, or let the workers drain it"),
    ("READONLY", "it is a replica: name the primary, or use a sentinel:// URL"),
    ("MASTERDOWN", "it is a replica that has lost its primary"),
    ("LOADING", "it is still loading its data"),
    ("MISCONF", "it cannot save its data: look at its log and its disk"),
    ("NOREPLICAS", "it has fewer replicas than it was told to write with"),
    ("CLUSTERDOWN", "its cluster is not complete"),
    ("TRYAGAIN", "its cluster is being moved"),
    ("BUSY Redis", "it is busy with somebody's script"),
)


@dataclass(frozen=True, kw_only=True)
class RedisSettings(LeaseSettings):
    """Where the server is and how it is used; times in seconds.

    ``dead_after``: how long a consumer may be silent, within its lease at most, until it counts as
    dead; each shows itself five times as often. ``timeout``: for connecting and for every answer.
    ``prefix``: what the names of all keys begin with; deployments on one server need one each.
    ``ca_file``, ``cert_file``, ``key_file``: for ``rediss``.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    service: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    prefix: str = "{eventsync}:"
    dead_after: float = 10.0
    timeout: float = 10.0
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> RedisSettings:
        """Return the settings of one of these, each with ``?name=value`` if need be::

            redis://user:password@host:6379/0         rediss://... the same with TLS
            redis+socket://user:password@/path?db=0   sentinel://host:26379,host:26379/service/0

        What the URL says goes before ``options``. Raises: ConfigError, without the password.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigError(
                f"{masked(url)!r} is not the URL of a Redis server",
                hint="write redis://host:6379/0, rediss://, redis+socket:///path or "
                "sentinel://host:26379/service",
            )
        rest, _, query = rest.partition("?")
        credentials, at, place = rest.rpartition("@")
        username, colon, password = credentials.partition(":")
        location, _, path = place.partition("/")
        values = dict(parse_qsl(query, keep_blank_values=True))
        hosts: tuple[tuple[str, int], ...] = ()
        service = ""
        try:
            if scheme in ("redis+socket", "unix"):
                if location or not path:
                    raise ValueError("it names no socket: write redis+socket:///path")
                db = int(values.pop("db", "0"))
                path = f"/{unquote(path)}"
            else:
                default = _SENTINEL_PORT if scheme == "sentinel" else _PORT
                hosts = tuple(_address(part, default) for part in location.split(","))
                if scheme == "sentinel":
                    service, _, path = path.partition("/")
                    if not service:
                        raise ValueError("it names no service: write sentinel://host/service")
                elif len(hosts) > 1:
                    raise ValueError("several hosts are for sentinel:// only")
                db, path = int(values.pop("db", "") or path or "0"), ""
            if db < 0:
                raise ValueError("the number of the database is below 0")
        except ValueError as error:
            raise ConfigError(f"the broker URL {masked(url)!r} is wrong: {error}") from None
        settings = cls.read(
            query=values,
            options=options,
            scheme=scheme,
            hosts=hosts,
            path=path,
            service=unquote(service),
            db=db,
            username=(unquote(username) or None) if at else None,
            password=unquote(password) if colon else None,
        )
        inside, closed, _ = settings.prefix.partition("{")[2].partition("}")
        if not (inside and closed):
            # Without a hash tag a cluster would spread the keys over its nodes.
            raise ConfigError(
                f"broker setting prefix={settings.prefix!r} has no hash tag",
                hint="write a part of it in braces, as in {eventsync}:",
            )
        return settings

    @property
    def place(self) -> str:
        """Where the server is, for people; without credentials."""
        if self.path:
            return self.path
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} of sentinels {hosts}" if self.service else hosts


def masked(url: str, mask: str = "**") -> str:
    """Return a URL with the password replaced. Takes any text; never raises."""
    scheme, separator, rest = url.partition("://")
    rest, question, query = rest.partition("?")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return url
    username, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{username}{colon}{mask if colon else ''}@{place}{question}{query}"


class RedisClient:
    """A client that runs scripts and raises eventsync's errors. Thread-safe, good after a fork.

    It tries nothing twice by itself: a publish whose answer was lost may have been stored. After
    an error the next call connects again. ``failed_at``: when the server last could not be
    reached, by the monotonic clock.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.place = settings.place
        self.failed_at = -math.inf
        self._client = _client(settings)

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script. Raises: BusUnavailableError, BusError."""
        rest = (len(keys), *keys, *arguments)
        with self.errors():
            try:
                return self._client.execute_command("EVALSHA", script.sha, *rest)
            except redis.exceptions.NoScriptError:
                # It has done nothing yet. This way the server also remembers it.
                return self._client.execute_command("EVAL", script.text, *rest)

    def command(self, *words: Any) -> Any:
        """Run a command. Raises: BusUnavailableError, BusError."""
        with self.errors():
            return self._client.execute_command(*words)

    def close(self) -> None:
        """Let go of the connections; the next call makes new ones. Idempotent."""
        self._client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors into eventsync's."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            explained = _explained(self.place, error)
            if isinstance(explained, BusUnavailableError):
                self.failed_at = time.monotonic()
            raise explained from error


def _client(settings: RedisSettings) -> redis.Redis:
    options: dict[str, Any] = {
        "db": settings.db,
        "username": settings.username,
        "password": settings.password,
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if settings.path:
        return redis.Redis(unix_socket_path=settings.path, **options)
    options["socket_keepalive"] = True
    if settings.service:
        sentinel: Any = Sentinel(
            settings.hosts,
            sentinel_kwargs={
                "socket_timeout": settings.timeout,
                "socket_connect_timeout": settings.timeout,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        client: redis.Redis = sentinel.master_for(settings.service, **options)
        return client
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


def _address(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    number = int(port) if port else default
    if not 0 < number < 65536:
        raise ValueError(f"there is no port {number}")
    return unquote(host) or "localhost", number


def _explained(place: str, error: Exception) -> BusError:
    text = str(error)
    if isinstance(
        error, redis.exceptions.AuthenticationError | redis.exceptions.AuthorizationError
    ):
        return BusError(
            f"the Redis server {place} refuses these credentials: {text}",
            hint="correct the user and password in the broker URL",
        )
    for word, meaning in _PASSING:
        if word in text or (word == "LOADING" and isinstance(error, redis.BusyLoadingError)):
            return BusUnavailableError(f"the Redis server {place}: {text or word}", hint=meaning)
    if isinstance(
        error,
        redis.ConnectionError | redis.TimeoutError | redis.exceptions.ReadOnlyError | OSError,
    ):
        return BusUnavailableError(f"the Redis server {place} cannot be reached: {text}")
    if "WRONGTYPE" in text:
        return BusError(
            f"the Redis server {place} holds other data under the broker's keys: {text}",
            hint="choose another prefix in the broker URL",
        )
    return BusError(f"the Redis server {place}: {text}")


def decoded(raw: Mapping[bytes, Any] | Sequence[Any]) -> dict[str, str]:
    """Return a reply of names and values as text."""
    flat = [part for pair in raw.items() for part in pair] if isinstance(raw, Mapping) else raw
    words = [
        part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in flat
    ]
    return dict(zip(words[::2], words[1::2], strict=True))
