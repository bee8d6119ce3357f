"""The status of one worker: what it does, what it has done, and when it last made progress."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eventsync.errors import ConfigError
from eventsync.monitoring.circuit_breaker import CircuitBreaker

__all__ = ["StateFile", "WorkerStatus", "read_states", "resident_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


class WorkerStatus:
    """The status of one worker: the worker writes it, any thread reads it.

    The worker calls ``beat`` whenever it makes progress: it settled a message, found the queue
    empty, or retried the store. ``silence`` is the time since. ``circuit``: the circuit breaker of
    its store. ``outcomes``: how many changes had each outcome. Points in time are in seconds since
    the epoch, spans in seconds.
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
        """How many messages were settled."""
        self.doing = "starting"
        """``starting``, ``waiting``, ``applying``, or the name of a maintenance task."""
        self.in_hand = 0
        """How many messages it has taken and not settled yet."""
        self.applied_at: float | None = None
        """When a message was last settled; ``None`` before the first."""
        self.oldest: float | None = None
        """When the oldest change in hand, or last applied, was made; ``None`` when the queue was
        found empty."""
        self.error = ""
        """The last error of its store or broker; empty after the next settled message."""
        self._now = now
        self._monotonic = monotonic
        self.started = now()
        self._beat = monotonic()

    def beat(self, doing: str | None = None, *, pause: float = 0.0) -> None:
        """Note progress. ``pause``: how many seconds the worker is about to wait on purpose."""
        if doing is not None:
            self.doing = doing
        self._beat = self._monotonic() + pause

    def settled(self, messages: int) -> None:
        """Note that so many messages were settled."""
        self.messages += messages
        self.in_hand = 0
        self.applied_at = self._now()
        self.error = ""
        self.beat()

    @property
    def silence(self) -> float:
        """The seconds since the last progress; not positive while the worker waits on purpose."""
        return self._monotonic() - self._beat

    @property
    def lag(self) -> float:
        """The age in seconds of the oldest change in hand or last applied; 0 if there is none."""
        oldest = self.oldest
        return 0.0 if oldest is None else max(0.0, self._now() - oldest)

    def to_json(self) -> dict[str, Any]:
        """Return all of it, ready for ``json.dumps``."""
        return {
            "pid": os.getpid(),
            "store": self.store,
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
            "error": self.error,
            "memory": resident_bytes(),
        }


class StateFile:
    """A file with the status of one worker, ``worker-STORE-PID.json``, replaced atomically."""

    def __init__(self, folder: Path, status: WorkerStatus) -> None:
        """Create the folder if it is missing. Raise ``ConfigError`` when that fails."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create the folder for state files: {error}",
                hint="name another folder in EVENTSYNC_STATE_DIR",
            ) from error
        self._status = status
        self.path = folder / f"worker-{status.store}-{os.getpid()}.json"

    def write(self) -> None:
        """Write the status now. Raises ``OSError``."""
        partial = self.path.with_suffix(f".{threading.get_ident()}.tmp")
        partial.write_text(json.dumps(self._status.to_json()), encoding="utf-8")
        os.replace(partial, self.path)

    def remove(self) -> None:
        """Remove the file, and the files that killed workers left in its folder. Idempotent."""
        self.path.unlink(missing_ok=True)
        remove_dead(self.path.parent)


def read_states(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the status of every running worker on this host that has a state file."""
    for path in sorted(folder.glob("worker-*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError):
            # A worker may remove its file meanwhile; other programs may have written other files.
            state = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(state, dict) and _is_running(state.get("pid")):
                yield state


def remove_dead(folder: Path) -> None:
    """Remove the state files of processes that no longer run. Idempotent."""
    for path in folder.glob("worker-*.json"):
        pid = path.stem.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def resident_bytes() -> int:
    """Return the memory in use by this process, or its maximum so far if that is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _is_running(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
