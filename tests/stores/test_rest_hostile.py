"""What a hostile service answers: no answer holds a worker, ends it, or fills its memory."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress

import pytest

from eventsync.errors import ConfigError, RecordError, StoreUnavailableError
from eventsync.stores.rest import Cursor, Links, NextLink, Service
from eventsync.stores.rest.address import Gateway
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.unreadable import DECODER, OddNumber, Unreadable

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def raw(*, begin=b"", forever=b"", pause=0.02, reads=True):
    """Run a server that sends ``begin``, then ``forever`` again and again. Yield its URL."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while not done.is_set():
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection):
            with connection, suppress(OSError):
                while not reads and not done.is_set():
                    connection.recv(1)  # a byte at a time
                    done.wait(pause)
                connection.recv(65536)
                connection.sendall(begin)
                while forever and not done.is_set():
                    connection.sendall(forever)
                    done.wait(pause)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


ENDLESS = {
    "status line": (b"", b"H"),
    "headers": (OK, b"X: 1\r\n"),
    "one header": (OK + b"X: ", b"x"),
    "1xx": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "size of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n", b"X: 1\r\n"),
    "body": (OK + b"Content-Length: 9999\r\n\r\n", b" "),
    "body without length": (OK + b"\r\n", b" "),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_the_deadline_holds_in_every_part_of_an_answer(name):
    """A service that goes on sending is given up at the deadline, whatever it sends."""
    begin, forever = ENDLESS[name]
    with raw(begin=begin, forever=forever) as url:
        service = Service(url, allow=["127.0.0.1"], timeout=5.0, deadline=0.3)
        began = time.monotonic()
        with pytest.raises(
            StoreUnavailableError, match=r"no complete answer within 0\.3 s"
        ) as told:
            service.request("PUT", "/things/1", body={})
        assert time.monotonic() - began < 1.5
        assert told.value.uncertain
        service.close()


def test_the_deadline_holds_while_a_request_is_sent():
    """A service that reads a byte at a time is given up at the deadline."""
    with raw(reads=False) as url:
        service = Service(url, allow=["127.0.0.1"], timeout=5.0, deadline=0.3)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"no complete answer within 0\.3 s"):
            service.request("PUT", "/things/1", body={"text": "x" * (16 << 20)})
        assert time.monotonic() - began < 1.5
        service.close()


def test_the_deadline_holds_for_the_name_server(monkeypatch):
    """A name server that does not answer is given up at the deadline; nothing was sent."""
    awaited = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: awaited.wait(30) and [])
    service = Service("http://example.com", timeout=5.0, deadline=0.2)
    with pytest.raises(StoreUnavailableError, match=r"no complete answer within 0\.2 s") as told:
        service.request("PUT", "/things/1", body={})
    assert not told.value.uncertain
    awaited.set()


TARGETS = [
    "http://127.0.0.1:99999/x",
    "//127.0.0.1:-1/",
    "http://127.0.0.1:1/a\x01b",
    "http://[",
    "http://[::1",
    "/\x7f",
    "x" * 70_000,
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("where", ["header", "body", "cursor"])
def test_odd_links(target, where):
    """A next page that no URL can name is an error of the list, not of the worker."""
    target = "\ud800" if where == "cursor" and target == "http://[" else target
    answer = Answer(200, {"link": f'<{target}>; rel="next"'}, b"[]", "http://127.0.0.1:1/things")
    pages = {"header": Links(), "body": NextLink(), "cursor": Cursor(at="next")}[where]
    service = Service("http://127.0.0.1:1", allow=["127.0.0.1"])

    def walk():
        following = pages.after(answer, {"next": target}, [], ("/things", {}))
        assert following is not None
        service.request("GET", following[0], query=following[1])

    with pytest.raises((RecordError, ConfigError, StoreUnavailableError)) as told:
        walk()
    assert len(str(told.value)) < 1000
    if where != "cursor":
        assert not isinstance(told.value, StoreUnavailableError)


@pytest.mark.parametrize("location", ["http://[", "http://127.0.0.1:99999/", "\tx"])
def test_odd_locations(location):
    """A redirect to something that is no URL is an error of the object."""
    begin = f"HTTP/1.1 301 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    with raw(begin=begin) as url:
        service = Service(url, allow=["127.0.0.1"], timeout=1.0)
        with pytest.raises(RecordError):
            service.read_one("/things/1")
        service.close()


LARGE = {
    "decimals": b"0.1,",
    "lists": b"[],",
    "objects": b"{},",
    "members": b'{"a":{"b":1}},',
    "texts": '"\\u00e9\U0001f600",'.encode(),
    "nulls": b"null,",
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_of_an_answer(name):
    """An answer of 16 MiB needs at most 200 MB more, whatever is in it."""
    part = LARGE[name]
    content = b"[" + part * ((16 << 20) // len(part)) + b"0]"
    answer = Answer(200, {}, content, "http://there/things")
    tracemalloc.start()
    try:
        with suppress(RecordError):
            answer.json()
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_many_separators_in_a_text():
    """A long text with many commas is one value."""
    text = '["' + "a,:[{" * 300_000 + '"]'
    assert len(Answer(200, {}, text.encode(), "http://there").json()[0]) == 1_500_000


SLOW = {
    "unclosed text": b'"' + b'\\"' * (4 << 20) + b"," * 2_000_000,
    "member twice": b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b',"7":1}',
    "digits": b"[" + b"9" * (16 << 20) + b"]",
    "fraction": b"[0." + b"9" * (16 << 20) + b"]",
    "nesting": b"[" * (16 << 20),
}


@pytest.mark.parametrize("name", SLOW)
def test_time_of_an_answer(name):
    """No answer within the size limit takes long to read."""
    began = time.process_time()
    with suppress(RecordError):
        Answer(200, {}, SLOW[name], "http://there").json()
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "text", ["1e9999999999999999999", "1e999999", "-1E-99999", "NaN", "9" * 5000]
)
def test_odd_numbers(text):
    """A number that no field holds stands for itself, and its siblings are read."""
    good, odd = DECODER.decode(f"[1.5, {text}]")
    assert isinstance(odd, OddNumber)
    assert str(good) == "1.5"
    assert isinstance(DECODER.decode('[{"a":1,"a":2}]')[0], Unreadable)


CARRIED = [
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:1:ffff::1",
    "fec0::1",
    "feff::1",
    "2002:0a00:0001::1",
    "2002:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:127.0.0.1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "::",
]


@pytest.mark.parametrize("address", CARRIED)
def test_addresses_that_lead_inside_are_refused(address):
    """No connection is made to an IPv6 address that leads to a private one, in any notation."""
    with pytest.raises(ConfigError, match="not on the public internet"):
        Gateway([])._check("there", address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses(address):
    """Addresses of the public internet are connected to, also by way of NAT64."""
    Gateway([])._check("there", address)


def test_allowed_addresses_that_carry_others():
    """Both the address and the one inside it can be allowed."""
    Gateway(["64:ff9b:1::/48"])._check("there", "64:ff9b:1::a00:1")
    Gateway(["10.0.0.0/8"])._check("there", "::ffff:10.0.0.1")
    Gateway(["64:ff9b::/96"])._check("there", "64:ff9b::10.0.0.1")
