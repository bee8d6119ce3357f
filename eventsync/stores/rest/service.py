"""The HTTP client: requests that are bounded in time and size, and the errors of their answers."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, ClassVar, Final
from urllib.parse import urljoin, urlsplit

from eventsync.engine.webhook import StandardWebhook, Webhook
from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
    UniqueError,
    shown,
)
from eventsync.stores.json_values import dump
from eventsync.stores.rest.address import Gateway
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.auth import Auth, ClientCredentials
from eventsync.stores.rest.multipart import Upload
from eventsync.stores.rest.pace import Throttle, delay_asked
from eventsync.stores.rest.status import (
    AccessRefusedError,
    Meaning,
    MovedError,
    meaning_of,
    names_uniqueness,
)
from eventsync.stores.rest.transport import GuardedTransport

try:
    import httpcore2 as httpcore
    import httpx2 as httpx
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpx2", hint="pip install 'eventsync[rest]'") from error

__all__ = ["OF_ONE_WRITE", "Service"]

_SAFE: Final = frozenset({"GET", "HEAD"})
_SHOWN: Final = 300
_UNSENT: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
_FAILED: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpx.TransportError,
)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_UNIQUE: Final = "a held change is retried when the other object has changed or is removed"
_OF_ONE: Final = _REDIRECTS | {400, 404, 410, 413, 414, 422, 431, 451}
"""The statuses of a read of one object that concern this object alone."""
OF_ONE_WRITE: Final = _REDIRECTS | {404, 410}
"""The statuses of a write of one object that may concern this object alone."""
_MAY_BE_DONE: Final = frozenset({500, 502, 504})


class Service:
    """One REST service, shared by the accessors that use it. Thread-safe, and safe to fork.

    ``url``: the base of all paths. ``auth``: the authentication. ``headers``: sent with every
    request. ``timeout``: in seconds, for connecting and for each wait for data. ``deadline``: in
    seconds, for a whole answer. ``connections``: how many stay open. ``rate``: the maximum number
    of requests per second from this process, of which ``burst`` may go at once. ``max_response``:
    the maximum size of an answer in bytes; the read of a larger one is broken off. ``allow``:
    networks beside the public internet that may be connected to; a service in your own network
    must be listed. ``ca_file``: the certificates to trust instead of those of the system.

    Requests go only to the host of ``url`` and to the host of the token endpoint. Redirects are not
    followed, cookies are not kept, and proxy settings of the environment are ignored. A subclass
    for a service with error answers of its own overrides ``meaning``.
    """

    forbidden_hint: ClassVar[str] = (
        "correct the credentials (auth=) or their rights; the work waits"
    )
    """The hint of the error for an answer that refuses the credentials."""

    webhook: ClassVar[Webhook] = StandardWebhook()
    """What checks and reads the webhooks of the service."""

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
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False  # of the port, which may be a part of a password
        if not sound:
            raise ConfigError(
                "the URL of a REST service must begin with http:// or https:// and name a host"
            )
        if parts.username or parts.password:
            raise ConfigError(
                f"the URL of {parts.hostname} contains credentials",
                hint="remove them and pass auth=Basic(...)",
            )
        if parts.query or parts.fragment:
            raise ConfigError(
                f"the URL of {parts.hostname} has a query or a fragment",
                hint="remove it: the URL is the base of all paths",
            )
        self.url = url.rstrip("/")
        self._origin = _origin(self.url)
        self._auth = auth
        self._headers = {"Accept": "application/json", "User-Agent": "eventsync", **(headers or {})}
        # A small compressed answer may expand beyond max_response, so compression is declined.
        self._headers["Accept-Encoding"] = "identity"
        self._timeout, self._deadline = timeout, deadline
        self._connections = connections
        self._max_response = max_response
        self._gateway = Gateway(allow)
        self._until = self._gateway.deadline
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        self.pace = Throttle(rate, burst)
        self._lock = threading.Lock()
        self._opened: tuple[int, httpx.Client] | None = None  # with the process that opened it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def close(self) -> None:
        """Close the connections. Idempotent; the next request opens new ones."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

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
        """Send a request and return its answer.

        ``path``: below the URL of the service, or a whole URL of the same host. ``body``: JSON,
        or an ``Upload``.
        ``allow``: statuses to return although they mean failure. Blocks for at most ``deadline``
        seconds, and before that as long as the rate limit requires.

        Raises ``StoreUnavailableError`` if the request may succeed later, ``RejectedError`` if the
        service refuses this record, and ``ConfigError`` if the configuration must change; the last
        is an ``AccessRefusedError``, which is retryable, for credentials, rights and paths.
        """
        url = self._address(path)
        sent = dict(headers or {})
        content = None
        if isinstance(body, Upload):
            content, sent["Content-Type"] = body
        elif body is not None:
            content = dump(body).encode()
            sent.setdefault("Content-Type", "application/json")
        for again in (True, False):
            credentials = self._auth.headers(self._token) if self._auth else {}
            answer = self._send(method, url, {**sent, **credentials}, content, query)
            if answer.status == 401 and again and self._auth and self._auth.refused():
                continue  # a service may revoke an access token before it expires
            break
        if answer.status < 300 or answer.status in frozenset(allow):
            return answer
        raise self.meaning(method, answer)

    def meaning(self, method: str, answer: Answer) -> EventSyncError:
        """Return the error for an answer without success."""
        status = answer.status
        message = f"{method} {_shown_url(answer.url)}: {status} {self._message(answer)}".strip()
        delay = delay_asked(answer.headers)
        meaning = meaning_of(status)
        paused = status == 403 and (delay or "retry-after" in answer.headers)
        if meaning is Meaning.RETRYABLE or paused:
            self.pace.hold(delay)
            return StoreUnavailableError(
                message,
                retry_after=delay,
                uncertain=method not in _SAFE and status in _MAY_BE_DONE,
            )
        if meaning is Meaning.REFUSED:
            missing = status in (404, 410)
            hint = "correct the path, or the rights to see it" if missing else self.forbidden_hint
            return AccessRefusedError(message, hint=hint)
        if meaning is Meaning.REJECTED:
            if names_uniqueness(status, message):
                return UniqueError(message, hint=_UNIQUE)
            return RejectedError(message)
        if status < 400:
            return ConfigError(message, hint="redirects are not followed; pass the final URL")
        return ConfigError(message, hint="correct the description in Resource(...)")

    def read_one(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer | None:
        """Return the answer to the read of one object, or ``None`` if there is no such object.

        Raises ``RecordError`` for a refusal that concerns this object alone: a status that rejects,
        or, as ``MovedError``, a redirect to an object elsewhere. Otherwise raises as ``request``
        does.
        """
        answer = self.request("GET", path, query=query, headers=headers, allow=_OF_ONE)
        if answer.status in (404, 410):
            return None
        if answer.status < 300:
            return answer
        if not self.has_moved(answer):
            refusal = self.meaning("GET", answer)
            hint = "only this object is affected; it may have moved, or may not be shown"
            if answer.status in _REDIRECTS:
                to = answer.headers.get("location", "")
                raise MovedError(refusal.message, to=to, hint=hint)
            raise RecordError(refusal.message, hint=hint)
        raise self.meaning("GET", answer)

    def has_moved(self, answer: Answer) -> bool:
        """Return whether a redirect leads to the same path elsewhere: the whole service moved."""
        if not 300 <= answer.status < 400:
            return False
        try:
            there = urlsplit(urljoin(answer.url, answer.headers.get("location", "")))
        except ValueError:
            return False  # no URL
        here = urlsplit(answer.url)
        return there.path == here.path and there.netloc + there.scheme != here.netloc + here.scheme

    def _message(self, answer: Answer) -> str:
        """Return the message in an answer: short, on one line, without our secrets."""
        text = answer.content[: 4 * _SHOWN].decode("utf-8", "replace")
        if answer.status < 400:
            text = f"to {_shown_url(answer.headers.get('location', ''))}"
        return self._hide(" ".join(_printable(text).split()))

    def _hide(self, text: str) -> str:
        for secret in self._auth.secrets() if self._auth else ():
            if secret:
                text = text.replace(secret, "***")
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def _address(self, path: str) -> str:
        if path.startswith(("http://", "https://")):
            # A link in an answer of the service, for example to the next page.
            try:
                origin = _origin(path)
            except ValueError as error:
                raise RecordError(
                    f"{self.url} refers to an invalid URL: {_shown_url(shown(path))}: {error}"
                ) from None
            if origin != self._origin:
                raise ConfigError(
                    f"{self.url} refers to another host: {_shown_url(path)}",
                    hint="requests go to the configured host only; if the service is at the other "
                    "host, pass that URL",
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
            raise AccessRefusedError(error.message, hint=self.forbidden_hint)
        found = answer.json()
        if not isinstance(found, dict):
            raise StoreUnavailableError(
                f"{_shown_url(url)}: the answer is not a JSON object with an access token",
                hint="check that it is the token URL of this service",
            )
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
        delay = self.pace.held()
        if delay:
            raise StoreUnavailableError(
                f"{self.url} asked for a pause, which lasts another {delay:.0f} s",
                retry_after=delay,
            )
        self.pace.wait()
        unsafe = method not in _SAFE and form is None
        what = f"{method} {_shown_url(url)}"
        try:
            self._until.begin(self._deadline)
            with self._client().stream(
                method,
                url,
                headers=dict(headers),
                content=content,
                params=dict(query) if query else None,
                data=dict(form) if form is not None else None,
                timeout=min(self._timeout, self._deadline),
            ) as answer:
                names = {name.lower(): value for name, value in answer.headers.items()}
                body = self._received(answer, url, unsafe)
                return Answer(answer.status_code, names, body, url)
        except _FAILED as error:
            cause = self._hide(str(error) or type(error).__name__)
            if "CERTIFICATE_VERIFY_FAILED" in cause:
                raise ConfigError(
                    f"{what}: the certificate is not trusted: {cause}",
                    hint="pass the authority that issued it as ca_file=",
                ) from None
            if self._until.passed:
                cause = f"no complete answer within {self._deadline:g} s"
            unsure = unsafe and not isinstance(error, _UNSENT)
            raise StoreUnavailableError(f"{what}: {cause}", uncertain=unsure) from None
        except (httpx.InvalidURL, UnicodeError) as error:
            # A link, a cursor or an id in an answer of the service, or a key of a record.
            raise RecordError(
                f"{self._hide(_printable(what))}: this URL cannot be requested: "
                f"{self._hide(_printable(str(error)))}",
                hint="correct the object or the list at the service that has it",
            ) from None

    def _received(self, answer: httpx.Response, url: str, unsafe: bool) -> bytes:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise StoreUnavailableError(
                f"{_shown_url(url)}: the answer is compressed, although the request declined that",
                uncertain=unsafe,
            )
        body = bytearray()  # the service decides how small the parts are
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) > self._max_response:
                message = f"{_shown_url(url)}: the answer has more than {self._max_response} bytes"
                hint = "request smaller pages, or raise max_response"
                if unsafe:
                    # The size of the answer does not undo the write.
                    raise StoreUnavailableError(message, hint=hint, uncertain=True)
                raise RejectedError(message, hint=hint)
            if self._until.passed:
                raise httpcore.ReadTimeout("the deadline of the request has passed")
        return bytes(body)

    def _client(self) -> httpx.Client:
        with self._lock:
            # A connection that was opened before a fork belongs to the parent process.
            if self._opened is None or self._opened[0] != os.getpid():
                client = httpx.Client(
                    transport=GuardedTransport(self._gateway, self._connections, self._context()),
                    headers=self._headers,
                    timeout=self._timeout,
                    # What a service sets would be sent with each request, and grow without end.
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                    follow_redirects=False,
                    trust_env=False,
                )
                self._opened = os.getpid(), client
            return self._opened[1]

    def _context(self) -> ssl.SSLContext | None:
        """Return the certificates to trust, or ``None`` if no request uses TLS.

        Reading the certificates is slow, so it happens only if they are needed.
        """
        if self._origin[0] == "http" and not isinstance(self._auth, ClientCredentials):
            return None
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            raise ConfigError(f"ca_file={self._ca_file!r}: {error}") from error


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _shown_url(url: str) -> str:
    """Return a URL without its query, which may contain secrets."""
    return url.partition("?")[0].partition("#")[0]
