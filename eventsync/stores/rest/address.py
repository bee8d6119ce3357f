"""Which addresses a REST service may be at, and connections to no others.

It owns the check of the address that is really connected to. It knows nothing of HTTP.
"""

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
    """Opens connections to addresses of the public internet, and to networks that are allowed.

    A name is resolved here, and connected to is the very address that was checked, so a name that
    changes its mind in between gains nothing. Thread-safe.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        """``allow``: networks beside the public ones, as ``10.1.0.0/16`` or ``127.0.0.1``.

        Raises ``ConfigError``.
        """
        if isinstance(allow, str):
            raise ConfigError(f"allow={allow!r}: it is a list of networks")
        try:
            self._allowed = [ipaddress.ip_network(network) for network in allow]
        except ValueError as error:
            raise ConfigError(f"allow: {error}", hint="as in allow=['10.1.0.0/16']") from None
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
        failure: Exception = httpcore.ConnectError(f"{host}: no address")
        for address in addresses:
            try:
                return self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _check(self, host: str, text: str) -> None:
        address = _meant(ipaddress.ip_address(text.partition("%")[0]))
        if any(address in network for network in self._allowed):
            return
        if address.is_global and not address.is_multicast:
            return
        raise ConfigError(
            f"{host} is at {address}, which is no address of the public internet",
            hint=f"if the service is meant to be there: allow=[{str(address)!r}]",
        )


def _meant(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 address that only carries one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
