"""Owns the identity of a process on its host, and the verdict that such a process is gone.

It must not know what the process was doing, nor who asks.
"""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

__all__ = ["ProcessIdentity", "current_process", "is_dead"]

# Processes that have ended but whose parent has not yet collected them: they run no more code.
_ENDED_STATES = frozenset("ZXx")


class ProcessIdentity(NamedTuple):
    """One process, told apart from a later one that was given the same process id.

    ``scope`` names the host, its boot and the process-id namespace: process ids compare only
    within one scope (two containers on one host have a pid 1 each). An empty scope says that this
    platform cannot tell, an empty ``started`` that the start time is unknown.
    """

    scope: str
    pid: int
    started: str


def current_process() -> ProcessIdentity:
    """Return the identity of the calling process. Idempotent, thread-safe, does not block."""
    pid = os.getpid()
    state = _process_state(pid)
    return ProcessIdentity(_scope(), pid, state[1] if state else "")


def is_dead(other: ProcessIdentity, *, seen_from: ProcessIdentity) -> bool:
    """Say whether ``other`` is known to have ended. Idempotent, thread-safe, does not block.

    False means "alive, or cannot tell": a caller then waits for the lease to run out.
    """
    if not other.scope or other.scope != seen_from.scope:
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it exists and belongs to another user
    state = _process_state(other.pid)
    if state is None:
        return False  # hidden from us (hidepid) or no /proc on this platform
    return state[0] in _ENDED_STATES or (bool(other.started) and state[1] != other.started)


def _scope() -> str:
    if os.name != "posix":
        return ""  # os.kill(pid, 0) is no probe there: it sends a console event
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # No /proc: the host name has to do. Linux is left out, where another process-id
        # namespace (a container) could go unseen and a living consumer be taken for dead.
        return "" if platform.system() == "Linux" else platform.node()


def _process_state(pid: int) -> tuple[str, str] | None:
    """Return (state letter, start time in clock ticks since boot), or None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the command in brackets and may itself hold spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
