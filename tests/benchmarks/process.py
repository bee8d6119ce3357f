"""Processes of ``eventsync`` while a benchmark runs, and what they use of the machine.

It reads Linux' ``/proc``. It knows nothing of what they are at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

__all__ = ["Commands", "Use", "relays", "use", "workers"]

_ROOT = Path(__file__).parents[2]
_KIB = 1024


class Use(NamedTuple):
    """What a process uses now: memory in bytes, and its peak so far; open files; threads."""

    memory: int
    peak: int
    files: int
    threads: int


def use(pid: int) -> Use:
    """What a process uses. Raises ``OSError`` when there is none."""
    status = Path(f"/proc/{pid}/status").read_text()
    held = dict(line.split(":", 1) for line in status.splitlines())
    return Use(
        int(held["VmRSS"].split()[0]) * _KIB,
        int(held["VmHWM"].split()[0]) * _KIB,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(held["Threads"]),
    )


class Commands:
    """Some processes of one ``eventsync`` command. Usable as a context manager."""

    def __init__(
        self, count: int, arguments: list[str], environment: Mapping[str, str], *, app: str
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EVENTSYNC_")}
        path = os.pathsep.join([str(_ROOT / "tests"), str(_ROOT)])
        given = {"EVENTSYNC_APP": f"benchmarks.deployment:{app}", "PYTHONPATH": path}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "eventsync", *arguments, "--log-level", "error"],
                env=clean | given | dict(environment),
                stdin=subprocess.DEVNULL,
            )
            for _ in range(count)
        ]

    def use(self) -> list[Use]:
        """What each of them uses now. Raises ``RuntimeError`` if one has ended."""
        if any(process.poll() is not None for process in self._processes):
            raise RuntimeError("a process of the benchmark has ended by itself")
        return [use(process.pid) for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def workers(count: int, *, broker: str, store: str) -> Commands:
    """Workers of the store in a database, as one starts them by hand."""
    environment = {"EVENTSYNC_BROKER": broker, "EVENTSYNC_STORE_CRM": store}
    return Commands(count, ["worker", "crm"], environment, app="registry")


def relays(*, broker: str, store: str) -> Commands:
    """A relay of what is edited in a database."""
    environment = {"EVENTSYNC_BROKER": broker, "EVENTSYNC_STORE_SHOP": store}
    return Commands(1, ["relay", "shop"], environment, app="source")
