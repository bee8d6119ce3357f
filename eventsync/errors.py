"""The errors of eventsync: what is wrong, what to do, and whether a retry can help.

The hierarchy::

    EventSyncError
    ├── ConfigError              the configuration is wrong
    ├── RecordError              a record or its declaration is wrong
    │   ├── FieldError           a value does not fit its field
    │   ├── FilterError          a filter is wrong
    │   └── ValueRefusedError    an envelope cannot carry a value
    ├── ClockDriftError          a version lies too far in the future             (retryable)
    ├── ChangeRefusedError       a well-formed change must not be applied
    ├── EnvelopeError            bytes are not an envelope that this version reads
    │   └── SignatureError       the signature of an envelope is missing or wrong
    ├── StoreError               a store could not carry out a read or a write
    │   ├── NotFoundError        the record does not exist
    │   ├── AlreadyExistsError   a record with this key exists already
    │   ├── RejectedError        the store will never accept the record as it is
    │   ├── DependencyError      another record must be written or removed first  (retryable)
    │   │   └── UnreadableError  what a change would overwrite cannot be read     (retryable)
    │   │   └── UniqueError      another record has a value that must be unique   (retryable);
    │   │                        a RejectedError, too
    │   ├── StoreUnavailableError  the store is unreachable or busy               (retryable)
    │   └── SuspiciousReadError  too many records are missing from a read
    └── BusError                 the broker could not carry out an operation
        ├── BusUnavailableError  the broker is unreachable or accepts no messages (retryable)
        ├── BusConfigError       the broker refuses the URL's credentials or rights; a ConfigError
        └── UnroutableError      no queue receives the message
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)

__all__ = [
    "AlreadyExistsError",
    "BusConfigError",
    "BusError",
    "BusUnavailableError",
    "ChangeRefusedError",
    "ClockDriftError",
    "ConfigError",
    "DependencyError",
    "EnvelopeError",
    "EventSyncError",
    "FieldError",
    "FilterError",
    "NotFoundError",
    "RecordError",
    "RejectedError",
    "SignatureError",
    "StoreError",
    "StoreUnavailableError",
    "SuspiciousReadError",
    "UniqueError",
    "UnreadableError",
    "UnroutableError",
    "ValueRefusedError",
    "in_store",
    "is_retryable",
    "kept",
    "malformed",
    "shown",
]


def kept(error: E) -> E:
    """Return ``error`` without its traceback and those of its causes, to be kept for long.

    A traceback keeps the frames alive, with all their variables. Of a file with many wrong lines
    that would take a thousand times its size.
    """
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error


class EventSyncError(Exception):
    """The base class of the errors that eventsync raises.

    - ``retryable``: whether the same call may succeed later without a change to code, data or
      configuration.
    - ``reason``: a stable, machine-readable word. Dead letters and ``--json`` output contain it.
    - ``hint``: what an operator can do. ``str(error)`` contains the hint.
    - ``store``: the name of the store that failed; empty if it is not known. ``str(error)`` begins
      with it.
    """

    retryable: ClassVar[bool] = False
    reason: str = "error"
    store: str = ""

    def __init__(self, message: str, *, reason: str | None = None, hint: str = "") -> None:
        """Set message and hint. ``reason`` replaces the reason of the error class."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        if reason is not None:
            self.reason = reason

    def __str__(self) -> str:
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        if not self.store or f"store {self.store!r}" in text:
            return text
        return f"store {self.store!r}: {text}"


class ConfigError(EventSyncError):
    """A setting is wrong, contradicts another setting, or names something that does not exist."""

    reason = "configuration"


class RecordError(EventSyncError):
    """A record, or the declaration of a record type, is wrong.

    - ``key``: the key of the record, as far as it is known.
    - ``place``: where a record without a readable key is, for example a file and a line.
    """

    reason = "record"
    key: str | None = None
    place: str = ""


class FieldError(RecordError):
    """A value does not fit its field.

    The message names the record type, the field, the value and the expected form.
    """

    reason = "field"

    def __init__(
        self, record: str, field: str, value: Any, expected: str, *, hint: str = ""
    ) -> None:
        """Make the message "``record``.``field``: ``value`` is not ``expected``".

        ``expected``: a noun phrase such as "an integer". Long values are shortened.
        """
        text = repr(value)
        if len(text) > 120:
            text = f"{text[:117]}..."
        super().__init__(
            f"{record}.{field}: {text} ({type(value).__name__}) is not {expected}", hint=hint
        )
        self.record = record
        self.field = field
        self.value = value
        self.expected = expected


class FilterError(RecordError):
    """A filter names an unknown field, or an operator that the field does not support."""

    reason = "filter"


class ValueRefusedError(RecordError):
    """An envelope cannot carry a value, because of its type, depth or size."""

    reason = "value"


class ClockDriftError(EventSyncError):
    """A version lies further in the future than ``max_clock_drift`` allows."""

    retryable = True
    reason = "clock-drift"


class ChangeRefusedError(EventSyncError):
    """A well-formed change must not be applied. ``reason`` says which rule refuses it."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Set message, hint and ``reason``. In this class ``reason`` has no default."""
        super().__init__(message, reason=reason, hint=hint)


class EnvelopeError(EventSyncError):
    """Bytes are not an envelope, or are an envelope that this version of eventsync cannot read."""

    reason = "envelope"


class SignatureError(EnvelopeError):
    """The signature of an envelope is missing, wrong, or made with an unknown key."""

    reason = "signature"


class StoreError(EventSyncError):
    """A store could not carry out a read or a write."""

    reason = "store"


class NotFoundError(StoreError):
    """The store holds no record with this key."""

    reason = "not-found"


class AlreadyExistsError(StoreError):
    """The store already holds a record with this key."""

    reason = "already-exists"


class RejectedError(StoreError):
    """The store will never accept the record as it is, because of a constraint, type or size."""

    reason = "rejected"


class DependencyError(StoreError):
    """A parent record must be written, or a child record removed, before this record."""

    retryable = True
    reason = "dependency"


class UnreadableError(DependencyError):
    """A change must wait, because it would overwrite a record that the store cannot read."""

    reason = "unreadable"


class UniqueError(DependencyError, RejectedError):
    """Another record has a value that must be unique, and must change or be removed first.

    A worker holds the change, because the other record may release the value. An edit is rejected.
    """

    reason = "unique"


class StoreUnavailableError(StoreError):
    """The store is unreachable, busy or timed out. The same call may succeed later.

    ``retry_after``: seconds to wait before the next call, as the store requested; 0 if the store
    requested nothing. ``uncertain``: whether the store may have carried out the call, because only
    the response was lost.
    """

    retryable = True
    reason = "unavailable"

    def __init__(
        self, message: str, *, hint: str = "", retry_after: float = 0.0, uncertain: bool = False
    ) -> None:
        """Set message, hint, ``retry_after`` and ``uncertain``; see the class."""
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        self.uncertain = uncertain


class SuspiciousReadError(StoreError):
    """A read returned so few of the known records that the read itself has probably failed."""

    reason = "suspicious-read"

    @classmethod
    def of(cls, errors: Sequence[SuspiciousReadError]) -> SuspiciousReadError:
        """Return the only one of ``errors``, or one error that says what all of them say."""
        if len(errors) == 1:
            return errors[0]
        return cls(
            "; ".join(error.message for error in errors),
            hint="; ".join(error.hint for error in errors),
        )


class BusError(EventSyncError):
    """The broker could not carry out an operation."""

    reason = "bus"


class BusUnavailableError(BusError):
    """The broker is unreachable, or accepts no messages at the moment."""

    retryable = True
    reason = "bus-unavailable"


class BusConfigError(BusError, ConfigError):
    """The broker refuses the user, password, rights or names of the broker URL."""

    reason = "configuration"


class UnroutableError(BusError):
    """No queue receives the message: no store that holds its record type has declared a queue."""

    reason = "unroutable"


@contextmanager
def in_store(name: str) -> Iterator[None]:
    """Set the ``store`` of an error that the block raises, unless the error has one already."""
    try:
        yield
    except EventSyncError as error:
        if not (error.store or isinstance(error, BusError)):
            error.store = name
        raise


def is_retryable(error: BaseException) -> bool:
    """Return whether the call that raised ``error`` may succeed when it is repeated unchanged."""
    if isinstance(error, EventSyncError):
        return error.retryable
    # An OSError can be temporary: a refused connection, a full disk, a timeout.
    return isinstance(error, OSError)


def malformed(message: str, *, reason: str = "malformed", hint: str = "") -> EnvelopeError:
    """Return, but do not raise, an ``EnvelopeError`` for content that has an unexpected form."""
    return EnvelopeError(message, reason=reason, hint=hint)


def shown(item: Any) -> str:
    """Return ``item`` as a short text for an error message. ``item`` may come from an attacker.

    Strings are cut to 40 characters, bytes to 40 bytes. ``None``, bools and integers up to 2^64 are
    shown whole. For any other value the text names only the type.
    """
    kind = type(item)
    if kind is str or kind is bytes:
        return repr(item if len(item) <= 40 else item[:40])
    if item is None or kind is bool or (kind is int and abs(item) <= 2**64):
        return repr(item)
    return f"of type {kind.__name__}"
