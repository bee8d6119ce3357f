"""The meaning of HTTP statuses (RFC 9110, 4918, 6585, 7725) that are not a success."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Final

from eventsync.errors import ConfigError, RecordError

__all__ = [
    "STATUSES",
    "AccessRefusedError",
    "Meaning",
    "MovedError",
    "meaning_of",
    "names_uniqueness",
]


_TAKEN: Final = re.compile(
    r"already[_ -]?(?:exists?|in use|taken|used|been taken|registered)|has already been"
    r"|(?:must|should) be unique|not unique|unique (?:constraint|violation|key)|uniqueness"
    r"|duplicate",
    re.IGNORECASE,
)


class AccessRefusedError(ConfigError):
    """The service refuses the credentials, or knows no such path.

    The configuration has to change, here or at the service. Rights and tokens change while a worker
    runs, so it waits and retries; no record is to blame.
    """

    retryable: ClassVar[bool] = True


class MovedError(RecordError):
    """The service redirects the read of one object to another path.

    ``to``: the target of the redirect, as the service gave it.
    """

    def __init__(self, message: str, *, to: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.to = to


class Meaning(Enum):
    """What a status says about a request."""

    RETRYABLE = "the same request may succeed later"
    REJECTED = "the service refuses this record"
    REFUSED = "configuration: the credentials, their rights or the path, which may change meanwhile"
    CONFIGURATION = "configuration: the description of the service is wrong"


STATUSES: Final[Mapping[int, Meaning]] = {
    400: Meaning.REJECTED,
    401: Meaning.REFUSED,
    402: Meaning.REFUSED,
    403: Meaning.REFUSED,
    404: Meaning.REFUSED,  # of a list; of one object, it is that record's
    405: Meaning.CONFIGURATION,
    406: Meaning.CONFIGURATION,
    407: Meaning.CONFIGURATION,
    408: Meaning.RETRYABLE,
    409: Meaning.REJECTED,
    410: Meaning.REFUSED,
    411: Meaning.CONFIGURATION,
    412: Meaning.REJECTED,
    413: Meaning.REJECTED,
    414: Meaning.REJECTED,
    415: Meaning.CONFIGURATION,
    416: Meaning.CONFIGURATION,
    417: Meaning.CONFIGURATION,
    421: Meaning.CONFIGURATION,
    422: Meaning.REJECTED,
    423: Meaning.RETRYABLE,
    424: Meaning.REJECTED,
    425: Meaning.RETRYABLE,
    426: Meaning.CONFIGURATION,
    428: Meaning.CONFIGURATION,
    429: Meaning.RETRYABLE,
    431: Meaning.REJECTED,
    451: Meaning.REJECTED,
    500: Meaning.RETRYABLE,
    501: Meaning.CONFIGURATION,
    502: Meaning.RETRYABLE,
    503: Meaning.RETRYABLE,
    504: Meaning.RETRYABLE,
    505: Meaning.CONFIGURATION,
    507: Meaning.RETRYABLE,
    508: Meaning.CONFIGURATION,
    511: Meaning.CONFIGURATION,
}


def names_uniqueness(status: int, message: str) -> bool:
    """Return whether the message of a refusal says that another object has a value already.

    Statuses alone do not say that: 409 and 422 have other causes, too.
    """
    return status in (409, 422) and _TAKEN.search(message) is not None


def meaning_of(status: int) -> Meaning:
    """Return the meaning of a status; of an unknown one, by its class (RFC 9110, section 15)."""
    known = STATUSES.get(status)
    if known is not None:
        return known
    if status < 400:
        return Meaning.CONFIGURATION  # a redirect, which is not followed
    return Meaning.REJECTED if status < 500 else Meaning.RETRYABLE
