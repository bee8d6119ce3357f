"""The transport of the HTTP client: each connection is opened, and timed, by the gateway."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from eventsync.errors import ConfigError
from eventsync.stores.rest.address import Gateway

try:
    import httpcore2 as httpcore
    import httpx2 as httpx
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpx2", hint="pip install 'eventsync[rest]'") from error

__all__ = ["GuardedTransport"]


class GuardedTransport(httpx.BaseTransport):
    """A transport for httpx that opens all connections through the gateway."""

    def __init__(self, gateway: Gateway, connections: int, context: ssl.SSLContext | None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=connections,
            keepalive_expiry=15.0,
            network_backend=gateway,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        inner = httpcore.Request(
            request.method,
            url,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        answer = self._pool.handle_request(inner)
        return httpx.Response(answer.status, headers=answer.headers, stream=_AnswerBody(answer))

    def close(self) -> None:
        self._pool.close()


class _AnswerBody(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()
