"""The status of one worker: its activity, its counts, and the time of its last progress."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from eventsync.errors import ConfigError
from eventsync.monitoring.circuit_breaker import CircuitBreaker
from eventsync.monitoring.problem import Problems

__all__ = [
    "PROGRESS_MARK",
    "StateFile",
    "WorkerStatus",
    "read_crashes",
    "read_states",
    "resident_bytes",
]

PROGRESS_MARK: Final = "worker/progress"
"""The mark in a store's index that says when a worker last settled a message of the store, or found
its queue empty, in seconds since the epoch."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class WorkerStatus:
    """The status of one worker. The worker changes it, and any thread may read it.

    The worker calls ``beat`` whenever it makes progress: it has settled a message, found the queue
    empty, or retried the store. ``silence`` is the time since the last progress. ``circuit``: the
    circuit breaker of the worker's store. ``outcomes``: the number of changes by outcome. Points in
    time are in seconds since the epoch, durations in seconds.
    """

    def __init__(
        self,
        store: str,
        *,
        circuit: CircuitBreaker | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.circuit = circuit or CircuitBreaker(now=now)
        self.outcomes: Counter[Any] = Counter()
        self.messages = 0
        """The number of messages that the worker has settled."""
        self.doing = "starting"
        """The activity: ``starting``, ``waiting`` for messages, ``applying``, or the name of a
        maintenance task."""
        self.in_hand = 0
        """The number of messages that the worker has received and not settled yet."""
        self.applied_at: float | None = None
        """When the worker last settled a message; ``None`` if it has settled none."""
        self.oldest: float | None = None
        """When the oldest change of the current or last batch was made; ``None`` if the queue was
        empty."""
        self.error = ""
        """The last error of the store or the broker; cleared when a message is settled."""
        self.problems = Problems()
        """The problems of the store, as this worker sees them."""
        self.capture_seconds: float | None = None
        """How long the last whole pass of the capture took; ``None`` if none has ended."""
        self.role = "worker"
        """``worker``, or ``capture`` for a process that only captures foreign writes."""
        self.followed_writes = 0
        """The number of foreign writes that were captured as they happened."""
        self.followed_at: float | None = None
        """When the last of them was committed, if that is known."""
        self.progress_at: float | None = None
        """When the worker last settled a message or found its queue empty."""
        self._now = now
        self._monotonic = monotonic
        self.started = now()
        self._beat = monotonic()

    def beat(self, doing: str | None = None, *, pause: float = 0.0) -> None:
        """Record progress.

        ``doing``: the new activity, if it has changed. ``pause``: for how many seconds the worker
        now waits on purpose; this time does not count as silence.
        """
        if doing is not None:
            self.doing = doing
        self._beat = self._monotonic() + pause

    def settled(self, messages: int) -> None:
        """Record that ``messages`` more messages were settled and no message is in hand."""
        self.messages += messages
        self.in_hand = 0
        self.applied_at = self.progress_at = self._now()
        self.error = ""
        self.beat()

    def idle(self) -> None:
        """Record that no message waits in the queue."""
        self.oldest = None
        self.progress_at = self._now()

    def captured(self, seconds: float) -> None:
        """Record that a pass of the capture has ended, which took so many seconds."""
        self.capture_seconds = seconds

    def followed(self, count: int, moment: float | None) -> None:
        """Record that ``count`` foreign writes were captured, the last committed at ``moment``."""
        self.followed_writes += count
        self.followed_at = self._now() if moment is None else moment

    @property
    def silence(self) -> float:
        """Seconds since the last progress; 0 or less while the worker waits on purpose."""
        return self._monotonic() - self._beat

    @property
    def lag(self) -> float:
        """The age, in seconds, of the oldest change of the current or last batch.

        It is 0 if the queue was empty.
        """
        oldest = self.oldest
        return 0.0 if oldest is None else max(0.0, self._now() - oldest)

    def to_json(self) -> dict[str, Any]:
        """Return the status, the process id and the memory in use as a dict for ``json.dumps``."""
        return {
            "pid": os.getpid(),
            "store": self.store,
            "role": self.role,
            "started": self.started,
            "written": self._now(),
            "doing": self.doing,
            "silence": round(max(0.0, self.silence), 3),
            "messages": self.messages,
            "in_hand": self.in_hand,
            "applied_at": self.applied_at,
            "lag": round(self.lag, 3),
            "outcomes": {str(name): count for name, count in self.outcomes.copy().items()},
            "circuit": self.circuit.to_json(),
            "problems": self.problems.to_json(),
            "capture_seconds": self.capture_seconds,
            "followed_writes": self.followed_writes,
            "followed_at": self.followed_at,
            "error": self.error,
            "memory": resident_bytes(),
        }


class Reporting(Protocol):
    """What a state file shows."""

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dict for ``json.dumps``, with the process id as ``pid``."""


class StateFile:
    """The file ``worker-STORE-PID.json`` with the status of one worker.

    Each write replaces the file atomically. ``name``: the beginning of another file name; a
    supervisor writes ``supervisor-PID.json``.
    """

    def __init__(self, folder: Path, status: Reporting, *, name: str = "") -> None:
        """Create ``folder`` if it does not exist.

        Raises ``ConfigError`` if the folder cannot be created.
        """
        if isinstance(status, WorkerStatus):
            name = name or f"worker-{status.store}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create the folder for state files: {error}",
                hint="name another folder in EVENTSYNC_STATE_DIR",
            ) from error
        self._status = status
        self.path = folder / f"{name}-{os.getpid()}.json"

    def write(self) -> None:
        """Write the current status. Raises ``OSError`` if the file cannot be written."""
        partial = self.path.with_suffix(f".{threading.get_ident()}.tmp")
        descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(self._status.to_json(), file)
        os.replace(partial, self.path)

    def remove(self) -> None:
        """Remove this file, and the files of killed workers in the same folder. Idempotent."""
        self.path.unlink(missing_ok=True)
        remove_dead(self.path.parent)


def read_states(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the status of each running worker that has a state file in ``folder``."""
    return _read(folder, "worker-*.json")


def read_crashes(folder: Path) -> list[dict[str, Any]]:
    """Return the crashes that the running supervisors report in ``folder``.

    See ``WorkerGroup.crashes``.
    """
    return [one for state in _read(folder, "supervisor-*.json") for one in state["crashes"]]


def _read(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
            # Suppressed: a worker may remove its file meanwhile, and another program may have
            # written a file with such a name.
            state = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(state, dict) and _is_running(state.get("pid")):
                yield state


def remove_dead(folder: Path) -> None:
    """Remove the state files in ``folder`` whose processes have ended. Idempotent."""
    for path in (*folder.glob("worker-*.json"), *folder.glob("supervisor-*.json")):
        pid = path.stem.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes.

    Without ``/proc``, returns the maximum so far instead.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _is_running(pid: Any) -> bool:
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return False  # not the id of a process: 0 and less would name a group of processes
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
