"""How a REST service is told who asks.

It owns the credentials; no ``repr`` and no error shows them. It knows nothing of records.
"""

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
    """Posts a form to a URL with these headers; the JSON object that comes back."""

    def __call__(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str]
    ) -> Mapping[str, Any]: ...


class Auth(ABC):
    """Who asks. Thread-safe."""

    @abstractmethod
    def headers(self, ask: Ask) -> dict[str, str]:
        """The headers that say so. May use ``ask``, and block and raise as that does."""

    @abstractmethod
    def secrets(self) -> list[str]:
        """What must be in no message."""

    def refused(self) -> bool:
        """The service did not take the last headers; whether others can be had at once."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"


class Token(Auth):
    """A token in a header.

    ``token``: the token, or what gives it, which is asked before each request, so that one that is
    exchanged while the worker runs is used at once.
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
    """User and password, or user and API token."""

    def __init__(self, user: str, password: str) -> None:
        self._password = password
        self._encoded = base64.b64encode(f"{user}:{password}".encode()).decode()

    def headers(self, ask: Ask) -> dict[str, str]:
        return {"Authorization": f"Basic {self._encoded}"}

    def secrets(self) -> list[str]:
        return [self._encoded, self._password]


class ClientCredentials(Auth):
    """OAuth 2.0 client credentials (RFC 6749, 4.4): an access token, renewed before it expires.

    ``token_url``: where it is had; the same rules hold for that host as for the service's own.
    ``scope``: what is asked for. ``leeway``: how many seconds before its end a token is renewed.
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
            known, self._token = bool(self._token), ""
            return known

    def secrets(self) -> list[str]:
        return [self._token, self._client_secret, *self._basic.secrets()]

    def _renew(self, ask: Ask) -> None:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        answer = ask(self._url, form, self._basic.headers(ask))
        token, lasts = answer.get("access_token"), answer.get("expires_in", 300)
        if not isinstance(token, str) or not token:
            raise StoreUnavailableError(
                f"{self._url} gave no access token", hint="is it the token URL of this service?"
            )
        try:
            seconds = float(lasts)
        except (TypeError, ValueError):
            seconds = 300.0
        self._token = token
        # A token that lasts no longer than the leeway is used once.
        self._until = time.monotonic() + max(0.0, seconds - self._leeway)
