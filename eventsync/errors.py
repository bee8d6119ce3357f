"""The errors of eventsync: what went wrong, what to do, and whether trying again can help.

This module knows nothing of the rest of the package, so that anything may import it.

The hierarchy::

    EventSyncError
    ├── ConfigError              the configuration contradicts itself or names what is not there
    ├── RecordError              a record or its declaration is wrong
    │   ├── FieldError           a value does not fit its field
    │   ├── FilterError          a filter names no field, or compares what cannot be compared
    │   └── ValueRefusedError    a value cannot travel in an envelope
    ├── ClockDriftError          a version lies too far in the future                  (retryable)
    ├── ChangeRefusedError       a well-formed change that must not be applied
    ├── EnvelopeError            bytes that are not an envelope this version reads
    │   └── SignatureError       an envelope whose signature is missing or wrong
    ├── StoreError               a store did not do what was asked
    │   ├── NotFoundError        no such record
    │   ├── AlreadyExistsError   a record of that key is there already
    │   ├── RejectedError        the store refuses this record; another try changes nothing
    │   ├── DependencyError      another record has to come or go first               (retryable)
    │   ├── StoreUnavailableError  the store cannot be reached or is busy              (retryable)
    │   └── SuspiciousReadError  a source read that would delete too much
    └── BusError                 the broker did not do what was asked
        ├── BusUnavailableError  the broker cannot be reached                          (retryable)
        └── UnroutableError      no queue takes the message
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyExistsError",
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
    "UnroutableError",
    "ValueRefusedError",
    "is_retryable",
    "malformed",
    "shown",
]


class EventSyncError(Exception):
    """The base of every error that eventsync raises on purpose.

    ``retryable`` says whether the same call may succeed later with nothing changed. ``reason`` is
    the stable, machine-readable word that a dead letter or a ``--json`` answer carries. ``hint``
    says what an operator can do; it is part of ``str(error)``.
    """

    retryable: ClassVar[bool] = False
    reason: str = "error"

    def __init__(self, message: str, *, reason: str | None = None, hint: str = "") -> None:
        """Set ``message`` and ``hint``; ``reason`` replaces the class's own where one class
        stands for several rules.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint
        if reason is not None:
            self.reason = reason

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(EventSyncError):
    """The configuration contradicts itself or names what is not there."""

    reason = "configuration"


class RecordError(EventSyncError):
    """A record, or the declaration of a record type, is wrong."""

    reason = "record"


class FieldError(RecordError):
    """A value does not fit its field; the message names record, field, value and expectation."""

    reason = "field"

    def __init__(
        self, record: str, field: str, value: Any, expected: str, *, hint: str = ""
    ) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = f"{shown[:117]}..."
        super().__init__(
            f"{record}.{field}: {shown} ({type(value).__name__}) is not {expected}", hint=hint
        )
        self.record = record
        self.field = field
        self.value = value
        self.expected = expected


class FilterError(RecordError):
    """A filter names a field that is not there, or an operator that does not fit it."""

    reason = "filter"


class ValueRefusedError(RecordError):
    """A value cannot travel: its type, depth or size is outside what an envelope may carry."""

    reason = "value"


class ClockDriftError(EventSyncError):
    """A version lies further in the future than ``max_clock_drift`` allows."""

    retryable = True
    reason = "clock-drift"


class ChangeRefusedError(EventSyncError):
    """A well-formed change that must not be applied; ``reason`` says which rule refuses it."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Require a reason, because this class stands for several rules."""
        super().__init__(message, reason=reason, hint=hint)


class EnvelopeError(EventSyncError):
    """Bytes that are not an envelope this version can read, or not one at all."""

    reason = "envelope"


class SignatureError(EnvelopeError):
    """An envelope whose signature is missing, unknown or wrong."""

    reason = "signature"


class StoreError(EventSyncError):
    """A store did not do what was asked."""

    reason = "store"


class NotFoundError(StoreError):
    """No record of that key is in the store."""

    reason = "not-found"


class AlreadyExistsError(StoreError):
    """A record of that key is in the store already."""

    reason = "already-exists"


class RejectedError(StoreError):
    """The store refuses this record (a constraint, a type, a size); another try changes nothing."""

    reason = "rejected"


class DependencyError(StoreError):
    """Another record has to come (a parent) or to go (a child) before this one can be written."""

    retryable = True
    reason = "dependency"


class StoreUnavailableError(StoreError):
    """The store cannot be reached, is busy or gave up on time: the same call may succeed later.

    ``retry_after``: the store asks not to be tried again for so many seconds. ``uncertain``: it may
    have done what was asked, for only its answer is missing.
    """

    retryable = True
    reason = "unavailable"

    def __init__(
        self, message: str, *, hint: str = "", retry_after: float = 0.0, uncertain: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        self.uncertain = uncertain


class SuspiciousReadError(StoreError):
    """A read of a source whose outcome would delete so much that it is more likely a failure."""

    reason = "suspicious-read"


class BusError(EventSyncError):
    """The broker did not do what was asked."""

    reason = "bus"


class BusUnavailableError(BusError):
    """The broker cannot be reached or does not take messages now."""

    retryable = True
    reason = "bus-unavailable"


class UnroutableError(BusError):
    """No queue takes the message: no store of this record type has been declared at the broker."""

    reason = "unroutable"


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later with nothing changed."""
    if isinstance(error, EventSyncError):
        return error.retryable
    # A connection refused, a disk full, a time-out: what the operating system may grant later.
    return isinstance(error, OSError)


def malformed(message: str, *, reason: str = "malformed", hint: str = "") -> EnvelopeError:
    """Return an ``EnvelopeError`` for foreign content that is not of the expected form."""
    return EnvelopeError(message, reason=reason, hint=hint)


def shown(item: Any) -> str:
    """``item`` for an error: only what is short and flat; the rest may be as deep as a hostile
    sender likes.
    """
    kind = type(item)
    if kind is str or kind is bytes:
        return repr(item if len(item) <= 40 else item[:40])
    if item is None or kind is bool or (kind is int and abs(item) <= 2**64):
        return repr(item)
    return f"of type {kind.__name__}"
