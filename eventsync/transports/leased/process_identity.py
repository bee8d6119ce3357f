"""Identifies processes on a host, and tests whether a process has ended."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

__all__ = ["ProcessIdentity", "current_process", "is_dead"]

# The state letters in /proc of processes that have ended but still have an entry there.
_ENDED_STATES = frozenset("ZXx")


class ProcessIdentity(NamedTuple):
    """Identifies a process, even if a later process gets the same process id.

    ``scope``: the host, its boot and the process-id namespace; empty if unknown. Process ids are
    comparable only within one scope, because each container has a process 1. ``started``: the start
    time in clock ticks since the boot; empty if unknown.
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
    """Return whether the process ``other`` is known to have ended.

    False means that the process is alive or that its state cannot be known. ``seen_from``: the
    calling process. Thread-safe, does not block.
    """
    if not other.scope or other.scope != seen_from.scope or not 0 < other.pid < 1 << 31:
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # the process exists and belongs to another user
    state = _process_state(other.pid)
    if state is None:
        return False  # the process is hidden from this user (hidepid), or there is no /proc
    return state[0] in _ENDED_STATES or (bool(other.started) and state[1] != other.started)


def _scope() -> str:
    if os.name != "posix":
        return ""  # on Windows os.kill(pid, 0) sends a console event instead of testing a process
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # There is no /proc: use the host name, except on Linux. There the host name does not tell
        # containers apart, so a living consumer in another container could be taken for dead.
        return "" if platform.system() == "Linux" else platform.node()


def _process_state(pid: int) -> tuple[str, str] | None:
    """Read the state letter and the start time of a process from ``/proc``.

    The start time is in clock ticks since the boot. Returns ``None`` if ``/proc`` is not readable.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the command in brackets, which may contain spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
