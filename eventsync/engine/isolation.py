"""Isolation: find the items of a batch that fail, so that one item never stops the others."""

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
    """Some of the items, in their order, and what the call returned for them."""

    items: Sequence[T]
    result: R


@dataclass(slots=True, frozen=True)
class Failed(Generic[T]):
    """One item, and the error that the call raised for it alone."""

    item: T
    error: Exception


def concerns_all(error: Exception) -> bool:
    """Return whether an error is one of the whole store or broker, or of the configuration.

    Any other error is the failure of the item that raised it. That includes a ``DependencyError``,
    and whatever a faulty accessor raises.
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
    """Call ``call`` with all items. If it fails, halve them until each failing item is alone.

    Yield the parts in the order of their items, each before the next part is tried. ``call`` may
    get the same item several times, so it must be idempotent, or have no effect when it raises. An
    error for which ``shared`` returns true is raised at once, because it would meet every other
    item too. One failing item among n costs about 2 log2(n) calls.
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

    An unexpected exception, most likely a fault of an accessor, becomes a ``StoreError`` that names
    it, and the ``item`` if that is given.
    """
    if isinstance(error, EventSyncError):
        return error
    message = f"unexpected {type(error).__name__}: {error}"
    unexpected = StoreError(f"{item}: {message}" if item else message)
    unexpected.__cause__ = error
    return unexpected


def record_error(error: Exception, record: str) -> RecordError:
    """Return ``error`` as a ``RecordError``, for a callback that reports unreadable records.

    ``record`` names the record. An error that is a ``RecordError`` already is returned unchanged.
    """
    if isinstance(error, RecordError):
        return error
    cause = item_error(error)
    unreadable = RecordError(f"{record} cannot be read: {cause.message}", hint=cause.hint)
    unreadable.__cause__ = error
    return unreadable
