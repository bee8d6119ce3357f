"""Authentication at a REST service. No ``repr`` and no error shows the credentials."""

from __future__ import annotations

import base64
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from eventsync.errors import StoreUnavailableError

__all__ = ["Auth", "Basic", "ClientCredentials", "Token"]


class Ask(Protocol):
    """A function that posts a form to a URL and returns the JSON object of the answer."""

    def __call__(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str]
    ) -> Mapping[str, Any]: ...


class Auth(ABC):
    """A method of authentication. Thread-safe."""

    @abstractmethod
    def headers(self, ask: Ask) -> dict[str, str]:
        """Return the headers that authenticate a request.

        May call ``ask`` to get an access token, and so block and raise ``StoreUnavailableError``.
        """

    @abstractmethod
    def secrets(self) -> list[str]:
        """Return the texts that no message may show."""

    def refused(self) -> bool:
        """Forget the last headers, which the service refused.

        Return whether ``headers`` can return others at once.
        """
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"


class Token(Auth):
    """A token in a header.

    ``token``: the token, or a function that returns it. The function is called before each request,
    so a token that is replaced while the worker runs is used at once.
    """

    def __init__(
        self,
        token: str | Callable[[], str],
        *,
        scheme: str = "Bearer",
        header: str = "Authorization",
    ) -> None:
        self._token = token if callable(token) else lambda: token
        self._scheme, self._header = scheme, header
        self._last = ""

    def headers(self, ask: Ask) -> dict[str, str]:
        self._last = self._token().strip()
        return {self._header: f"{self._scheme} {self._last}".strip()}

    def secrets(self) -> list[str]:
        return [self._last]


class Basic(Auth):
    """HTTP basic authentication with a password or an API token."""

    def __init__(self, user: str, password: str) -> None:
        self._password = password
        self._encoded = base64.b64encode(f"{user}:{password}".encode()).decode()

    def headers(self, ask: Ask) -> dict[str, str]:
        return {"Authorization": f"Basic {self._encoded}"}

    def secrets(self) -> list[str]:
        return [self._encoded, self._password]


class ClientCredentials(Auth):
    """OAuth 2.0 client credentials (RFC 6749, 4.4): an access token, renewed before it expires.

    ``token_url``: the token endpoint; the same address checks apply to its host as to the service.
    ``scope``: the requested scope. ``leeway``: how many seconds before it expires a token is
    renewed.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        *,
        scope: str = "",
        leeway: float = 30.0,
    ) -> None:
        self._url, self._scope, self._leeway = token_url, scope, leeway
        self._client_secret = client_secret
        self._basic = Basic(quote(client_id, safe=""), quote(client_secret, safe=""))
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0

    def headers(self, ask: Ask) -> dict[str, str]:
        with self._lock:
            if not self._token or time.monotonic() >= self._until:
                self._renew(ask)
            return {"Authorization": f"Bearer {self._token}"}

    def refused(self) -> bool:
        with self._lock:
            had_token, self._token = bool(self._token), ""
            return had_token

    def secrets(self) -> list[str]:
        return [self._token, self._client_secret, *self._basic.secrets()]

    def _renew(self, ask: Ask) -> None:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        answer = ask(self._url, form, self._basic.headers(ask))
        token, lifetime = answer.get("access_token"), answer.get("expires_in", 300)
        if not isinstance(token, str) or not token:
            raise StoreUnavailableError(
                f"{self._url}: the answer has no access_token",
                hint="check that it is the token URL of this service",
            )
        try:
            seconds = float(lifetime)
        except (TypeError, ValueError):
            seconds = 300.0
        self._token = token
        # A token with a lifetime below the leeway is used for one request only.
        self._until = time.monotonic() + max(0.0, seconds - self._leeway)
