"""A fork counter. A forked child has another count than its parent.

Comparing ``os.getpid()`` would work too. But that is a system call, and the clock compares for
every version.
"""

from __future__ import annotations

import os

__all__ = ["incarnation"]

_count = 0


def incarnation() -> int:
    """Return the number of forks between this process and the one that imported this module.

    A process stores the number and compares it later: another number means that it runs in a forked
    child. Thread-safe.
    """
    return _count


def _count_fork() -> None:
    global _count
    _count += 1


os.register_at_fork(after_in_child=_count_fork)
