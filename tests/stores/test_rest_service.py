"""The client of REST services: its limits, its delays, its errors and its secrets."""

from __future__ import annotations

import time

import httpcore2 as httpcore
import pytest
from servers.objects import ObjectServer

from eventsync.errors import ConfigError, RecordError, RejectedError, StoreUnavailableError
from eventsync.retry import retrying
from eventsync.stores.rest import (
    Basic,
    ClientCredentials,
    Cursor,
    Links,
    Numbers,
    OnePage,
    Service,
    Token,
)
from eventsync.stores.rest.address import Gateway
from eventsync.stores.rest.pace import Throttle, delay_asked
from eventsync.stores.rest.status import STATUSES, AccessRefusedError


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def service(server):
    made = Service(server.url, allow=["127.0.0.1"], timeout=2.0)
    yield made
    made.close()


INSIDE = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "::1",
    "fe80::1",
    "fd00:ec2::254",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "localhost",
]


@pytest.mark.parametrize("host", INSIDE)
def test_addresses_inside_are_refused(host):
    """No connection is made to a private address, however the address is written."""
    with pytest.raises(ConfigError, match="not on the public internet"):
        Gateway([]).connect_tcp(host, 9)


def test_allowed_networks(server):
    """An address in an allowed network is connected to, and one beside it is refused."""
    port = int(server.url.rsplit(":", 1)[1])
    Gateway(["127.0.0.0/30"]).connect_tcp("localhost", port).close()
    with pytest.raises(ConfigError, match=r"127\.0\.0\.4"):
        Gateway(["127.0.0.0/30"]).connect_tcp("127.0.0.4", port)
    with pytest.raises(ConfigError, match="allow"):
        Gateway(["not a network"])


def test_the_gateway_guards_every_request(server):
    """A service in a private network receives no request until its network is allowed."""
    with pytest.raises(ConfigError, match=r"allow=\['127\.0\.0\.1'\]"):
        Service(server.url).request("GET", "/things")
    assert server.requests == []


def test_proxies_of_the_environment_are_not_used(server, service, monkeypatch):
    """Requests ignore the proxy settings of the environment."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert service.request("GET", "/things").json() == []


def test_redirects_are_not_followed(server, service):
    """A redirect raises an error with its target, without the query, and is not followed."""
    server.failures.append(("status", 302, {"Location": "http://10.0.0.1/x?secret=1"}, b""))
    with pytest.raises(ConfigError, match=r"to http://10\.0\.0\.1/x") as caught:
        service.request("GET", "/things")
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_links_to_other_hosts_are_refused(server, service):
    """A next page on another host is not requested, so credentials do not go there."""
    link = {"Link": '<http://10.0.0.1/things?page=2>; rel="next"'}
    server.failures.append(("status", 200, link, []))
    with pytest.raises(ConfigError, match="another host"):
        list(Links().walk(service, "/things", {}))
    assert len(server.requests) == 1


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "compressed"])
def test_large_answers_are_refused(server, plain):
    """An answer beyond the size limit is refused, and so is a compressed one."""
    service = Service(server.url, allow=["127.0.0.1"], max_response=10_000)
    headers = {} if plain else {"Content-Encoding": "gzip"}
    server.failures.append(("status", 200, headers, b"[" + b" " * 20_000 + b"]"))
    with pytest.raises(RejectedError if plain else StoreUnavailableError):
        service.request("GET", "/things")
    assert service.request("GET", "/things").json() == []
    service.close()


def test_a_write_with_a_large_answer_may_be_done(server):
    """A write whose answer is too large raises an uncertain error, because the write was done."""
    service = Service(server.url, allow=["127.0.0.1"], max_response=100)
    with pytest.raises(StoreUnavailableError) as caught:
        service.request("PUT", "/things/1", body={"text": "x" * 200})
    assert caught.value.uncertain
    assert server.objects["things"]["1"] == {"text": "x" * 200}
    service.close()


def test_deadline(server):
    """An answer that takes longer than the deadline raises an error, even while data arrive."""
    service = Service(server.url, allow=["127.0.0.1"], timeout=0.2)
    server.failures.append(("slow", 0.5))
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        service.request("PUT", "/things/1", body={})
    assert time.monotonic() - began < 0.45
    assert caught.value.uncertain
    service.close()
    late = Service(server.url, allow=["127.0.0.1"], deadline=0.0)
    with pytest.raises(StoreUnavailableError, match="no complete answer"):
        late.request("GET", "/things")
    late.close()


MEANINGS = {
    **dict.fromkeys([400, 409, 412, 413, 414, 422, 424, 431, 451, 499], RejectedError),
    **dict.fromkeys([401, 402, 403, 404, 410], AccessRefusedError),
    **dict.fromkeys([405, 406, 407, 411, 415, 416, 417, 421, 426, 428], ConfigError),
    **dict.fromkeys([501, 505, 508, 511], ConfigError),
    **dict.fromkeys([408, 423, 425, 429, 500, 502, 503, 504, 507, 599], StoreUnavailableError),
}


@pytest.mark.parametrize("status", sorted(MEANINGS.keys() | STATUSES.keys()))
def test_meaning_of_statuses(server, service, status):
    """Only a status that blames the record is a rejection, and only access may come back."""
    error = MEANINGS[status]
    said = b"the title\x1b[31m is\nmissing " + b"x" * 5000
    server.failures.append(("status", status, {}, said))
    with pytest.raises(error, match=r"POST .*/things: \d+ the title \[31m is missing") as caught:
        service.request("POST", "/things", body={})
    assert type(caught.value) is error
    assert len(str(caught.value)) < 500
    assert caught.value.retryable == (error in (StoreUnavailableError, AccessRefusedError))
    if isinstance(caught.value, StoreUnavailableError):
        assert caught.value.uncertain == (status in (500, 502, 504))


@pytest.mark.parametrize("failure", ["drop", "lose"])
def test_lost_connections(server, service, failure):
    """A write on a connection that breaks raises an uncertain error, whether it was done or not."""
    server.failures.append((failure,))
    with pytest.raises(StoreUnavailableError) as caught:
        service.request("PUT", "/things/1", body={"a": 1})
    assert caught.value.uncertain
    assert (failure == "lose") == bool(server.objects.get("things"))


def test_refused_connection(server):
    """The error of a request that was never sent is not uncertain."""
    service = Service("http://127.0.0.1:1", allow=["127.0.0.1"])
    with pytest.raises(StoreUnavailableError) as caught:
        service.request("PUT", "/things/1", body={})
    assert not caught.value.uncertain


@pytest.mark.parametrize("status", [429, 503, 403])
def test_retry_after(server, service, status):
    """After an answer with ``Retry-After``, no request is sent before that time."""
    server.failures.append(("status", status, {"Retry-After": "0"}, b""))
    server.failures.append(("status", status, {"Retry-After": "30"}, b""))
    with pytest.raises(StoreUnavailableError) as caught:
        service.request("GET", "/things")
    assert caught.value.retry_after == 0.0
    waits = []

    def stop() -> bool:
        return len(waits) == 2

    with pytest.raises(StoreUnavailableError, match="asked for a pause"):
        retrying(
            lambda: service.request("GET", "/things"),
            budget=1e9,
            wait=waits.append,
            give_up=stop,
        )
    assert all(29 <= wait <= 30 for wait in waits)
    assert len(server.requests) == 2


def test_delays():
    """A delay is read from seconds, a date or a quota, is at most an hour, and 0 if invalid."""
    now = lambda: 1_764_000_000.0  # noqa: E731
    date = "Mon, 24 Nov 2025 16:00:30 GMT"
    assert delay_asked({"retry-after": "7"}) == 7
    assert delay_asked({"retry-after": date}, now=now) == 30
    assert delay_asked({"retry-after": "999999"}) == 3600
    quota = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1764000042"}
    assert delay_asked(quota, now=now) == 42
    assert delay_asked({**quota, "x-ratelimit-remaining": "3"}, now=now) == 0
    for text in ("", "soon", "-5", "9" * 400):
        assert 0 <= delay_asked({"retry-after": text}) <= 3600


def test_own_rate():
    """Requests beyond the rate wait, and an idle time allows one burst."""
    at, slept = [0.0], []
    pace = Throttle(10.0, 2, now=lambda: at[0], sleep=slept.append)
    for _ in range(5):
        pace.wait()
    assert slept == pytest.approx([0.1, 0.2, 0.3])
    at[0] = 100.0
    slept.clear()
    for _ in range(3):
        pace.wait()
    assert slept == pytest.approx([0.1])
    with pytest.raises(ConfigError):
        Throttle(0, 1)


def test_access_tokens(server):
    """An access token is requested once, shared, and requested again after it is revoked."""
    auth = ClientCredentials(f"{server.url}/token", "me", "very-secret")
    service = Service(server.url, allow=["127.0.0.1"], auth=auth)
    for _ in range(3):
        service.request("GET", "/things")
    assert server.tokens_given == 1
    server.token = "withdrawn"
    service.request("GET", "/things")
    assert server.tokens_given == 2
    short = ClientCredentials(f"{server.url}/token", "me", "very-secret", leeway=3600)
    eager = Service(server.url, allow=["127.0.0.1"], auth=short)
    eager.request("GET", "/things")
    eager.request("GET", "/things")
    assert server.tokens_given == 4
    service.close()
    eager.close()


def test_refused_client_credentials(server):
    """Credentials that the token endpoint refuses raise a retryable error without the secret."""
    server.failures.append(("status", 400, {}, {"error": "invalid_client", "was": "very-secret"}))
    auth = ClientCredentials(f"{server.url}/token", "me", "very-secret")
    service = Service(server.url, allow=["127.0.0.1"], auth=auth)
    with pytest.raises(AccessRefusedError, match="invalid_client") as caught:
        service.request("GET", "/things")
    assert "very-secret" not in str(caught.value)
    service.close()


def test_token_from_a_function(server):
    """A token that a function returns can be replaced while the worker runs."""
    tokens = iter(["old", "new"])
    server.token = "new"
    service = Service(server.url, allow=["127.0.0.1"], auth=Token(lambda: next(tokens)))
    with pytest.raises(AccessRefusedError):
        service.request("GET", "/things")
    service.request("GET", "/things")
    service.close()


AUTHS = [
    Token("hush-hush"),
    Token("hush-hush", scheme="", header="PRIVATE-TOKEN"),
    Basic("ann", "hush-hush"),
]


@pytest.mark.parametrize("auth", AUTHS)
def test_secrets_stay_secret(server, auth):
    """No repr and no error shows the credentials, even if the service returns them."""
    service = Service(server.url, allow=["127.0.0.1"], auth=auth)
    echo = auth.headers(lambda *_: {}).popitem()[1].split()[-1]
    server.failures.append(("status", 400, {}, {"you sent": echo, "and": "hush-hush"}))
    with pytest.raises(RejectedError, match=r"\*\*\*") as caught:
        service.request("GET", "/things")
    for text in (str(caught.value), repr(auth), repr(service)):
        assert "hush-hush" not in text
        assert echo not in text
    service.close()
    with pytest.raises(ConfigError, match="Basic") as caught:
        Service("https://ann:hush-hush@example.com/")
    assert "hush-hush" not in str(caught.value)


PAGES = [
    ("link", Links(size=7)),
    ("number", Numbers(size=7, items="data.items")),
    ("number", Numbers(size=7, items="data.items", total="total")),
    ("cursor", Cursor(size=7, items="data.items", at="next")),
    ("cursor", Numbers(size=7, items="data.items", name="cursor", start=0, offsets=True)),
]


@pytest.mark.parametrize(("paging", "pages"), PAGES)
@pytest.mark.parametrize("count", [0, 6, 7, 14, 20])
def test_pages(server, service, paging, pages, count):
    """Every way of paging returns every object once."""
    server.paging = paging
    server.objects["things"] = {f"{n:02}": {"n": n} for n in range(count)}
    found = [data["n"] for page in pages.walk(service, "/things", {}) for data in page]
    assert found == list(range(count))


def test_one_page(server, service):
    """A list without pages is requested once, without paging parameters."""
    server.objects["things"] = {"1": {"n": 1}}
    assert list(OnePage().walk(service, "/things", {})) == [[{"n": 1}]]
    assert server.requests == [("GET", "/things")]


@pytest.mark.parametrize(
    "answer", [{"message": "hello"}, [1, 2], b"<html>", {"data": None}, b"", b'{"a":1,"a":2}']
)
def test_answers_without_a_list(server, service, answer):
    """An answer without a list raises an error and never counts as an empty list."""
    server.failures.append(("status", 200, {}, answer))
    with pytest.raises(RecordError):
        list(Links().walk(service, "/things", {}))


def test_pages_in_a_circle(server, service):
    """A next page that was read before raises an error instead of an endless loop."""
    for _ in range(3):
        link = {"Link": f'<{server.url}/things>; rel="next"'}
        server.failures.append(("status", 200, link, []))
    with pytest.raises(RecordError, match="circles"):
        list(Links().walk(service, "/things", {}))


def test_client_errors_have_counterparts():
    """Every error of the HTTP library is mapped to an error of eventsync."""
    from eventsync.stores.rest.service import _FAILED

    ours = {httpcore.ConnectionNotAvailable, httpcore.UnsupportedProtocol, httpcore.ProxyError}
    found = [
        item
        for item in vars(httpcore).values()
        if isinstance(item, type) and issubclass(item, Exception)
    ]
    assert len(found) > 10
    for error in found:
        assert error in ours or issubclass(error, _FAILED), error
