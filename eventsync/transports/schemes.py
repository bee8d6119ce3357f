"""Chooses the transport by the scheme of the broker URL, and masks passwords in URLs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kombu.connection import Connection

from eventsync.errors import ConfigError
from eventsync.transports import credential
from eventsync.transports.amqp import link as amqp_link
from eventsync.transports.link import Link
from eventsync.transports.redis import url as redis_url
from eventsync.transports.sqlite import transport as sqlite_transport

# kombu knows ``memory:`` without slashes. A colon and a number are a host and a port.
_SCHEME: Final = re.compile(r"([A-Za-z][\w+.-]*):(?://|$)")

__all__ = ["OWN_SCHEMES", "connect", "masked", "missing", "scheme_of"]


def connect(url: str, *, lease: float, max_message: int) -> Link:
    """Return a link to the broker of ``url``; blocks until it is connected.

    ``lease``: after so many seconds without a sign of life, other consumers take over a consumer's
    messages; used by SQLite and Redis. ``max_message``: a message of more bytes is not read in
    full; kombu's other transports ignore it. Raises ``ConfigError`` if the URL is wrong,
    ``BusUnavailableError`` or the driver's error if the broker cannot be reached, ``KeyError`` if
    kombu does not know the scheme, and ``ImportError`` if a package for the scheme is not
    installed.
    """
    scheme = scheme_of(url)
    if not scheme:
        raise ConfigError(
            f"the broker URL {masked(url)!r} has no scheme",
            hint="write a URL like sqlite:///broker.db, redis://host/0 or amqp://user@host//",
        )
    return _CONNECT.get(scheme, _kombu)(url, lease, max_message)


def missing(url: str) -> str:
    """Return which file ``connect`` would create; empty if it creates none. Creates nothing.

    Raises ``ConfigError`` if the URL is wrong.
    """
    if scheme_of(url) != "sqlite":
        return ""
    path = Path(sqlite_transport.SQLiteSettings.from_url(url).path)
    # Without its folder the file cannot be created, as ``connect`` then says.
    return f"the broker file {path}" if path.parent.is_dir() and not path.exists() else ""


def scheme_of(url: str) -> str:
    """Return the scheme of ``url``; empty if it has none."""
    scheme = _SCHEME.match(url)
    return scheme[1] if scheme else ""


def masked(url: str) -> str:
    """Return ``url`` with its password replaced by ``**``. Accepts any text and never raises."""
    if scheme_of(url) == "sqlite":
        return url  # the path of a file, without a password
    if scheme_of(url) in redis_url.SCHEMES:
        return credential.masked(url)
    # Several URLs, of which the transport uses the first that answers.
    return ";".join(credential.masked(part) for part in url.split(";"))


def _sqlite(url: str, lease: float, max_message: int) -> Link:
    return Link(sqlite_transport.connect(url, lease=lease, max_message=max_message))


def _redis(url: str, lease: float, max_message: int) -> Link:
    # Imported here, because only Redis needs the client library.
    from eventsync.transports.redis import transport as redis_transport

    return Link(redis_transport.connect(url, lease=lease, max_message=max_message))


def _amqp(url: str, lease: float, max_message: int) -> Link:
    return amqp_link.connect(url, max_message=max_message)


def _kombu(url: str, lease: float, max_message: int) -> Link:
    untyped: Any = Connection  # kombu does not annotate its constructor
    try:
        connection = untyped(url)
    except ValueError:
        # Nothing of the error is shown, because the mistake may be in the password.
        raise ConfigError(
            f"the broker URL {masked(url)!r} is wrong",
            hint="write scheme://user:password@host:port/, with the signs :/?#[]@ of user and "
            "password percent-encoded",
        ) from None
    return Link(connection)


# Add a line here for a new transport of eventsync. kombu connects to all other schemes.
_CONNECT: Final[dict[str, Callable[[str, float, int], Link]]] = {
    "sqlite": _sqlite,
    **dict.fromkeys(redis_url.SCHEMES, _redis),
    **dict.fromkeys(amqp_link.SCHEMES, _amqp),
}

OWN_SCHEMES: Final = frozenset(_CONNECT)
"""The URL schemes of eventsync's own transports."""
