"""The LDAP client: connections to a directory server, requests, and the mapping of errors."""

from __future__ import annotations

import math
import os
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.stores.ldap.result import error_of

try:
    import ldap3
    from ldap3.core import exceptions
    from ldap3.utils.conv import escape_filter_chars
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("the LDAP store needs ldap3", hint="pip install 'eventsync[ldap]'") from error

__all__ = ["ALREADY_EXISTS", "ASSERTION_FAILED", "NO_SUCH_OBJECT", "Directory", "Found"]

Found: TypeAlias = dict[str, list[bytes]]
"""The attributes of an entry: lists of values by name."""

NO_SUCH_OBJECT: Final = 32
ALREADY_EXISTS: Final = 68
ASSERTION_FAILED: Final = 122
_CONNECTING: Final = "connecting"
_ASSERTION: Final = "1.3.6.1.1.12"  # RFC 4528
_PAGED: Final = "1.2.840.113556.1.4.319"  # RFC 2696


class Directory:
    """A directory server. Each thread gets a connection at its first request. Thread-safe.

    Each request is idempotent. If the connection of a request turns out to be closed, the request
    is sent again over a new connection.
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
        try:
            sound = url.startswith(("ldap://", "ldaps://")) and urlsplit(url).port != 0
        except ValueError:
            sound = False  # of the port, which may be a password
        if not sound or "@" in url:
            raise ConfigError(
                "url= is not the URL of an LDAP server",
                hint="pass ldap:// or ldaps:// and a host, as in ldaps://ldap.example.org; pass "
                "the credentials as user= and password=",
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

    def entry(
        self, dn: str, attributes: Sequence[str], *, filter: str = "(objectClass=*)"
    ) -> Found | None:
        """Return these attributes of the entry ``dn``.

        Returns ``None`` if there is no such entry, or if it does not match ``filter``.
        """

        def search(connection: Any) -> Any:
            return connection.search(dn, filter, ldap3.BASE, attributes=list(attributes))

        result, entries = self._asked(search, dn, (NO_SUCH_OBJECT,))
        return None if result["result"] == NO_SUCH_OBJECT or not entries else entries[0]

    def entries(
        self,
        base: str,
        object_class: str,
        attributes: Sequence[str],
        *,
        deep: bool,
        since: tuple[str, str] | None = None,
    ) -> Iterator[Found]:
        """Yield these attributes of all entries of a class below ``base``, read page by page.

        ``deep``: at any depth; otherwise only the direct children of ``base``. ``since``: the name
        of an attribute and the least value that it must have.
        """
        filter = f"(objectClass={escape_filter_chars(object_class)})"
        if since is not None:
            filter = f"(&{filter}({since[0]}>={escape_filter_chars(since[1])}))"
        # A server keeps one position in a paged list per connection, so open a connection for this
        # list.
        connection = self._connect()
        cookie: bytes | None = None
        try:
            while True:
                with self._errors(base):
                    _, result, response, _ = connection.search(
                        base,
                        filter,
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
        """Add an entry. Return false, and change nothing, if there is an entry with this name."""
        code = self._do(lambda c: c.add(dn, classes, dict(attributes)), dn, (ALREADY_EXISTS,))
        return code != ALREADY_EXISTS

    def replace(
        self, dn: str, attributes: Mapping[str, list[bytes]], only_if: tuple[str, bytes] | None
    ) -> bool:
        """Replace all values of the given attributes of an entry, and return true.

        ``only_if``: the name of an attribute and the value that it must have now. If it has another
        value, return false and change nothing.
        """
        changes = {name: [(ldap3.MODIFY_REPLACE, values)] for name, values in attributes.items()}
        controls = [(_ASSERTION, True, _equals(*only_if))] if only_if else None
        code = self._do(lambda c: c.modify(dn, changes, controls=controls), dn, (ASSERTION_FAILED,))
        return code != ASSERTION_FAILED

    def delete(self, dn: str) -> None:
        """Remove an entry. Idempotent."""
        self._do(lambda c: c.delete(dn), dn, (NO_SUCH_OBJECT,))

    def can_assert(self) -> bool:
        """Return whether the server supports conditional changes (RFC 4528)."""
        if self._asserts is None:
            found = self.entry("", ["supportedControl"]) or {}
            self._asserts = any(_ASSERTION.encode() in controls for controls in found.values())
        return self._asserts

    def schema(self, dn: str) -> tuple[list[bytes], list[bytes]]:
        """Return the attribute types and object classes (RFC 4512) that hold at an entry.

        Both are empty if the server does not show them.
        """
        found = self.entry(dn, ["subschemaSubentry"]) or {}
        for values in found.values():
            subschema = self.entry(
                values[0].decode(),
                ["attributeTypes", "objectClasses"],
                filter="(objectClass=subschema)",
            )
            parts = {name.lower(): part for name, part in (subschema or {}).items()}
            return parts.get("attributetypes", []), parts.get("objectclasses", [])
        return [], []

    def close(self) -> None:
        """Close the connection of this thread. Idempotent. The next request opens a connection."""
        process, connection = self._local.__dict__.pop("connection", (None, None))
        if process == os.getpid():
            _close(connection)

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
                # The server closed the idle connection, or was restarted. Try again once.
                _, result, response, _ = call(self._connection()[0])
        self._check(result, dn, allow)
        return result, _entries_in(response)

    def _connection(self) -> tuple[Any, bool]:
        """Return the connection of this thread, and whether this call has opened it."""
        process, connection = self._local.__dict__.get("connection", (None, None))
        if process == os.getpid():
            return connection, False
        connection = self._connect()
        self._local.connection = os.getpid(), connection
        return connection, True

    def _connect(self) -> Any:
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=self._ca_file)
        user, password = self._bind
        with self._errors(_CONNECTING):
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
                receive_timeout=math.ceil(self._timeout),  # ldap3 accepts only whole seconds
                check_names=False,
                return_empty_attributes=False,
            )
            try:
                connection.open()
                if self._starttls:
                    connection.start_tls()
                _, result, _, _ = connection.bind()
                self._check(result, f"bind as {user}" if user else "anonymous bind", ())
            except BaseException:
                _close(connection)
                raise
        return connection

    def _check(self, result: Mapping[str, Any], dn: str, allow: tuple[int, ...]) -> None:
        code = result["result"]
        if code == 0 or code in allow:
            return
        message = f"{self.url}: {dn}: {result['description']}"
        if result.get("message"):
            message += f": {result['message']}"
        raise error_of(code, message)

    @contextmanager
    def _errors(self, dn: str) -> Iterator[None]:
        """Raise errors of eventsync in place of the errors of ldap3 in the ``with`` block.

        No error shows the password. ``dn``: what the request is about, for the error.
        """
        try:
            yield
        except (exceptions.LDAPStartTLSError, exceptions.LDAPSSLConfigurationError) as error:
            raise ConfigError(f"{self.url}: {error}", hint="check tls= and ca_file=") from error
        except (
            exceptions.LDAPCommunicationError,
            exceptions.LDAPResponseTimeoutError,
            OSError,
        ) as error:
            self.close()
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ConfigError(
                    f"{self.url}: the certificate of the server is not trusted: {error}",
                    hint="pass the authority that issued it as ca_file=",
                ) from error
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        except exceptions.LDAPException as error:
            if dn == _CONNECTING:
                # No request was made, so no record is to blame: an empty password, for example.
                raise ConfigError(
                    f"{self.url}: {error}", hint="correct url=, user= and password="
                ) from error
            raise RejectedError(f"{self.url}: {dn}: {error}") from error


def _entries_in(response: Iterable[Mapping[str, Any]] | None) -> list[Found]:
    # An item of another type is a referral to another server; leave it out.
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
        pass  # the connection is closed already
    finally:
        if socket is not None:
            socket.close()  # ldap3 leaves the socket open after an error


def _equals(name: str, value: bytes) -> bytes:
    """Return the filter ``(name=value)`` for an assertion control (RFC 4528).

    The filter is an ``equalityMatch`` in BER encoding.
    """
    inner = b"".join(b"\x04" + bytes([len(part)]) + part for part in (name.encode(), value))
    return b"\xa3" + bytes([len(inner)]) + inner
