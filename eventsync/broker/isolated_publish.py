"""Publishing of many items of one record type, where a refused item does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from eventsync.engine.isolation import Done, Failed, concerns_all, isolate
from eventsync.errors import UnroutableError

__all__ = ["publish_isolated"]

T = TypeVar("T")

# After so many refused items and none published, the broker is considered to refuse everything.
_MAX_REFUSED: Final = 10


def publish_isolated(
    items: Sequence[T], publish: Callable[[Sequence[T]], None]
) -> Iterator[Done[T, None] | Failed[T]]:
    """Publish items with ``publish``; yield the published and the refused items, in their order.

    ``publish`` may be repeated with items that it has published, which does no harm. An error that
    concerns all items is raised: an unreachable broker, a wrong setting, a record type that no
    queue takes, or a broker that refuses ten items and has published none.
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
