"""A small HTTP server for metrics and health, which answers from threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from eventsync.errors import ConfigError

__all__ = ["HttpResponse", "HttpServer", "parse_address"]

_TIMEOUT: Final = 10.0


@dataclass(slots=True, frozen=True)
class HttpResponse:
    """The body of a response, its content type and its status code."""

    body: bytes
    content_type: str
    status: int = 200


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and port of ``HOST:PORT``. Raise ``ConfigError`` for anything else.

    An IPv6 address stands in brackets, as in ``[::1]:9464``.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(
            f"cannot listen at {text!r}: expected HOST:PORT", hint="for example 127.0.0.1:9464"
        )
    return host, int(port)


class HttpServer:
    """Answers GET and HEAD requests. Usable as a context manager: it serves within the block.

    ``address``: ``HOST:PORT``; port 0 for any free port. ``routes``: by path, the function that
    answers; it takes the request's ``Accept`` header and must be thread-safe. Raises
    ``ConfigError`` when the address cannot be used.
    """

    def __init__(self, address: str, routes: Mapping[str, Callable[[str], HttpResponse]]) -> None:
        host, port = parse_address(address)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _server(family)((host, port), _handler(routes))
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {address}: {error}",
                hint="choose another address with --listen or EVENTSYNC_LISTEN",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="eventsync-http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _server(family: socket.AddressFamily) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = family
        daemon_threads = True
        # A client that hangs must not keep the process from ending.
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore clients that disconnect before they have read their response."""

    return Server


def _handler(routes: Mapping[str, Callable[[str], HttpResponse]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT
        server_version = "eventsync"
        sys_version = ""

        def do_GET(self) -> None:  # the name that http.server calls
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                paths = " ".join(routes)
                found = HttpResponse(f"not found; try {paths}\n".encode(), "text/plain", 404)
            else:
                try:
                    found = route(self.headers.get("Accept", ""))
                except Exception as error:
                    # Only its type: the text of an error may contain confidential data.
                    found = HttpResponse(f"{type(error).__name__}\n".encode(), "text/plain", 500)
            self.send_response(found.status)
            self.send_header("Content-Type", found.content_type)
            self.send_header("Content-Length", str(len(found.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Do not log requests."""

    return Handler
