"""Owns the URL of a Redis server and the settings in it.

It must not know the client library, so that whoever only shows a URL does not load it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from eventsync.errors import ConfigError
from eventsync.transports.leased.backend import LeaseSettings

__all__ = ["ALIASES", "SCHEMES", "RedisSettings", "masked"]

# kombu takes what stands before a plus sign for the name of a transport, so it gets the alias.
ALIASES = {"redis+socket": "unix", "redis+cluster": "rediscluster"}
SCHEMES = frozenset({"redis", "rediss", "sentinel", *ALIASES, *ALIASES.values()})

_PORT = 6379
_SENTINEL_PORT = 26379


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
    dead_after: float = 5.0
    timeout: float = 10.0
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> RedisSettings:
        """Return the settings of one of these, each with ``?name=value`` if need be::

            redis://user:password@host:6379/0         rediss://... the same with TLS
            redis+socket://user:password@/path?db=0   sentinel://host:26379,host:26379/service/0
            redis+cluster://user:password@host:6379,host:6379

        What the URL says goes before ``options``. Raises: ConfigError, without the password.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigError(
                f"{masked(url)!r} is not the URL of a Redis server",
                hint="write redis://host:6379/0, rediss://, redis+socket:///path, "
                "sentinel://host:26379/service or redis+cluster://host:6379",
            )
        scheme = ALIASES.get(scheme, scheme)
        credentials, at, place = rest.rpartition("@")
        username, colon, password = credentials.partition(":")
        place, _, query = place.partition("?")
        location, _, path = place.partition("/")
        values = dict(parse_qsl(query, keep_blank_values=True))
        hosts: tuple[tuple[str, int], ...] = ()
        service = ""
        try:
            if scheme == "unix":
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
                elif len(hosts) > 1 and scheme != "rediscluster":
                    raise ValueError("several hosts are for sentinels and clusters only")
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
    # The last one, so that a password with signs that should have been encoded is not shown either.
    credentials, at, place = rest.rpartition("@")
    if not at:
        return url
    username, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{username}{colon}{mask if colon else ''}@{place}"


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
