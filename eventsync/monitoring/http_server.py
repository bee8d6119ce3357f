"""A small HTTP server for metrics and health checks. It answers each request in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from eventsync.errors import ConfigError

__all__ = ["LONGEST_BODY", "HttpResponse", "HttpServer", "parse_address"]

LONGEST_BODY: Final = 2 << 20
"""The longest body of a POST request, in bytes."""

_DEADLINE: Final = 10.0
_CONNECTIONS: Final = 32
_CLOSING: Final = 1.0
"""How long a new connection waits until another one is closed."""


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
    """Answers GET, HEAD and POST requests. A context manager: it serves within the block.

    ``address``: ``HOST:PORT``; port 0 means any free port. ``routes``: for each path, a function
    that gets the ``Accept`` header of a request and returns the response; it must be thread-safe.
    ``posts``: for each path that takes POST requests, a function that gets the headers by
    lower-case name, and the body, which has at most ``LONGEST_BODY`` bytes. The constructor raises
    ``ConfigError`` if the address is wrong or cannot be used.
    """

    def __init__(
        self,
        address: str,
        routes: Mapping[str, Callable[[str], HttpResponse]],
        *,
        posts: Mapping[str, Callable[[Mapping[str, str], bytes], HttpResponse]] | None = None,
    ) -> None:
        host, port = parse_address(address)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = _server(family)((host, port), _handler(routes, posts or {}))
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


def _server(family: socket.AddressFamily) -> type[_Server]:
    return type("Server", (_Server,), {"address_family": family})


class _Server(ThreadingHTTPServer):
    """A server with a bounded number of connections, of which each has a deadline.

    A slow client holds a connection for ``_DEADLINE`` seconds at most, whatever it sends. If all
    connections are in use, the oldest that has not sent its request yet is closed, so slow clients
    do not keep others out.
    """

    daemon_threads = True
    # Do not wait for hanging clients when the server closes.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._guard = threading.Lock()
        # The open connections, oldest first: when each began, and whether its request has arrived.
        self._open: dict[socket.socket, tuple[float, bool]] = {}
        self._free = threading.Semaphore(_CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self._close_oldest()
            if not self._free.acquire(timeout=_CLOSING):
                self.shutdown_request(request)
                return
        with self._guard:
            self._open[request] = time.monotonic(), False
        try:
            super().process_request(request, client_address)
        except BaseException:  # the system has no thread left; the caller closes the connection
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def arrived(self, request: socket.socket) -> None:
        """Note that the request of a connection is complete."""
        with self._guard:
            if request in self._open:
                self._open[request] = self._open[request][0], True

    def service_actions(self) -> None:
        """Close the connections that are past their deadline. Called twice a second."""
        late = time.monotonic() - _DEADLINE
        with self._guard:
            for request, (began, _) in self._open.items():
                if began < late:
                    _shut(request)

    def _close_oldest(self) -> None:
        with self._guard:
            # The sort is stable: the oldest without a request, else the oldest.
            for request in sorted(self._open, key=lambda request: self._open[request][1])[:1]:
                _shut(request)

    def _forget(self, request: socket.socket) -> None:
        with self._guard:
            del self._open[request]
        self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a client that disconnects before it has read its response."""


def _shut(connection: socket.socket) -> None:
    """End a connection, so that the thread that waits for it goes on."""
    with contextlib.suppress(OSError):  # the client, or its thread, has closed it
        connection.shutdown(socket.SHUT_RDWR)


def _handler(
    routes: Mapping[str, Callable[[str], HttpResponse]],
    posts: Mapping[str, Callable[[Mapping[str, str], bytes], HttpResponse]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _DEADLINE
        server_version = "eventsync"
        sys_version = ""

        def do_GET(self) -> None:  # http.server requires this name
            assert isinstance(self.server, _Server)
            self.server.arrived(self.connection)
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                paths = " ".join(routes)
                found = HttpResponse(f"not found; try {paths}\n".encode(), "text/plain", 404)
            else:
                found = _answer(route, self.headers.get("Accept", ""))
            self._send(found)

        def do_POST(self) -> None:
            assert isinstance(self.server, _Server)
            self.close_connection = True
            route = posts.get(self.path.partition("?")[0])
            length = self.headers.get("Content-Length", "")
            if route is None:
                found = HttpResponse(b"not found\n", "text/plain", 404)
            elif not (length.isascii() and length.isdecimal()):
                found = HttpResponse(b"Content-Length is missing\n", "text/plain", 411)
            elif len(length) > 12 or int(length) > LONGEST_BODY:
                found = HttpResponse(b"the body is too long\n", "text/plain", 413)
            else:
                # The connection counts as waiting for its request until the body is there.
                body = self.rfile.read(int(length))
                if len(body) < int(length):
                    return  # the client, or the deadline, has ended the connection
                self.server.arrived(self.connection)
                headers = {name.lower(): value for name, value in self.headers.items()}
                found = _answer(route, headers, body)
            self._send(found)

        def _send(self, found: HttpResponse) -> None:
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


def _answer(route: Callable[..., HttpResponse], *arguments: Any) -> HttpResponse:
    try:
        return route(*arguments)
    except Exception as error:
        # Send only the type of the error: its text may contain confidential data.
        return HttpResponse(f"{type(error).__name__}\n".encode(), "text/plain", 500)
