"""``health`` and ``top`` against an endpoint that somebody else runs."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc

import pytest
from support.project import Cli

STATE = {
    "pid": 1, "store": "crm", "started": 1.0, "written": 1.0, "doing": "x", "silence": 0.1,
    "messages": 1, "in_hand": 0, "lag": 0.0, "outcomes": {"applied": 1}, "memory": 1,
    "circuit": {"state": "closed", "error": ""}, "problems": [],
}  # fmt: skip
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def body(**more):
    return HEAD + json.dumps({"reasons": [], **more}).encode()


def slowly(part, pause=0.3):
    """Send a byte now and then for ever."""

    def send(connection):
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return send


def endlessly(first, part):
    def send(connection):
        connection.sendall(first)
        while True:
            connection.sendall(part)

    return send


class Endpoint:
    """A server that answers each request in the same hostile way."""

    def __init__(self, answer):
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with connection:
            try:
                connection.recv(65536)
                if callable(self._answer):
                    self._answer(connection)
                else:
                    connection.sendall(self._answer)
            except OSError:
                pass  # the client has gone, as it should

    def close(self):
        self._socket.close()


@pytest.fixture
def endpoint():
    opened = []

    def open_endpoint(answer):
        opened.append(Endpoint(answer))
        return opened[-1].url

    yield open_endpoint
    for one in opened:
        one.close()


HOSTILE = {
    "slow headers": slowly(b"x"),
    "slow header lines": slowly(b"X-A: b\r\n"),
    "silent": lambda connection: time.sleep(60),
    "endless 1xx": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless body": endlessly(HEAD, b"a" * 65536),
    "endless chunks": endlessly(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"
    ),
    "slow body": lambda connection: (connection.sendall(HEAD), slowly(b" ")(connection)),
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "no JSON": HEAD + b"<html>",
    "deep": HEAD + b"[" * 100_000,
    "long number": HEAD + b'{"reasons": ' + b"9" * 100_000 + b"}",
    "no UTF-8": HEAD + b'{"reasons": ["\xff"]}',
    "a list": HEAD + b"[]",
    "reasons of numbers": HEAD + b'{"reasons": [1, {}]}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_health_ends_in_time_with_an_error_of_its_own(bare: Cli, endpoint, kind) -> None:
    url = endpoint(HOSTILE[kind])
    began = time.monotonic()
    tracemalloc.start()
    done = bare("health", url, "--timeout", "1").check(69)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "Traceback" not in done.err
    assert "does not answer" in done.err
    assert time.monotonic() - began < 8.0
    assert peak < 32 * 1024 * 1024


def test_reasons_cannot_write_to_the_terminal(bare: Cli, endpoint) -> None:
    reasons = ["\x1b]0;owned\x07\x9b2J", "second"]
    url = endpoint(b"HTTP/1.1 503 no\r\n\r\n" + json.dumps({"reasons": reasons}).encode())
    done = bare("health", url).check(1)
    assert "second" in done.err
    assert not set(done.err) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    "answer",
    [
        body(),
        body(stores=1, workers=[], crashes=[]),
        body(stores=["crm"], workers=[1, None, {}, {"store": "crm"}], crashes=[1]),
        body(stores=["crm"], workers=[{**STATE, "silence": "x"}], crashes=[]),
        body(stores=["crm"], workers=[{**STATE, "outcomes": [1]}], crashes=[]),
        body(stores=["crm"], workers=[{**STATE, "pid": 1e400}], crashes=[]),
        body(stores=["crm"], workers=[{**STATE, "circuit": "x"}], crashes=[]),
        body(stores=["crm"], workers=[{**STATE, "problems": [1]}], crashes=[{"store": {}}]),
    ],
)
def test_top_says_what_is_wrong_and_shows_the_rest(cli: Cli, endpoint, answer) -> None:
    good = body(stores=["report"], workers=[{**STATE, "store": "report"}], crashes=[])
    urls = ("--endpoint", endpoint(answer), "--endpoint", endpoint(good))
    done = cli("top", "--every", "0.5", "--json", *urls)
    assert done.code in (0, 69), done.err
    assert "Traceback" not in done.err
    shown = json.loads(done.out)
    assert [worker["store"] for worker in shown["workers"]] == ["report"]
    assert any("malformed" in one or "something else" in one for one in shown["problems"])
