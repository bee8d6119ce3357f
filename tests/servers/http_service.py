"""The base of simulated HTTP services, which run in threads of this process and fail on demand."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Asked", "HttpService"]

_METHODS = ("GET", "PUT", "PATCH", "POST", "DELETE")


class Asked(NamedTuple):
    """A request. ``names``: the segments of its path, unescaped."""

    method: str
    path: str
    names: list[str]
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


class HttpService(ABC):
    """A simulated service. Subclasses answer the requests in ``act``.

    ``requests``: method and path of each request, in order. ``exchanges``: each request with its
    answer. ``failures``: the failures of the next requests, one each: ``("status", code, headers,
    body)`` answers this, ``("drop",)`` closes the connection before the request is executed,
    ``("lose",)`` closes it afterwards, ``("slow", seconds)`` answers slowly, ``None`` never fails.
    ``only``: a function of method and path that selects the requests to fail. ``between``: called
    before a write is executed.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.exchanges: list[tuple[Asked, int, Any]] = []
        self.failures: deque[tuple[Any, ...] | None] = deque()
        self.only: Callable[[str, str], bool] = lambda method, path: True
        self.between: Callable[[], None] = lambda: None
        self.lock = threading.RLock()

    @abstractmethod
    def act(self, asked: Asked) -> tuple[Any, ...]:
        """Execute a request. Return the status, the body and, optionally, headers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def writes(self) -> list[tuple[str, str]]:
        """Return the requests that write."""
        return [request for request in self.requests if request[0] not in ("GET", "HEAD")]

    def __enter__(self) -> Self:
        methods = {f"do_{name}": _Handler.handle_any for name in _METHODS}
        handler = type("Handler", (_Handler,), {"service": self, **methods})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _files(type: str, body: bytes) -> dict[str, tuple[str, str, bytes]]:
    """Return name, type and content of each file in a form, by the name of its field."""
    head = f"Content-Type: {type}\r\n\r\n".encode()
    parts = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
    return {
        str(part.get_param("name", header="content-disposition")): (
            str(part.get_filename()),
            part.get_content_type(),
            part.get_payload(decode=True),
        )
        for part in parts
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: HttpService

    def log_message(self, *arguments: object) -> None:
        """Log nothing; tests look at ``requests``."""

    def handle_any(self) -> None:
        service, path = self.service, self.path
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        service.requests.append((self.command, path))
        failure = None
        if service.failures and service.only(self.command, path):
            failure = service.failures.popleft()
        if failure is not None:
            if failure[0] == "status":
                self.answer(failure[1], failure[3], failure[2])
                return
            if failure[0] == "drop":
                self.close_connection = True
                return
            if failure[0] == "slow":
                time.sleep(failure[1])
        if self.command != "GET":
            service.between()
        parts = urlsplit(path)
        names = [unquote(part) for part in parts.path.strip("/").split("/")]
        asked = Asked(
            self.command, parts.path, names, dict(parse_qsl(parts.query)), self.headers, None
        )
        if self.headers.get_content_type() == "application/json":
            asked = asked._replace(body=json.loads(body))
        elif self.headers.get_content_type() == "multipart/form-data":
            asked = asked._replace(body=_files(self.headers["Content-Type"], body))
        elif body:
            asked = asked._replace(body=dict(parse_qsl(body.decode())))
        with service.lock:
            answer = service.act(asked)
            sent = answer[1] if isinstance(answer[1], bytes) else json.loads(json.dumps(answer[1]))
            service.exchanges.append((asked, answer[0], sent))
        if failure is not None and failure[0] == "lose":
            self.close_connection = True
            return
        self.answer(*answer)

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status == 204:
            content = b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
