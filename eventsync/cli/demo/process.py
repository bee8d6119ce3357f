"""Commands and workers as processes of their own, and the logs of workers."""

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
    """Runs ``eventsync`` commands in a folder, with the installation that runs this code."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        kept = {n: v for n, v in os.environ.items() if not n.startswith("EVENTSYNC_")}
        installed = str(Path(eventsync.__file__).parents[1])
        path = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), installed]))
        self._environment = {**kept, "PYTHONPATH": path, "EVENTSYNC_BROKER": broker}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._line(arguments),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def worker(self, store: str, **settings: str) -> WorkerProcess:
        """Start a worker of ``store``, whose log is appended to ``logs/<store>.log``.

        ``settings``: its settings, by name.
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
    """A worker process. ``pid``: its process id."""

    def __init__(self, store: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.store = store
        self.pid = process.pid
        self._process = process
        self._log = log
        self._since = log.stat().st_size

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def logged(self) -> Iterator[Mapping[str, Any]]:
        """Yield the events that it has logged so far."""
        return read_log(self._log, self._since)

    def freeze(self) -> None:
        """Stop the process with SIGSTOP, so that its state can be examined."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on with SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask the worker to finish its work and exit; does not wait for it."""
        self._process.terminate()

    def wait(self, timeout: float) -> int:
        """Wait for the process to end, at most ``timeout`` seconds, and return its exit code.

        A process that does not end in time is killed.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode


def read_log(log: Path, since: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the events in a log of JSON lines, from the byte offset ``since`` on."""
    with log.open("rb") as stream:
        stream.seek(since)
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                # The last line of a worker that was killed while it wrote, or not JSON.
                event = {"event": line.decode("utf-8", "replace").strip(), "torn": True}
            if isinstance(event, dict):
                yield event
