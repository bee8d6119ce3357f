"""The identity of a process on its host, and the test whether that process has ended."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

__all__ = ["ProcessIdentity", "current_process", "is_dead"]

# States of processes that have ended although their parent has not collected them yet.
_ENDED_STATES = frozenset("ZXx")


class ProcessIdentity(NamedTuple):
    """A process, distinguished from a later one with the same process id.

    ``scope`` names the host, its boot and the process-id namespace. Process ids are comparable only
    within one scope, because each container has a process 1. ``scope`` is empty if the platform
    does not tell it; ``started`` is empty if the start time is unknown.
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
    """Return whether ``other`` is known to have ended. Idempotent, thread-safe, does not block.

    False means that it is alive or that this cannot be known; then wait until its lease expires.
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
        return False  # hidden from this user (hidepid), or no /proc on this platform
    return state[0] in _ENDED_STATES or (bool(other.started) and state[1] != other.started)


def _scope() -> str:
    if os.name != "posix":
        return ""  # os.kill(pid, 0) does not test a process there: it sends a console event
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # No /proc: use the host name. Not on Linux: a process in another container could not be
        # recognised as such there, and a living consumer would be taken for dead.
        return "" if platform.system() == "Linux" else platform.node()


def _process_state(pid: int) -> tuple[str, str] | None:
    """Return (state letter, start time in clock ticks since boot), or None if unreadable."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the command in brackets, which may contain spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
