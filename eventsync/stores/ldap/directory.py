"""The directory server: this process's connections to it, its answers, and its errors as ours.

It knows nothing of records.
"""

from __future__ import annotations

import math
import os
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError

try:
    import ldap3
    from ldap3.core import exceptions
    from ldap3.utils.conv import escape_filter_chars
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("the LDAP store needs ldap3", hint="pip install 'eventsync[ldap]'") from error

__all__ = ["ALREADY_EXISTS", "ASSERTION_FAILED", "NO_SUCH_OBJECT", "Directory", "Found"]

Found: TypeAlias = dict[str, list[bytes]]
"""The attributes of an entry."""

NO_SUCH_OBJECT: Final = 32
ALREADY_EXISTS: Final = 68
ASSERTION_FAILED: Final = 122
_REFERRAL: Final = 10
# operationsError, timeLimitExceeded, adminLimitExceeded, busy, unavailable. Not "other" (80), which
# servers also answer to a name that is too long for them: such a record would stop all others.
_LATER: Final = frozenset({1, 3, 11, 51, 52})
# strongerAuthRequired, confidentialityRequired, and the ones about credentials and access.
_FORBIDDEN: Final = frozenset({7, 8, 13, 48, 49, 50})
_ASSERTION: Final = "1.3.6.1.1.12"  # RFC 4528
_PAGED: Final = "1.2.840.113556.1.4.319"  # RFC 2696


class Directory:
    """A server that is connected to on first use, once for each thread. Thread-safe.

    All requests may be made twice without harm: one that meets a closed connection is.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None,
        password: str | None,
        starttls: bool,
        ca_file: str | None,
        referrals: bool,
        timeout: float,
        page: int,
    ) -> None:
        if not url.startswith(("ldap://", "ldaps://")) or "@" in url:
            raise ConfigError(
                "not a URL of an LDAP server", hint="as in ldaps://ldap.example.org; the user apart"
            )
        self.url = url
        self._bind = user, password
        self._starttls = starttls
        self._ca_file = ca_file
        self._referrals = referrals
        self._timeout = timeout
        self._page = page
        self._local = threading.local()
        self._asserts: bool | None = None

    def __repr__(self) -> str:
        return f"Directory({self.url!r})"

    def entry(self, dn: str, attributes: Sequence[str]) -> Found | None:
        """The entry of that name, ``None`` if there is none."""

        def search(connection: Any) -> Any:
            return connection.search(dn, "(objectClass=*)", ldap3.BASE, attributes=list(attributes))

        result, entries = self._asked(search, dn, (NO_SUCH_OBJECT,))
        return None if result["result"] == NO_SUCH_OBJECT or not entries else entries[0]

    def entries(
        self, base: str, object_class: str, attributes: Sequence[str], *, deep: bool
    ) -> Iterator[Found]:
        """All entries of that class below ``base``, page by page; at any depth if ``deep``."""
        # On a connection of its own, for a server keeps one place in a list for each.
        connection = self._connected()
        cookie: bytes | None = None
        try:
            while True:
                with self._errors(base):
                    _, result, response, _ = connection.search(
                        base,
                        f"(objectClass={escape_filter_chars(object_class)})",
                        ldap3.SUBTREE if deep else ldap3.LEVEL,
                        attributes=list(attributes),
                        paged_size=self._page,
                        paged_cookie=cookie,
                    )
                self._check(result, base, ())
                yield from _entries_in(response)
                answer = result.get("controls", {}).get(_PAGED)
                cookie = answer["value"]["cookie"] if answer else None
                if not cookie:
                    return
        finally:
            _close(connection)

    def add(self, dn: str, classes: list[str], attributes: Mapping[str, list[bytes]]) -> bool:
        """Add an entry; whether there was none of that name."""
        code = self._do(lambda c: c.add(dn, classes, dict(attributes)), dn, (ALREADY_EXISTS,))
        return code != ALREADY_EXISTS

    def replace(
        self, dn: str, attributes: Mapping[str, list[bytes]], only_if: tuple[str, bytes] | None
    ) -> bool:
        """Put values in place of an entry's; whether ``only_if``, an attribute's value, held."""
        changes = {name: [(ldap3.MODIFY_REPLACE, values)] for name, values in attributes.items()}
        controls = [(_ASSERTION, True, _equals(*only_if))] if only_if else None
        code = self._do(lambda c: c.modify(dn, changes, controls=controls), dn, (ASSERTION_FAILED,))
        return code != ASSERTION_FAILED

    def delete(self, dn: str) -> None:
        """Remove an entry. Idempotent."""
        self._do(lambda c: c.delete(dn), dn, (NO_SUCH_OBJECT,))

    def can_assert(self) -> bool:
        """Whether a change can be made to depend on the entry being as it was read."""
        if self._asserts is None:
            found = self.entry("", ["supportedControl"]) or {}
            self._asserts = _ASSERTION.encode() in found.get("supportedControl", [])
        return self._asserts

    def close(self) -> None:
        """Let go of this thread's connection. Idempotent; it is made again when used again."""
        held = self._local.__dict__.pop("connection", None)
        if held is not None and held[0] == os.getpid():
            _close(held[1])

    # -- inside ------------------------------------------------------------------------------------

    def _do(self, call: Callable[[Any], Any], dn: str, allow: tuple[int, ...]) -> int:
        return int(self._asked(call, dn, allow)[0]["result"])

    def _asked(
        self, call: Callable[[Any], Any], dn: str, allow: tuple[int, ...]
    ) -> tuple[dict[str, Any], list[Found]]:
        with self._errors(dn):
            connection, fresh = self._connection()
            try:
                _, result, response, _ = call(connection)
            except exceptions.LDAPCommunicationError:
                self.close()
                if fresh:
                    raise
                # The server had closed a connection that was idle, or was started anew.
                _, result, response, _ = call(self._connection()[0])
        self._check(result, dn, allow)
        return result, _entries_in(response)

    def _connection(self) -> tuple[Any, bool]:
        """This thread's connection, and whether it was made just now."""
        held = self._local.__dict__.get("connection")
        if held is not None and held[0] == os.getpid():
            return held[1], False
        made = self._connected()
        self._local.connection = os.getpid(), made
        return made, True

    def _connected(self) -> Any:
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=self._ca_file)
        user, password = self._bind
        with self._errors("connecting"):
            server = ldap3.Server(
                self.url, get_info=ldap3.NONE, connect_timeout=self._timeout, tls=tls
            )
            connection = ldap3.Connection(
                server,
                user,
                password,
                authentication=ldap3.SIMPLE if user else ldap3.ANONYMOUS,
                client_strategy=ldap3.SAFE_SYNC,
                auto_referrals=self._referrals,
                receive_timeout=math.ceil(self._timeout),  # it takes whole seconds
                check_names=False,
                return_empty_attributes=False,
            )
            try:
                connection.open()
                if self._starttls:
                    connection.start_tls()
                _, result, _, _ = connection.bind()
                self._check(result, f"as {user}" if user else "as nobody", ())
            except BaseException:
                _close(connection)
                raise
        return connection

    def _check(self, result: Mapping[str, Any], dn: str, allow: tuple[int, ...]) -> None:
        code = result["result"]
        if code == 0 or code in allow:
            return
        told = f"{self.url}: {dn}: {result['description']}"
        if result.get("message"):
            told += f": {result['message']}"
        if code in _LATER:
            raise StoreUnavailableError(told)
        if code in _FORBIDDEN:
            raise ConfigError(told, hint="correct user and password, or the user's access rights")
        if code == _REFERRAL:
            raise ConfigError(
                told, hint="name the server that holds these entries, or pass referrals=True"
            )
        raise RejectedError(told)

    @contextmanager
    def _errors(self, dn: str) -> Iterator[None]:
        """Turn the errors of ldap3 into eventsync's. None of them tells the password."""
        try:
            yield
        except (exceptions.LDAPStartTLSError, exceptions.LDAPSSLConfigurationError) as error:
            raise ConfigError(f"{self.url}: {error}", hint="see tls= and ca_file=") from error
        except (
            exceptions.LDAPCommunicationError,
            exceptions.LDAPResponseTimeoutError,
            OSError,
        ) as error:
            self.close()
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        except exceptions.LDAPException as error:
            raise RejectedError(f"{self.url}: {dn}: {error}") from error


def _entries_in(response: Iterable[Mapping[str, Any]] | None) -> list[Found]:
    # What is no entry is a referral to another server.
    return [
        {name: list(values) for name, values in entry["raw_attributes"].items()}
        for entry in response or ()
        if entry["type"] == "searchResEntry"
    ]


def _close(connection: Any) -> None:
    socket = connection.socket
    try:
        connection.unbind()
    except (exceptions.LDAPException, OSError):
        pass  # it is gone already, which is all that is wanted
    finally:
        if socket is not None:
            socket.close()  # which ldap3 forgets after an error


def _equals(name: str, value: bytes) -> bytes:
    """The filter ``(name=value)`` as an assertion control holds it: BER of an ``equalityMatch``."""
    inner = b"".join(b"\x04" + bytes([len(part)]) + part for part in (name.encode(), value))
    return b"\xa3" + bytes([len(inner)]) + inner
