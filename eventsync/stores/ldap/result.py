"""The meaning of LDAP result codes (RFC 4511, appendix A; RFC 3909; RFC 4370; RFC 4528)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from eventsync.errors import (
    ConfigError,
    DependencyError,
    EventSyncError,
    RejectedError,
    StoreUnavailableError,
    UniqueError,
)

__all__ = ["RESULTS", "Meaning", "error_of"]


class Meaning(Enum):
    """What a result code says about a request."""

    RETRYABLE = "the same request may succeed later"
    REJECTED = "the directory refuses this record"
    DEPENDENCY = "another entry must be added or removed first"
    UNIQUE = "another entry has a value that must be unique"
    CONFIGURATION = "no record can be read or written until the configuration changes"


_CREDENTIALS: Final = "correct user= and password=, or the access rights of the user"
_TLS: Final = 'pass user= and password=, and tls="starttls" or an ldaps:// URL'
_VIEW: Final = "correct the names of attributes in the view (rename=)"
_UNIQUE: Final = "a held change is retried when the other entry has changed or is removed"
_SERVER: Final = "pass the URL of the server that holds these entries, or referrals=True"

RESULTS: Final[Mapping[int, tuple[Meaning, str]]] = {
    1: (Meaning.RETRYABLE, ""),  # operationsError
    2: (Meaning.CONFIGURATION, "check that url= is an LDAP version 3 server"),  # protocolError
    3: (Meaning.RETRYABLE, ""),  # timeLimitExceeded
    # sizeLimitExceeded: a list that breaks off must not look like a whole one.
    4: (Meaning.CONFIGURATION, "pass a smaller page=, or raise the user's size limit"),
    7: (Meaning.CONFIGURATION, _CREDENTIALS),  # authMethodNotSupported
    8: (Meaning.CONFIGURATION, _TLS),  # strongerAuthRequired
    10: (Meaning.CONFIGURATION, _SERVER),  # referral
    11: (Meaning.RETRYABLE, ""),  # adminLimitExceeded
    12: (Meaning.CONFIGURATION, "use a server with paged results"),  # unavailableCriticalExtension
    13: (Meaning.CONFIGURATION, _TLS),  # confidentialityRequired
    14: (Meaning.CONFIGURATION, _CREDENTIALS),  # saslBindInProgress
    16: (Meaning.REJECTED, ""),  # noSuchAttribute
    # undefinedAttributeType: the view names the attributes, so all records have this failure.
    17: (Meaning.CONFIGURATION, _VIEW),
    18: (Meaning.REJECTED, ""),  # inappropriateMatching
    19: (Meaning.REJECTED, ""),  # constraintViolation
    20: (Meaning.REJECTED, ""),  # attributeOrValueExists
    21: (Meaning.REJECTED, ""),  # invalidAttributeSyntax
    32: (Meaning.REJECTED, ""),  # noSuchObject
    33: (Meaning.REJECTED, ""),  # aliasProblem
    34: (Meaning.REJECTED, ""),  # invalidDNSyntax
    36: (Meaning.REJECTED, ""),  # aliasDereferencingProblem
    48: (Meaning.CONFIGURATION, _CREDENTIALS),  # inappropriateAuthentication
    49: (Meaning.CONFIGURATION, _CREDENTIALS),  # invalidCredentials
    50: (Meaning.CONFIGURATION, _CREDENTIALS),  # insufficientAccessRights
    51: (Meaning.RETRYABLE, ""),  # busy
    52: (Meaning.RETRYABLE, ""),  # unavailable
    53: (Meaning.REJECTED, ""),  # unwillingToPerform; see _READ_ONLY
    54: (Meaning.REJECTED, ""),  # loopDetect
    64: (Meaning.REJECTED, ""),  # namingViolation
    65: (Meaning.REJECTED, ""),  # objectClassViolation
    # notAllowedOnNonLeaf
    66: (Meaning.DEPENDENCY, "the entries below this one must be removed first"),
    67: (Meaning.REJECTED, ""),  # notAllowedOnRDN
    68: (Meaning.UNIQUE, _UNIQUE),  # entryAlreadyExists
    69: (Meaning.REJECTED, ""),  # objectClassModsProhibited
    71: (Meaning.REJECTED, ""),  # affectsMultipleDSAs
    # other: servers also return it for a name that is too long, and such a record must not stop
    # all others.
    80: (Meaning.REJECTED, ""),
    118: (Meaning.RETRYABLE, ""),  # canceled
    122: (Meaning.RETRYABLE, ""),  # assertionFailed
    123: (Meaning.CONFIGURATION, _CREDENTIALS),  # authorizationDenied
}
"""The meaning of each code, and the hint of its error. Other codes concern the record."""

_READ_ONLY: Final = ("shadow context", "operation restricted", "read-only", "read only")
"""Texts in answers with unwillingToPerform that concern all writes: the server is read-only."""
_TAKEN: Final = ("unique", "already exists", "already in use")
"""Texts in answers with constraintViolation of servers whose values must be unique.

OpenLDAP: "some attributes not unique". 389 Directory Server: "Another entry with the same attribute
value already exists".
"""


def error_of(code: int, message: str) -> EventSyncError:
    """Return the error for a result code. ``message``: names the server, the entry and the code."""
    meaning, hint = RESULTS.get(code, (Meaning.REJECTED, ""))
    if code == 53 and any(text in message.lower() for text in _READ_ONLY):
        meaning, hint = Meaning.CONFIGURATION, "pass the URL of a server that takes writes as url="
    if code == 19 and any(text in message.lower() for text in _TAKEN):
        meaning, hint = Meaning.UNIQUE, _UNIQUE
    if meaning is Meaning.UNIQUE:
        return UniqueError(message, hint=hint)
    if meaning is Meaning.RETRYABLE:
        return StoreUnavailableError(message, hint=hint)
    if meaning is Meaning.DEPENDENCY:
        return DependencyError(message, hint=hint)
    if meaning is Meaning.CONFIGURATION:
        return ConfigError(message, hint=hint)
    return RejectedError(message, hint=hint)
