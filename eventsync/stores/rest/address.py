"""The gateway: connections to public or explicitly allowed addresses, and to no others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from eventsync.errors import ConfigError

try:
    import httpcore
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpcore", hint="pip install 'eventsync[rest]'") from error

__all__ = ["Gateway"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Gateway(httpcore.NetworkBackend):
    """Opens connections to addresses of the public internet and to allowed networks. Thread-safe.

    The gateway resolves the host name, checks the address, and connects to that very address. A DNS
    server that changes its answer after the check (DNS rebinding) gains nothing.

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

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self._check(host, address)
        failure: Exception = httpcore.ConnectError(f"{host}: the name has no address")
        for address in addresses:
            try:
                return self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _check(self, host: str, text: str) -> None:
        address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
        if any(address in network for network in self._allowed):
            return
        if address.is_global and not address.is_multicast:
            return
        raise ConfigError(
            f"{host} has the address {address}, which is not on the public internet",
            hint=f"if the service is meant to be there, pass allow=[{str(address)!r}]",
        )


def _unwrapped(address: _Address) -> _Address:
    """Return the IPv4 address inside an IPv6 address that carries one, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
