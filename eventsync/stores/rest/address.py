"""The gateway: connections to public or explicitly allowed addresses, and to no others."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, TypeAlias

from eventsync.errors import ConfigError
from eventsync.stores.rest.deadline import Deadline, TimedStream

try:
    import httpcore2 as httpcore
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpcore2", hint="pip install 'eventsync[rest]'") from error

__all__ = ["Gateway"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_CARRIERS: Final = tuple(
    (ipaddress.IPv6Network(network), bits)
    for network, bits in (
        ("::/96", 0),  # IPv4-compatible (RFC 4291), obsolete
        ("::ffff:0:0/96", 0),  # IPv4-mapped (RFC 4291)
        ("::ffff:0:0:0/96", 0),  # IPv4-translated (RFC 2765)
        ("64:ff9b::/96", 0),  # NAT64 (RFC 6052)
        ("2002::/16", 80),  # 6to4 (RFC 3056)
    )
)
"""IPv6 networks whose addresses lead to an IPv4 address, and how many bits follow that in them."""
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.IPv6Network,
        # Teredo, benchmarks, ORCHID, documentation: Python's is_global differs between versions.
        ("2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001:db8::/32", "3fff::/20"),
    )
)
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})


class Gateway(httpcore.NetworkBackend):
    """Opens connections to addresses of the public internet and to allowed networks. Thread-safe.

    The gateway resolves the host name, checks the address, and connects to that very address. A DNS
    server that changes its answer after the check (DNS rebinding) gains nothing.

    All that happens on its connections ends at the ``deadline`` of the thread that waits for it.

    ``allow``: networks beside the public ones, as in ``10.1.0.0/16`` or ``127.0.0.1``. Raises
    ``ConfigError``.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        if isinstance(allow, str):
            raise ConfigError(
                f"allow={allow!r}: expected a list of networks", hint=f"pass allow=[{allow!r}]"
            )
        try:
            self._allowed = [ipaddress.ip_network(network) for network in allow]
        except ValueError as error:
            raise ConfigError(
                f"allow: {error}", hint="pass networks, as in allow=['10.1.0.0/16']"
            ) from None
        self._inner = httpcore.SyncBackend()
        self.deadline = Deadline()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        found = self._lookup(host, port)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self._check(host, address)
        failure: Exception = httpcore.ConnectError(f"{host}: the name has no address")
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(
                    address, port, self.deadline.cut(timeout), local_address, socket_options
                )
                return TimedStream(stream, self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _lookup(self, host: str, port: int) -> list[Any]:
        """Return what ``getaddrinfo`` returns, which itself has no timeout."""
        future: Future[list[Any]] = Future()

        def look_up() -> None:
            try:
                future.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, ValueError) as error:  # UnicodeError: no possible host name
                future.set_exception(error)

        threading.Thread(target=look_up, name="eventsync-lookup", daemon=True).start()
        try:
            return future.result(self.deadline.cut(None))
        except FutureTimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host}: no answer from the name server") from error
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error

    def _check(self, host: str, text: str) -> None:
        address = ipaddress.ip_address(text.partition("%")[0])
        reached = _reached(address)
        if any(one in network for one in {address, reached} for network in self._allowed):
            return
        if _is_public(reached):
            return
        raise ConfigError(
            f"{host} has the address {reached}, which is not on the public internet",
            hint=f"if the service is meant to be there, pass allow=[{str(reached)!r}]",
        )


def _reached(address: _Address) -> _Address:
    """Return the IPv4 address to which an IPv6 address leads, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and int(address) > 1:  # not :: and ::1
        for network, bits in _CARRIERS:
            if address in network:
                return ipaddress.IPv4Address(int(address) >> bits & 0xFFFF_FFFF)
        if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:  # RFC 5214, in any network
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: _Address) -> bool:
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    # Only this part of IPv6 is in public use, so site-local addresses (fec0::/10) and NAT64 of
    # one's own network (64:ff9b:1::/48) are outside of it.
    return address in _UNICAST and not any(address in network for network in _NOT_PUBLIC)
