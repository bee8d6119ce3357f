"""The URL of a RabbitMQ server and the settings in it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from eventsync.errors import ConfigError

__all__ = ["SCHEMES", "Endpoint"]

SCHEMES: Final = ("amqp", "amqps", "pyamqp")
_SETTINGS: Final = {
    "heartbeat": 20.0,
    "publish_timeout": 30.0,
    "connect_timeout": 5.0,
    "settle": 3.0,
}
_FILES: Final = {"ca": "ca_certs", "cert": "certfile", "key": "keyfile"}


@dataclass(slots=True, frozen=True, kw_only=True)
class Endpoint:
    """The address of a RabbitMQ server and the settings of the connection; times are in seconds.

    ``arguments``: the keyword arguments of kombu's ``Connection``, including the password.
    ``heartbeat``: the interval that is agreed with the server. ``publish_timeout``: how long to
    wait for a confirm, and for each write. ``connect_timeout``: how long to wait for a connection.
    ``settle``: how long to wait after creating a queue, until RabbitMQ has saved the queue.
    """

    arguments: dict[str, Any] = field(repr=False)
    heartbeat: float
    publish_timeout: float
    connect_timeout: float
    settle: float

    @property
    def address(self) -> str:
        """The host and port, as errors show them."""
        return f"{self.arguments['hostname']}:{self.arguments['port']}"

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Return the endpoint of an AMQP URL.

        Raises ``ConfigError`` if the host or the port is wrong, or if a setting in the query is
        unknown or has a wrong value.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError(
                "the broker URL has a host or a port that is wrong",
                hint="write amqp://user:password@host:5672/virtual_host, special characters in the "
                "user and password percent-encoded",
            ) from None  # the text of the error may contain the password
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        times = {
            name: _seconds(name, query.pop(name, default)) for name, default in _SETTINGS.items()
        }
        secure = parts.scheme == "amqps"
        files = {kind: query.pop(name) for name, kind in _FILES.items() if name in query}
        if query or (files and not secure):
            name = next(iter(query), None) or "ca, cert or key"
            raise ConfigError(
                f"the broker URL has a setting that is unknown for {parts.scheme}: {name}",
                hint=f"known settings are {', '.join(_SETTINGS)}, and for amqps: "
                f"{', '.join(_FILES)}",
            )
        host = parts.hostname or "localhost"
        arguments: dict[str, Any] = {
            "hostname": host,
            "port": port or (5671 if secure else 5672),
            "userid": unquote(parts.username or "guest"),
            "password": unquote(parts.password or "guest"),
            "virtual_host": unquote(parts.path.removeprefix("/")) or "/",
            "heartbeat": times["heartbeat"],
            "connect_timeout": times["connect_timeout"],
        }
        if secure:
            arguments["ssl"] = {
                **files,
                "server_hostname": host,
                "cert_reqs": ssl.CERT_REQUIRED,
            }
        return cls(arguments=arguments, **times)


def _seconds(name: str, given: str | float) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            f"broker setting {name}={given!r} is not a number of seconds above 0",
            hint="correct the setting in the broker URL",
        )
    return seconds
