"""The number of forks behind this process, which tells a forked child from its parent.

``os.getpid()`` would tell as well, but it is a system call, and the clock asks for every version.
"""

from __future__ import annotations

import os

__all__ = ["incarnation"]

_count = 0


def incarnation() -> int:
    """Return how many forks lie between this process and the first to import this module.

    Thread-safe.
    """
    return _count


def _count_fork() -> None:
    global _count
    _count += 1


os.register_at_fork(after_in_child=_count_fork)
