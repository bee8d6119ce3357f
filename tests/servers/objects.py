"""A small REST service of the tests' own: JSON objects under URLs, in threads of this process.

``/{kind}/{key}`` is an object, ``/{kind}`` the list. It gives strong entity tags and honours them,
pages lists in four ways, and fails on demand: before it does what it is asked, or after.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["ObjectServer"]

_METHODS = ("GET", "PUT", "PATCH", "POST", "DELETE")


class ObjectServer:
    """``objects``: by kind and key, what it holds; a test may alter it as somebody else would.

    ``requests``: method and path of each request, in order. ``failures``: what is done with the
    next requests instead of answering, one each: ``("status", code, headers, body)``, ``("drop",)``
    before anything is done, ``("lose",)`` after it was done, ``("slow", seconds)``, ``None`` for
    none. ``only``: a test of method and path that says which requests they are for. ``between``:
    called before a write is looked at. ``ids``: it gives objects ids of its own. ``etags``: it
    gives entity tags. ``paging``: how lists are paged.
    """

    def __init__(self, *, ids: bool = False, etags: bool = True, paging: str = "link") -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.failures: deque[tuple[Any, ...] | None] = deque()
        self.only: Callable[[str, str], bool] = lambda method, path: True
        self.between: Callable[[], None] = lambda: None
        self.ids, self.etags, self.paging = ids, etags, paging
        self.token: str | None = None
        self.tokens_given = 0
        self.lock = threading.RLock()
        self._number = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def writes(self) -> list[tuple[str, str]]:
        """The requests that were no reads."""
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

    def next_id(self) -> str:
        self._number += 1
        return str(self._number)


def tag(data: Any) -> str:
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return f'"{digest[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: ObjectServer

    def log_message(self, *arguments: object) -> None:
        """Tests look at ``requests`` instead."""

    def handle_any(self) -> None:
        service, path = self.service, self.path
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        service.requests.append((self.command, path))
        service.headers.append({name.lower(): value for name, value in self.headers.items()})
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
        if urlsplit(path).path == "/token":
            self.give_token(body)
            return
        if service.token and self.headers.get("Authorization") != f"Bearer {service.token}":
            self.answer(401, {"message": f"bad {self.headers.get('Authorization')}"})
            return
        if self.command != "GET":
            service.between()
        with service.lock:
            answer = self.act(body)
        if failure is not None and failure[0] == "lose":
            self.close_connection = True
            return
        self.answer(*answer)

    def give_token(self, body: bytes) -> None:
        assert dict(parse_qsl(body.decode()))["grant_type"] == "client_credentials"
        self.service.tokens_given += 1
        self.service.token = f"secret-token-{self.service.tokens_given}"
        self.answer(200, {"access_token": self.service.token, "expires_in": 3600})

    def act(self, body: bytes) -> tuple[Any, ...]:
        service, parts = self.service, urlsplit(self.path)
        names = [unquote(part) for part in parts.path.strip("/").split("/")]
        kind, key = names[0], "/".join(names[1:])
        held = service.objects.setdefault(kind, {})
        query = dict(parse_qsl(parts.query))
        if len(names) == 1:
            return self.create(held, json.loads(body)) if body else self.listed(held, query)
        found = held.get(key)
        wanted = self.headers.get("If-Match")
        if self.headers.get("If-None-Match") == "*" and found is not None:
            return 412, {"message": "it is there"}
        if wanted is not None and (found is None or tag(found) != wanted):
            return 412, {"message": "it is another"}
        if self.command == "PUT" and not service.ids:
            held[key] = json.loads(body)
            return 200 if found else 201, held[key], self.tagged(held[key])
        if found is None:
            return 404, {"message": "not there"}
        if self.command == "DELETE":
            del held[key]
            return 204, None
        if self.command in ("PATCH", "PUT"):
            held[key] = {**(found if self.command == "PATCH" else {}), **json.loads(body)}
        return 200, held[key], self.tagged(held[key])

    def create(self, held: dict[str, Any], data: dict[str, Any]) -> tuple[Any, ...]:
        id = self.service.next_id()
        held[id] = {**data, "id": id}
        return 201, held[id], self.tagged(held[id])

    def listed(self, held: dict[str, Any], query: dict[str, str]) -> tuple[Any, ...]:
        found = [held[key] for key in sorted(held)]
        if "since" in query:
            found = [data for data in found if data.get("updated", "") >= query["since"]]
        size = int(query.get("per_page", 30))
        start = int(query.get("page", 1)) - 1
        first = start * size if self.service.paging == "link" else 0
        if self.service.paging == "number":
            first = start * size
        if self.service.paging == "cursor":
            first = int(query.get("cursor", 0))
        page, rest = found[first : first + size], found[first + size :]
        headers = {}
        if self.service.paging == "link":
            if rest:
                more = f"{self.service.url}{urlsplit(self.path).path}?page={start + 2}"
                headers["Link"] = f'<{more}&per_page={size}>; rel="next", </x>; rel="last"'
            return 200, page, headers
        cursor = str(first + size) if rest else None
        return 200, {"data": {"items": page}, "total": len(found), "next": cursor}, headers

    def tagged(self, data: Any) -> dict[str, str]:
        return {"ETag": tag(data)} if self.service.etags else {}

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
