"""Real servers and simulated services for tests.

A real server is the installed program, started on a free port as a process of the test. The test
can kill, stop and restart it with the same data. Each server has a module (``redis``, ``rabbitmq``,
``postgres``) with one subclass of ``Server``. ``tests/servers/install`` installs the programs on
Debian and Ubuntu.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import pytest
from support.waiting import eventually

__all__ = ["Server", "free_port", "program", "running"]


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str, *places: str) -> str:
    """Return the path of an installed program. Without it, skip the test, or fail it in CI."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        reason = f"{name} is not installed; tests/servers/install installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Server(ABC):
    """A server process with a folder of its own.

    As a context manager, it starts the server, and at the end stops it and deletes the folder.
    """

    start_timeout: ClassVar[float] = 60.0

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line that runs the server in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether the server answers a client."""

    def prepare(self) -> None:  # noqa: B027  # most servers create it themselves
        """Create the data folder. Called once, before the first start."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the process."""
        return dict(os.environ)

    def user(self) -> str | None:
        """Return the system user of the process; ``None`` for the user of the test."""
        return None

    def start(self) -> Self:
        """Start the server and wait until it is ready."""
        if not (self.folder / ".prepared").exists():
            self.prepare()
            (self.folder / ".prepared").touch()
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                user=self.user() if os.getuid() == 0 else None,
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            eventually(self._up, timeout=self.start_timeout, what=f"{self!r} is ready")
        except BaseException:
            self.kill()
            raise
        return self

    def _up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = (self.folder / "server.log").read_text(errors="replace")[-2000:]
            raise AssertionError(f"{self!r} ended with {self.process.returncode}: {log}")
        return self.is_ready()

    def kill(self) -> None:
        """Kill the server and all its child processes with SIGKILL, as a crash would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server with SIGTERM and wait for its end. Idempotent."""
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """Pause the server with SIGSTOP: it keeps its connections and does not answer."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the server after ``pause``, with SIGCONT."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(port={self.port}, folder={str(self.folder)!r})"


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run ``server`` inside the ``with`` block, which may kill and restart it."""
    with server:
        yield server
