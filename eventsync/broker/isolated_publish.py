"""Publishes many items of one record type; one refused item does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from eventsync.engine.isolation import Done, Failed, concerns_all, isolate
from eventsync.errors import UnroutableError

__all__ = ["publish_isolated"]

T = TypeVar("T")

# If the first so many items are all refused, the broker is considered to refuse every item.
_MAX_REFUSED: Final = 10


def publish_isolated(
    items: Sequence[T], publish: Callable[[Sequence[T]], None]
) -> Iterator[Done[T, None] | Failed[T]]:
    """Publish items; yield the published items as ``Done`` and each refused item as ``Failed``.

    The order of the items is kept. ``publish``: publishes a sequence of items; it may be called
    again with items that are already published. An error that concerns all items is raised: the
    broker is unreachable, a setting is wrong, no queue receives the record type, or the broker has
    refused ten items and stored no item.
    """
    refused = 0
    published = False
    for part in isolate(items, publish, shared=_concerns_all):
        if isinstance(part, Failed):
            refused += 1
            if refused >= _MAX_REFUSED and not published:
                raise part.error
        else:
            published = True
        yield part


def _concerns_all(error: Exception) -> bool:
    return concerns_all(error) or isinstance(error, UnroutableError)
