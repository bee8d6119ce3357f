"""The transports by the scheme of the broker's URL: how to connect, and how to show the URL."""

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

    ``lease``: how long a silent consumer keeps its messages, in seconds. ``max_message``: the size
    above which a message is not read, in bytes. Each is used by the transports that support it.
    Raises the errors of ``Link``, ``ConfigError`` for a wrong URL, and ``KeyError`` or
    ``ImportError`` if kombu does not know the scheme or lacks a package for it.
    """
    return _CONNECT.get(scheme_of(url), _kombu)(url, lease, max_message)


def scheme_of(url: str) -> str:
    """Return the scheme of a URL."""
    return url.partition(":")[0]


def masked(url: str) -> str:
    """Return a URL without its password. Accepts any text and never raises."""
    scheme = scheme_of(url)
    if scheme == "sqlite":
        return url  # it has no password
    if scheme in redis_url.SCHEMES:
        return redis_url.masked(url)
    return ";".join(str(maybe_sanitize_url(part)) for part in url.split(";"))


def _sqlite(url: str, lease: float, max_message: int) -> Link:
    return Link(sqlite_transport.connect(url, lease=lease))


def _redis(url: str, lease: float, max_message: int) -> Link:
    # Imported here, because only Redis needs the client library.
    from eventsync.transports.redis import transport as redis_transport

    return Link(redis_transport.connect(url, lease=lease))


def _amqp(url: str, lease: float, max_message: int) -> Link:
    return amqp_link.connect(url, max_message=max_message)


def _kombu(url: str, lease: float, max_message: int) -> Link:
    untyped: Any = Connection  # kombu does not annotate its constructor
    return Link(untyped(url))


# A new transport of eventsync adds a line here. All other schemes are left to kombu.
_CONNECT: Final[dict[str, Callable[[str, float, int], Link]]] = {
    "sqlite": _sqlite,
    **dict.fromkeys(redis_url.SCHEMES, _redis),
    **dict.fromkeys(amqp_link.SCHEMES, _amqp),
}

OWN_SCHEMES: Final = frozenset(_CONNECT)
"""The schemes of eventsync's own transports."""
