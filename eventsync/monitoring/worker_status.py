"""What one worker process is doing: when it last got on, what it has done, what it waits for.

It owns the numbers that health checks and metrics read, and the file that other processes read
them from. It must not know how any of it comes about.
"""

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
    """The progress of one worker: written by it, read by any thread.

    ``beat`` is called whenever the worker gets on: a message settled, an empty queue looked at, a
    store tried again. ``silence`` is how long it has not been. ``circuit``: that of its store.
    ``outcomes``: how many changes came to each outcome. Times are in seconds since the epoch,
    except where a span is meant.
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
        """What the worker is at: ``starting``, ``waiting``, ``applying``, an upkeep's name..."""
        self.in_hand = 0
        """How many messages it has taken and not settled yet."""
        self.applied_at: float | None = None
        """When a message was last settled; ``None`` before the first."""
        self.oldest: float | None = None
        """When the oldest change in hand, or last applied, was made; ``None`` once the queue was
        found empty."""
        self.error = ""
        """The last error that it logged, empty after the next settled message."""
        self._now = now
        self._monotonic = monotonic
        self.started = now()
        self._beat = monotonic()

    def beat(self, doing: str | None = None, *, pause: float = 0.0) -> None:
        """The worker got on. ``pause``: how many seconds it is going to wait on purpose."""
        if doing is not None:
            self.doing = doing
        self._beat = self._monotonic() + pause

    def settled(self, messages: int) -> None:
        """So many messages are settled."""
        self.messages += messages
        self.in_hand = 0
        self.applied_at = self._now()
        self.error = ""
        self.beat()

    @property
    def silence(self) -> float:
        """For how many seconds the worker has not got on; not positive while it waits on purpose"""
        return self._monotonic() - self._beat

    @property
    def lag(self) -> float:
        """How far the worker is behind, in seconds, as far as it has seen."""
        oldest = self.oldest
        return 0.0 if oldest is None else max(0.0, self._now() - oldest)

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for ``json.dumps``."""
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
    """A worker's progress in a file of its own, ``worker-STORE-PID.json``, replaced atomically."""

    def __init__(self, folder: Path, progress: WorkerStatus) -> None:
        """Makes the folder. Raises ``ConfigError`` when it cannot."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder for state files cannot be made: {error}", hint="EVENTSYNC_STATE_DIR"
            ) from error
        self._progress = progress
        self.path = folder / f"worker-{progress.store}-{os.getpid()}.json"

    def write(self) -> None:
        """Write it now. Raises ``OSError``."""
        partial = self.path.with_suffix(f".{threading.get_ident()}.tmp")
        partial.write_text(json.dumps(self._progress.to_json()), encoding="utf-8")
        os.replace(partial, self.path)

    def remove(self) -> None:
        """Remove it, and what killed workers of the store left behind. Idempotent."""
        self.path.unlink(missing_ok=True)
        remove_dead(self.path.parent)


def read_states(folder: Path) -> Iterator[dict[str, Any]]:
    """The progress of every worker on this host that wrote a state file and still lives."""
    for path in sorted(folder.glob("worker-*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError):
            # It may be removed while one looks; one that is no JSON is none of ours.
            state = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(state, dict) and _lives(state.get("pid")):
                yield state


def remove_dead(folder: Path) -> None:
    """Remove the state files of processes that are gone. Idempotent."""
    for path in folder.glob("worker-*.json"):
        pid = path.stem.rpartition("-")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            path.unlink(missing_ok=True)


def resident_bytes() -> int:
    """How much memory this process has in use; its greatest so far where that cannot be told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _lives(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
