"""The cyclic garbage collector: paused where many objects are made that all stay for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector during the block.

    A batch of changes, or a file, consists of many objects without reference cycles, which live
    until it is settled or read. The collector would search these objects again and again without
    finding garbage. That would take as much time as the work itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
