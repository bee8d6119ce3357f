"""Chunks: a long sequence of items, cut into lists of limited length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunked"]

T = TypeVar("T")


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of ``size`` items; the last list may be shorter.

    Python 3.12 has ``itertools.batched`` for the same purpose.
    """
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
