"""A REST service: requests that are bounded in time and size, and what its answers mean.

It owns the HTTP client and the mapping of failures. It knows nothing of records.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.stores.json_values import DECODER, dump
from eventsync.stores.rest.address import Gateway
from eventsync.stores.rest.auth import Auth, ClientCredentials
from eventsync.stores.rest.pace import Throttle, delay_asked

try:
    import httpcore
    import httpx
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpx", hint="pip install 'eventsync[rest]'") from error

__all__ = ["Answer", "Service"]

_SAFE: Final = frozenset({"GET", "HEAD"})
_SHOWN: Final = 300
_UNSENT: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
_FAILED: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpx.TransportError,
)
_CONFIGURATION: Final = frozenset({405, 406, 407, 415, 501, 505})
_TRY_LATER: Final = frozenset({408, 425, 429})
_MAY_BE_DONE: Final = frozenset({500, 502, 504})


@dataclass(slots=True, frozen=True)
class Answer:
    """What came back: the status, the headers by lower-case name, and the body."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    def json(self) -> Any:
        """The body as JSON; numbers with a point are decimals. Raises ``RecordError``."""
        try:
            return DECODER.decode(self.content.decode("utf-8-sig").strip(" \t\r\n"))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{self.url}: the answer is not JSON: {error}") from error

    @property
    def etag(self) -> str | None:
        """The strong validator of what came back (RFC 9110), ``None`` if there is none."""
        tag = self.headers.get("etag", "")
        return None if not tag or tag.startswith("W/") else tag


class Service:
    """One REST service, shared by the accessors that use it. Thread-safe, and safe to fork.

    ``url``: the base of all paths. ``auth``: who asks. ``headers``: sent with every request.
    ``timeout``: of connecting and of each wait for data; ``deadline``: of a whole answer; both in
    seconds. ``connections``: how many are kept. ``rate``: requests a second from this process, at
    most, up to ``burst`` of them at once. ``max_response``: bytes of an answer; what is larger is
    refused before it is all here. ``allow``: networks beside the public internet that may be
    connected to (a service in the own network has to be named). ``ca_file``: certificates to trust
    instead of the system's.

    Requests go to the host of ``url`` (and that of the token) only, redirects are not followed,
    proxies of the environment not used. A kind of service that answers in a way of its own
    overrides ``meaning``.
    """

    forbidden_hint: ClassVar[str] = "correct the credentials or their rights; the work waits"

    def __init__(
        self,
        url: str,
        *,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        deadline: float = 60.0,
        connections: int = 10,
        rate: float | None = None,
        burst: int = 1,
        max_response: int = 16 << 20,
        allow: Iterable[str] = (),
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("a REST service needs a URL with http:// or https:// and a host")
        if parts.username or parts.password:
            raise ConfigError(
                f"the URL of {parts.hostname} holds credentials", hint="pass auth=Basic(...)"
            )
        if parts.query or parts.fragment:
            raise ConfigError(f"the URL of {parts.hostname} has a query or a fragment")
        self.url = url.rstrip("/")
        self._origin = _origin(self.url)
        self._auth = auth
        self._headers = {"Accept": "application/json", "User-Agent": "eventsync", **(headers or {})}
        # What is compressed may be of any size once it is not.
        self._headers["Accept-Encoding"] = "identity"
        self._timeout, self._deadline = timeout, deadline
        self._connections = connections
        self._max_response = max_response
        self._gateway = Gateway(allow)
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        self.pace = Throttle(rate, burst)
        self._lock = threading.Lock()
        self._held: tuple[int, httpx.Client] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def close(self) -> None:
        """Let go of the connections. Idempotent; they are made again when needed."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None and held[0] == os.getpid():
            held[1].close()

    # -- requests ----------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        allow: Iterable[int] = (),
    ) -> Answer:
        """Send one request; its answer, if that is a success or its status one of ``allow``.

        ``path``: below the service's URL, or a whole URL of the same host. ``body``: JSON. Blocks,
        for ``deadline`` seconds at most, and for its turn under the rate. Raises
        ``StoreUnavailableError`` for what may work later (credentials that are not taken among it,
        since no record is to blame), ``RejectedError`` for what the service refuses about this
        record, ``ConfigError`` for what cannot be right.
        """
        url = self._address(path)
        sent = dict(headers or {})
        content = None
        if body is not None:
            content = dump(body).encode()
            sent.setdefault("Content-Type", "application/json")
        for again in (True, False):
            mine = self._auth.headers(self._token) if self._auth else {}
            answer = self._send(method, url, {**sent, **mine}, content, query)
            if answer.status == 401 and again and self._auth and self._auth.refused():
                continue  # an access token may be withdrawn before its time
            break
        if answer.status < 300 or answer.status in frozenset(allow):
            return answer
        raise self.meaning(method, answer)

    def meaning(self, method: str, answer: Answer) -> EventSyncError:
        """The error that an answer without success means."""
        status = answer.status
        told = f"{method} {_shown_url(answer.url)}: {status} {self._message(answer)}".strip()
        delay = delay_asked(answer.headers)
        later = status in _TRY_LATER or (status == 403 and delay) or status >= 500
        if later and status not in _CONFIGURATION:
            self.pace.hold(delay)
            return StoreUnavailableError(
                told,
                retry_after=delay,
                uncertain=method not in _SAFE and status in _MAY_BE_DONE,
            )
        if status in (401, 403):
            return StoreUnavailableError(told, hint=self.forbidden_hint)
        if status in (404, 410):
            return StoreUnavailableError(told, hint="correct the path, or the rights to see it")
        if status < 400:
            return ConfigError(told, hint="redirects are not followed: name the final URL")
        if status in _CONFIGURATION:
            return ConfigError(told, hint="correct the description of the resource")
        return RejectedError(told)

    def _message(self, answer: Answer) -> str:
        """What the service says of a failure: short, in one line, without our secrets."""
        text = answer.content[: 4 * _SHOWN].decode("utf-8", "replace")
        if answer.status < 400:
            text = f"to {_shown_url(answer.headers.get('location', ''))}"
        return self._hide(" ".join("".join(c if c.isprintable() else " " for c in text).split()))

    def _hide(self, text: str) -> str:
        for secret in self._auth.secrets() if self._auth else ():
            if secret:
                text = text.replace(secret, "***")
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def _address(self, path: str) -> str:
        if path.startswith(("http://", "https://")):
            # A link of the service's own, as to the next page.
            if _origin(path) != self._origin:
                raise ConfigError(
                    f"{self.url} refers to another host: {_shown_url(path)}",
                    hint="only the configured host is asked",
                )
            return path
        return f"{self.url}/{path.lstrip('/')}" if path else self.url

    def _token(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str]
    ) -> Mapping[str, Any]:
        answer = self._send("POST", url, headers, None, None, form=form)
        if answer.status >= 300:
            error = self.meaning("POST", answer)
            if isinstance(error, StoreUnavailableError):
                raise error
            raise StoreUnavailableError(error.message, hint=self.forbidden_hint)
        found = answer.json()
        if not isinstance(found, dict):
            raise StoreUnavailableError(f"{_shown_url(url)}: the answer holds no token")
        return found

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        query: Mapping[str, str] | None,
        *,
        form: Mapping[str, str] | None = None,
    ) -> Answer:
        held = self.pace.held()
        if held:
            raise StoreUnavailableError(
                f"{self.url} asks to be left alone for {held:.0f} s more", retry_after=held
            )
        self.pace.wait()
        unsafe = method not in _SAFE and form is None
        until = time.monotonic() + self._deadline
        try:
            with self._client().stream(
                method,
                url,
                headers=dict(headers),
                content=content,
                params=dict(query) if query else None,
                data=dict(form) if form is not None else None,
            ) as answer:
                names = {name.lower(): value for name, value in answer.headers.items()}
                body = b"".join(self._received(answer, url, until, unsafe))
                return Answer(answer.status_code, names, body, url)
        except _FAILED as error:
            what = self._hide(str(error) or type(error).__name__)
            raise StoreUnavailableError(
                f"{method} {_shown_url(url)}: {what}",
                uncertain=unsafe and not isinstance(error, _UNSENT),
            ) from None

    def _received(
        self, answer: httpx.Response, url: str, until: float, unsafe: bool
    ) -> Iterator[bytes]:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise StoreUnavailableError(
                f"{_shown_url(url)}: the answer is compressed though that was declined",
                uncertain=unsafe,
            )
        size = 0
        for chunk in answer.iter_raw():
            size += len(chunk)
            if size > self._max_response:
                told = f"{_shown_url(url)}: an answer of more than {self._max_response} bytes"
                hint = "ask for smaller pages, or raise max_response"
                if unsafe:
                    # The write was made, whatever it was answered with.
                    raise StoreUnavailableError(told, hint=hint, uncertain=True)
                raise RejectedError(told, hint=hint)
            if time.monotonic() > until:
                raise StoreUnavailableError(
                    f"{_shown_url(url)}: no whole answer within {self._deadline:g} s",
                    uncertain=unsafe,
                )
            yield chunk

    def _client(self) -> httpx.Client:
        with self._lock:
            # Never a connection from before a fork.
            if self._held is None or self._held[0] != os.getpid():
                client = httpx.Client(
                    transport=_Transport(self._gateway, self._connections, self._context()),
                    headers=self._headers,
                    timeout=self._timeout,
                    follow_redirects=False,
                    trust_env=False,
                )
                self._held = os.getpid(), client
            return self._held[1]

    def _context(self) -> ssl.SSLContext | None:
        """The certificates to trust; reading them takes a while, so not where none are needed."""
        if self._origin[0] == "http" and not isinstance(self._auth, ClientCredentials):
            return None
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            raise ConfigError(f"ca_file={self._ca_file!r}: {error}") from error


class _Transport(httpx.BaseTransport):
    """httpx on a pool of connections that all go through the gateway."""

    def __init__(self, gateway: Gateway, connections: int, context: ssl.SSLContext | None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=connections,
            keepalive_expiry=15.0,
            network_backend=gateway,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        asked = httpcore.Request(
            request.method,
            url,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        answer = self._pool.handle_request(asked)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _shown_url(url: str) -> str:
    """A URL without its query, which may hold what no log should."""
    return url.partition("?")[0].partition("#")[0]
