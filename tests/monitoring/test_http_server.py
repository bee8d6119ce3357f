"""The HTTP server under slow clients: it answers others, and its threads are bounded."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request

import pytest

from eventsync.monitoring import http_server
from eventsync.monitoring.http_server import HttpResponse, HttpServer


@pytest.fixture
def large():
    """Return the body of a response that does not fit into the buffers of a connection."""
    return b"x" * (64 << 20)


@pytest.fixture
def server(large):
    routes = {
        "/live": lambda accept: HttpResponse(b"ok", "text/plain"),
        "/large": lambda accept: HttpResponse(large, "text/plain"),
    }
    with HttpServer("127.0.0.1:0", routes) as running:
        yield running


def live(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/live", timeout=5) as answer:
        return answer.read()


def threads():
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


CLIENTS = {
    "silent": b"",
    "request line": b"GET /li",
    "headers": b"GET /live HTTP/1.1\r\nX: 1\r\n",
    "does not read": b"GET /large HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("name", CLIENTS)
def test_slow_clients_keep_nobody_out(server, name):
    """Beside 300 clients that go no further, health checks are answered, with few threads."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for number in range(300):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            with contextlib.suppress(OSError):
                client.sendall(CLIENTS[name])
            if number % 50 == 49:
                assert live(server) == b"ok"
        assert threads() <= http_server._CONNECTIONS
        assert live(server) == b"ok"
    assert time.monotonic() - began < 10


def test_dribbling_client_is_closed_at_its_deadline(monkeypatch):
    """A client that sends a byte now and then does not keep its connection."""
    monkeypatch.setattr(http_server, "_DEADLINE", 0.5)
    with (
        HttpServer("127.0.0.1:0", {}) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"pipe|reset"):  # noqa: PT012
            while time.monotonic() - began < 10:
                client.sendall(b"X: 1\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 3


def test_a_system_without_threads(server, monkeypatch):
    """If no thread can be started, the connection is closed, and later ones are answered."""
    start = threading.Thread.start

    def fails(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    for _ in range(2 * http_server._CONNECTIONS):
        with pytest.raises(OSError, match=r"."):
            live(server)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert live(server) == b"ok"
