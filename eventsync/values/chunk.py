"""Chunks: many items in parts of limited size, as statements and messages can take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunked"]

T = TypeVar("T")


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of ``size``; the last one may be shorter.

    ``itertools.batched`` replaces this from Python 3.12 on.
    """
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
