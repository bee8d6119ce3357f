"""A worker as a process of its own, and what it says in its log.

It must not know why it is started, or killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import eventsync

__all__ = ["Commands", "WorkerProcess", "read_log"]


class Commands:
    """Runs ``eventsync`` in a folder, with this very installation."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        kept = {n: v for n, v in os.environ.items() if not n.startswith("EVENTSYNC_")}
        beside = str(Path(eventsync.__file__).parents[1])
        path = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), beside]))
        self._environment = {**kept, "PYTHONPATH": path, "EVENTSYNC_BROKER": broker}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return subprocess.run(
            self._line(arguments),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def worker(self, store: str, **settings: str) -> WorkerProcess:
        """A worker of ``store``, started; its log is ``logs/<store>.log``, which is added to.

        ``settings``: by their names in the environment, ``EVENTSYNC_`` left out.
        """
        log = self.folder / "logs" / f"{store}.log"
        log.parent.mkdir(exist_ok=True)
        own = {f"EVENTSYNC_{name.upper()}": value for name, value in settings.items()}
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self._line(["worker", store, "--log-level", "debug"]),
                cwd=self.folder,
                env=self._environment | own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        return WorkerProcess(store, process, log)

    def _line(self, arguments: Any) -> list[str]:
        return [sys.executable, "-m", "eventsync", *arguments]


class WorkerProcess:
    """A running worker. ``pid``: its process."""

    def __init__(self, store: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.store = store
        self.pid = process.pid
        self._process = process
        self._log = log
        self._since = log.stat().st_size

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def said(self) -> Iterator[Mapping[str, Any]]:
        """What it has logged so far."""
        return read_log(self._log, self._since)

    def freeze(self) -> None:
        """Have it stand still, so that what it is at can be looked at."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with SIGKILL, in the midst of whatever it does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to finish what it has in hand and leave; ``wait`` tells when it has."""
        self._process.terminate()

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has left. One that does not in time is killed."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode


def read_log(log: Path, since: int = 0) -> Iterator[Mapping[str, Any]]:
    """The events in a log of JSON lines, from a place on."""
    with log.open("rb") as stream:
        stream.seek(since)
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                # The last line of a worker that was killed while it wrote it; or not JSON at all.
                event = {"event": line.decode("utf-8", "replace").strip(), "torn": True}
            if isinstance(event, dict):
                yield event
