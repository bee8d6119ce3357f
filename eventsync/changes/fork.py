"""The incarnation of this process: whether it is still the one that it was before a fork.

It owns the count of forks behind this process, and nothing else. Asking the system for the process
id would do, but that is a system call, and versions are issued by the hundred thousand.
"""

from __future__ import annotations

import os

__all__ = ["incarnation"]

_count = 0


def incarnation() -> int:
    """How many forks lie between this process and the one that first imported this. Thread-safe."""
    return _count


def _forked() -> None:
    global _count
    _count += 1


os.register_at_fork(after_in_child=_forked)
