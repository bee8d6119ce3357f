"""Functions that run commands and workers as processes, and read the logs of workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import eventsync

__all__ = ["HOLD_FOR", "Commands", "WorkerProcess", "read_log"]

HOLD_FOR: Final = 5.0
"""After so many seconds a change that still waits for another record becomes a dead letter."""


class Commands:
    """Runs ``eventsync`` commands and workers as processes in a folder.

    The processes use the same installation of eventsync as this process, and the broker at the URL
    ``broker``, and hold changes for ``HOLD_FOR`` seconds. They inherit no other ``EVENTSYNC_``
    variable.
    """

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        kept = {n: v for n, v in os.environ.items() if not n.startswith("EVENTSYNC_")}
        installed = str(Path(eventsync.__file__).parents[1])
        path = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), installed]))
        self._environment = {
            **kept,
            "PYTHONPATH": path,
            "EVENTSYNC_BROKER": broker,
            "EVENTSYNC_HOLD_FOR": f"{HOLD_FOR:g}",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, wait for its end, and return its exit code and output."""
        return subprocess.run(
            self._line(arguments),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def worker(self, store: str, **settings: str) -> WorkerProcess:
        """Start a worker of ``store`` as a process, and return it.

        The log of the worker is appended to ``logs/<store>.log``. ``settings``: settings of the
        worker, by name, for example ``prefetch="1"``.
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
    """A running worker of one store.

    ``log``: the file to which the worker appends its log.
    """

    def __init__(self, store: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.store = store
        self.pid = process.pid
        self._process = process
        self._log = log
        self._since = log.stat().st_size

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    def logged(self) -> Iterator[Mapping[str, Any]]:
        """Yield the events that this process has logged so far."""
        return read_log(self._log, self._since)

    def freeze(self) -> None:
        """Stop the process with SIGSTOP, so that its state can be examined."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT, so that the stopped process continues."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process with SIGKILL, and wait for its end."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM, so that the worker finishes its current work and exits.

        Returns without waiting for the end.
        """
        self._process.terminate()

    def wait(self, timeout: float) -> int:
        """Wait for the process to end, and return its exit code.

        ``timeout``: in seconds. A process that has not ended by then is killed.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode


def read_log(log: Path, since: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the events in a log of JSON lines, from the byte offset ``since`` to the end.

    A line that is not JSON becomes an event with the member ``torn``.
    """
    with log.open("rb") as stream:
        stream.seek(since)
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                # The worker was killed while it wrote this line, or the line is not a log event.
                event = {"event": line.decode("utf-8", "replace").strip(), "torn": True}
            if isinstance(event, dict):
                yield event
