"""The fence around accessors: whatever an answer holds, only errors of eventsync leave them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from eventsync.engine.isolation import concerns_all, item_error
from eventsync.errors import EventSyncError, RecordError

__all__ = ["fenced"]

F = TypeVar("F", bound=Callable[..., Any])


def fenced(method: F) -> F:
    """Decorate a method of an accessor: turn foreign exceptions into a ``RecordError``.

    A service may answer anything, so any step that reads an answer may raise any exception. If the
    method returns an iterator, its steps are fenced too.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _fence(self):
            found = method(self, *args, **kwargs)
        return _steps(self, found) if isinstance(found, Iterator) else found

    return cast("F", call)


def _steps(accessor: Any, items: Iterator[Any]) -> Iterator[Any]:
    with _fence(accessor):
        yield from items


@contextmanager
def _fence(accessor: Any) -> Iterator[None]:
    try:
        yield
    except EventSyncError:
        raise
    except Exception as error:
        if concerns_all(error):
            raise
        cause = item_error(error)
        raise RecordError(
            f"{accessor!r}: an answer of the service cannot be read: {cause.message[:300]}",
            hint="correct the object at the service; if it is as the service documents it, the "
            "accessor does not fit this service",
        ) from error
