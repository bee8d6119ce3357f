"""A small HTTP server for metrics and health checks. It answers each request in a thread."""

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
    """An HTTP response: body, content type and status code."""

    body: bytes
    content_type: str
    status: int = 200


def parse_address(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` and return the host and the port.

    An IPv6 address must be in brackets, as in ``[::1]:9464``. Raises ``ConfigError`` if the text
    does not have this form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(
            f"cannot listen at {text!r}: expected HOST:PORT",
            hint="write an address like 127.0.0.1:9464",
        )
    return host, int(port)


class HttpServer:
    """Answers GET and HEAD requests. Use it as a context manager: it serves within the block.

    ``address``: ``HOST:PORT``; port 0 means any free port. ``routes``: for each path, a function
    that gets the ``Accept`` header of a request and returns the response; it must be thread-safe.
    The constructor raises ``ConfigError`` if the address is wrong or cannot be used.
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
        """The port on which the server listens."""
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
        # Do not wait for hanging clients when the server closes.
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore the error of a client that disconnects before it has read its response."""

    return Server


def _handler(routes: Mapping[str, Callable[[str], HttpResponse]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT
        server_version = "eventsync"
        sys_version = ""

        def do_GET(self) -> None:  # http.server requires this name
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                paths = " ".join(routes)
                found = HttpResponse(f"not found; try {paths}\n".encode(), "text/plain", 404)
            else:
                try:
                    found = route(self.headers.get("Accept", ""))
                except Exception as error:
                    # Send only the type of the error: its text may contain confidential data.
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
            """Do nothing, so that requests are not logged."""

    return Handler
