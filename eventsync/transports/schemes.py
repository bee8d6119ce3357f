"""Chooses the transport by the scheme of the broker URL, and masks passwords in URLs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kombu.connection import Connection
from kombu.utils.url import maybe_sanitize_url

from eventsync.transports.amqp import link as amqp_link
from eventsync.transports.link import Link
from eventsync.transports.redis import url as redis_url
from eventsync.transports.sqlite import transport as sqlite_transport

__all__ = ["OWN_SCHEMES", "connect", "masked", "scheme_of"]


def connect(url: str, *, lease: float, max_message: int) -> Link:
    """Return a link to the broker of ``url``; blocks until it is connected.

    ``lease``: after so many seconds without a sign of life, other consumers take over a consumer's
    messages; used by SQLite and Redis. ``max_message``: a message of more bytes is not read in
    full; kombu's other transports ignore it. Raises ``ConfigError`` if the URL is wrong,
    ``BusUnavailableError`` or the driver's error if the broker cannot be reached, ``KeyError`` if
    kombu does not know the scheme, and ``ImportError`` if a package for the scheme is not
    installed.
    """
    return _CONNECT.get(scheme_of(url), _kombu)(url, lease, max_message)


def scheme_of(url: str) -> str:
    """Return the text of ``url`` before the first colon."""
    return url.partition(":")[0]


def masked(url: str) -> str:
    """Return ``url`` with its password replaced by ``**``. Accepts any text and never raises."""
    scheme = scheme_of(url)
    if scheme == "sqlite":
        return url  # the path of a file, without a password
    if scheme in redis_url.SCHEMES:
        return redis_url.masked(url)
    try:
        return ";".join(str(maybe_sanitize_url(part)) for part in url.split(";"))
    except ValueError:  # a host, a port or a character that no URL has
        return f"{scheme}:**"


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
    return Link(untyped(url))


# Add a line here for a new transport of eventsync. kombu connects to all other schemes.
_CONNECT: Final[dict[str, Callable[[str, float, int], Link]]] = {
    "sqlite": _sqlite,
    **dict.fromkeys(redis_url.SCHEMES, _redis),
    **dict.fromkeys(amqp_link.SCHEMES, _amqp),
}

OWN_SCHEMES: Final = frozenset(_CONNECT)
"""The URL schemes of eventsync's own transports."""
