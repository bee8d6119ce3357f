"""The URL of a Redis server and the settings in it. Does not import the client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from eventsync.errors import ConfigError
from eventsync.transports.credential import masked
from eventsync.transports.leased.backend import LeaseSettings

__all__ = ["ALIASES", "SCHEMES", "RedisSettings"]

# URL schemes, and the schemes that kombu gets instead. kombu would take the part before a plus sign
# for the name of a transport.
ALIASES = {"redis+socket": "unix", "redis+cluster": "rediscluster"}
SCHEMES = frozenset({"redis", "rediss", "sentinel", *ALIASES, *ALIASES.values()})

_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True, kw_only=True)
class RedisSettings(LeaseSettings):
    """The address of a Redis server and the settings of the transport; times are in seconds.

    ``dead_after``: a consumer counts as dead if it has not renewed its registration for this time,
    or for the lease time if that is shorter. ``timeout``: how long to wait for a connection and for
    each reply. ``prefix``: the beginning of the names of all Redis keys; each deployment that
    shares a server needs its own prefix. ``service``: the name of the primary that sentinels watch.
    ``path``: the path of a Unix socket. ``ca_file``, ``cert_file``, ``key_file``: for ``rediss``.
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
        """Return the settings of a Redis URL.

        The URL has one of these forms, each optionally followed by ``?name=value``::

            redis://user:password@host:6379/0         rediss://... the same with TLS
            redis+socket://user:password@/path?db=0   sentinel://host:26379,host:26379/service/0
            redis+cluster://user:password@host:6379,host:6379

        Settings in the URL override ``options``. Raises ``ConfigError`` if the URL or a setting is
        wrong; the error does not show the password.
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
                    raise ValueError("the URL names no socket; write redis+socket:///path")
                db = int(values.pop("db", "0"))
                path = f"/{unquote(path)}"
            else:
                default = _SENTINEL_PORT if scheme == "sentinel" else _PORT
                hosts = tuple(_address(part, default) for part in location.split(","))
                if scheme == "sentinel":
                    service, _, path = path.partition("/")
                    if not service:
                        raise ValueError("the URL names no service; write sentinel://host/service")
                elif len(hosts) > 1 and scheme != "rediscluster":
                    raise ValueError("only sentinels and clusters may have several hosts")
                db, path = int(values.pop("db", "") or path or "0"), ""
            if db < 0:
                raise ValueError("the number of the database is negative; write 0 or more")
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
                hint="write a part of the prefix in braces, as in {eventsync}:",
            )
        return settings

    @property
    def place(self) -> str:
        """The address of the server, without user and password, as errors and logs show it."""
        if self.path:
            return self.path
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} of sentinels {hosts}" if self.service else hosts


def _address(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not port.isdecimal():
        # The port is not shown, because it may be a password: redis://user:password
        raise ValueError("the port is not a number")
    number = int(port) if port else default
    if not 0 < number < 65536:
        raise ValueError(f"the port {number} is not between 1 and 65535")
    return unquote(host) or "localhost", number
