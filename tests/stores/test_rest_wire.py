"""What a hostile service sends on the wire, and where credentials go."""

from __future__ import annotations

import gzip
import os
import resource
import socket
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager, suppress

import pytest

from eventsync.errors import ConfigError, EventSyncError, RecordError, StoreUnavailableError
from eventsync.stores.rest import ClientCredentials, Service, Token

LOCAL = {"allow": ["127.0.0.1", "::1"], "timeout": 2.0, "deadline": 5.0}


@contextmanager
def answering(*answers):
    """Run a server that gives each connection one of the answers, the last one again and again.

    Yield its port and the list of the requests that it received.
    """
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(5)
                        received.append(connection.recv(65536))
                        answer = answers[min(len(received), len(answers)) - 1]
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(65536)  # until the client has read the answer

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(body=b"[]", *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def asked(port, method="GET", **more):
    service = Service(f"http://127.0.0.1:{port}", **{**LOCAL, **more})
    try:
        return service.request(method, "/things", body={} if method != "GET" else None)
    finally:
        service.close()


ZEROS = b" " * (64 << 20)
BOMBS = {
    "gzip": gzip.compress(ZEROS),
    "gzip, gzip": gzip.compress(gzip.compress(ZEROS)),
    "deflate": zlib.compress(ZEROS),
    "br": b"\x00" * 1000,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\x00" * 1000,
    "x-gzip": gzip.compress(ZEROS),
    "GZIP": gzip.compress(ZEROS),
    "identity, gzip": gzip.compress(ZEROS),
    "unheard-of": b"x",
}


@pytest.mark.parametrize("coding", BOMBS)
def test_compressed_answers(coding):
    """No answer is expanded, whatever its coding: it is refused, and the work waits."""
    with answering(answer(BOMBS[coding], f"Content-Encoding: {coding}")) as (port, received):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(StoreUnavailableError, match="compressed") as told:
            asked(port, "PUT")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB
    assert told.value.uncertain
    assert b"accept-encoding: identity" in received[0].lower()


def test_compressed_answers_in_two_headers():
    """A coding in a second header is seen, too."""
    headers = ("Content-Encoding: identity", "Content-Encoding: gzip")
    with (
        answering(answer(BOMBS["gzip"], *headers)) as (port, _),
        pytest.raises(StoreUnavailableError, match="compressed"),
    ):
        asked(port)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "a body that is shorter": HEAD + b"Content-Length: 99\r\n\r\n[]",
    "no number": HEAD + b"Content-Length: x\r\n\r\n[]",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n[]",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
    "a list of lengths": HEAD + b"Content-Length: 2, 3\r\n\r\n[]",
    "digits without end": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n[]",
    "gzip as transfer coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks that break off": CHUNKED + b"2\r\n[]\r\n",
    "no size of a chunk": CHUNKED + b"x\r\n[]\r\n0\r\n\r\n",
    "a huge chunk": CHUNKED + b"f" * 30 + b"\r\n[]",
    "a chunk that lies": CHUNKED + b"1\r\n[]\r\n0\r\n\r\n",
    "large trailers": CHUNKED + b"0\r\n" + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
    "many trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    "large headers": HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
    "HTTP/2": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "HTTP/0.9": b"[]",
    "no bytes": b"",
    "only interim answers": b"HTTP/1.1 102 Processing\r\n\r\n" * 1000,
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "a header of two lines": HEAD + b"Content-Length: 2\r\nX: a\r\n b\x00\r\n\r\n[]",
}


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("name", BROKEN)
def test_answers_that_break_the_protocol(name, method):
    """An answer that is no HTTP, or is cut off, is none; whether a write was made is unknown."""
    with answering(BROKEN[name]) as (port, _):
        with pytest.raises(EventSyncError) as told:
            asked(port, method)
        assert len(str(told.value)) < 1000
        assert isinstance(told.value, StoreUnavailableError)
        assert told.value.uncertain == (method == "PUT")


def test_bytes_after_an_answer():
    """Bytes beyond the length are no part of this answer, nor of the next one."""
    lie = HEAD + b"Content-Length: 2\r\n\r\n[]" + answer(b'["forged"]')
    with answering(lie, answer(b'["second"]')) as (port, received):
        service = Service(f"http://127.0.0.1:{port}", **LOCAL)
        assert service.request("GET", "/things").json() == []
        with suppress(StoreUnavailableError):
            assert service.request("GET", "/things").json() == ["second"]
            assert len(received) == 2
        service.close()


def test_the_size_limit_holds_on_the_wire():
    """An answer above the limit is broken off; its length need not say so."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for sent in (answer(b" " * (2 << 20)), CHUNKED + chunk * 32, HEAD + b"\r\n" + b" " * (2 << 20)):
        with (
            answering(sent) as (port, _),
            pytest.raises(EventSyncError, match="more than 1048576 bytes"),
        ):
            asked(port, max_response=1 << 20)


MEASURE = """
import sys
from pathlib import Path
from eventsync.stores.rest import Service

def peak():  # not ru_maxrss, which a process inherits from the one that started it
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1])

service = Service(sys.argv[1], allow=["127.0.0.1"])
before = peak()
try:
    service.request("GET", "/things").json()
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
print((peak() - before) >> 10)
"""
PARTS = {
    "refused": b"0.1,",
    "texts": '"😀 and 12 more",'.encode(),
    "decimals": b"0.12345678901234567,",
    "objects": b'{"a":{"b":"%s"}},' % (b"0123456789" * 8),
    "long texts": b'"' + "😀".encode() * (256 << 10) + b'",',
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", PARTS)
def test_memory_of_an_answer_on_the_wire(name):
    """A process needs less than 350 MB more for an answer of 16 MiB, whatever is in it."""
    part = PARTS[name]
    body = b"[" + part * ((16 << 20) // len(part) - 1) + b"0]"
    with answering(answer(body)) as (port, _):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, f"http://127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=True,
        )
    print(name, done.stdout, done.stderr)
    assert ("RecordError" in done.stderr) == (name == "refused")
    assert 20 < int(done.stdout) < 350, done.stdout + done.stderr


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_credentials_stay_at_the_host(status, method):
    """A redirect is not followed, to another port of this host neither."""
    with answering(answer()) as (other, elsewhere):
        to = f"Location: http://127.0.0.1:{other}/things"
        with answering(answer(b"", to, status=f"{status} Moved")) as (port, received):
            with pytest.raises((ConfigError, RecordError)):
                asked(port, method, auth=Token("s3cret"))
            assert len(received) == 1
            assert b"s3cret" in received[0]
        assert elsewhere == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_of_the_token_endpoint(status):
    """The secret of a client goes to the token endpoint, and not where that redirects to."""
    with answering(answer()) as (other, elsewhere):
        to = f"Location: http://127.0.0.1:{other}/token"
        with answering(answer(b"", to, status=f"{status} Moved")) as (port, received):
            auth = ClientCredentials(f"http://127.0.0.1:{port}/token", "me", "s3cret")
            with pytest.raises((ConfigError, StoreUnavailableError)):
                asked(other, auth=auth)
            assert len(received) == 1
        assert elsewhere == []


def test_cookies_are_not_kept():
    """A service that sets a cookie in each answer does not get it back."""
    cookies = [f"Set-Cookie: c{n}={'x' * 1000}; Path=/; Domain=127.0.0.1" for n in range(50)]
    with answering(answer(b"[]", *cookies, "Connection: close")) as (port, received):
        service = Service(f"http://127.0.0.1:{port}", **LOCAL)
        for _ in range(20):
            service.request("GET", "/things")
        service.close()
    assert len(received) == 20
    assert not [one for one in received if b"cookie" in one.lower()]
    assert max(map(len, received)) < 1000


def test_the_environment_leads_nowhere(tmp_path, monkeypatch):
    """No proxy and no password of the environment is used."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password x\ndefault login a password b\n")
    netrc.chmod(0o600)
    (tmp_path / ".netrc").write_bytes(netrc.read_bytes())
    (tmp_path / ".netrc").chmod(0o600)
    with answering(answer()) as (proxy, through), answering(answer()) as (port, received):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            for spelt in (name, name.lower()):
                monkeypatch.setenv(spelt, f"http://user:pw@127.0.0.1:{proxy}")
        monkeypatch.setenv("NETRC", os.fspath(netrc))
        monkeypatch.setenv("HOME", os.fspath(tmp_path))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        asked(port)
        assert through == []
        assert b"authorization" not in received[0].lower()
        assert b"GET /things HTTP/1.1" in received[0]
