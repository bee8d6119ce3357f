"""Isolation: finds the failing items of a batch, so that the other items succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from eventsync.errors import (
    ConfigError,
    DependencyError,
    EventSyncError,
    RecordError,
    StoreError,
    is_retryable,
)

__all__ = ["Done", "Failed", "concerns_all", "isolate", "item_error", "record_error"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, frozen=True)
class Done(Generic[T, R]):
    """A part of the items for which the call succeeded. ``result``: what the call returned."""

    items: Sequence[T]
    result: R


@dataclass(slots=True, frozen=True)
class Failed(Generic[T]):
    """One item for which the call failed. ``error``: what the call raised for this item alone."""

    item: T
    error: Exception


def concerns_all(error: Exception) -> bool:
    """Return whether ``error`` concerns the whole store, the broker or the configuration.

    Every other error concerns only the item that was processed. Examples are a ``DependencyError``,
    and an exception that a faulty accessor raises.
    """
    if isinstance(error, DependencyError):
        return False
    return is_retryable(error) or isinstance(error, ConfigError)


def isolate(
    items: Sequence[T],
    call: Callable[[Sequence[T]], R],
    *,
    shared: Callable[[Exception], bool] = concerns_all,
) -> Iterator[Done[T, R] | Failed[T]]:
    """Call ``call`` with all items. If it raises, halve the items until each failing one is alone.

    Yields a ``Done`` for each part that succeeded and a ``Failed`` for each failing item, in the
    order of the items. ``call`` may get the same item several times, so it must be idempotent, or
    have no effect if it raises. ``shared``: returns whether an error concerns all items; such an
    error is raised at once. One failing item among n items costs about 2 log2(n) calls.
    """
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        try:
            result = call(part)
        except Exception as error:
            if shared(error):
                raise
            if len(part) == 1:
                yield Failed(part[0], error)
            else:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
        else:
            yield Done(part, result)


def item_error(error: Exception, item: str = "") -> EventSyncError:
    """Return ``error`` as an ``EventSyncError``, for a dead letter or a report.

    An ``EventSyncError`` is returned unchanged. Any other exception, most likely a fault of an
    accessor, is wrapped in a ``StoreError``. ``item``: names the failing item in the message.
    """
    if isinstance(error, EventSyncError):
        return error
    message = f"unexpected {type(error).__name__}: {error}"
    unexpected = StoreError(f"{item}: {message}" if item else message)
    unexpected.__cause__ = error
    return unexpected


def record_error(error: Exception, record: str, *, key: str | None = None) -> RecordError:
    """Return ``error`` as a ``RecordError``, for a callback that reports unreadable records.

    A ``RecordError`` is returned itself; its message then begins with ``record``, which names the
    record, if it does not contain it. Any other exception is wrapped. ``key``: the key of the
    record, if it is known and the error does not name it yet.
    """
    if isinstance(error, RecordError):
        if record not in error.message:
            error.message = f"{record}: {error.message}"
        error.key = error.key or key
        return error
    cause = item_error(error)
    unreadable = RecordError(f"{record} cannot be read: {cause.message}", hint=cause.hint)
    unreadable.__cause__ = error
    unreadable.key = key
    return unreadable
