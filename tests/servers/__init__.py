"""Real servers for tests: each is started from the installed program, on a free port, as a process
of the test's own, so that a test can kill it, stop it and start it again on the same data.

One module a server (``redis``, ``rabbitmq``, ``postgres``, ...), each with one class derived from
``Server``. ``tests/servers/install`` installs the programs on Debian and Ubuntu.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import pytest

__all__ = ["Server", "eventually", "free_port", "program", "running"]


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str, *places: str) -> str:
    """The path of an installed program; skips the test without it, or fails it in CI."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        reason = f"{name} is not installed; tests/servers/install installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def eventually(check: Callable[[], object], *, timeout: float = 30.0, what: str = "") -> None:
    """Wait until ``check()`` is true; raises ``AssertionError`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or check}"
        time.sleep(0.02)


class Server(ABC):
    """A server process in a folder of its own. ``url`` is where it is reached once started.

    Usable as a context manager, which starts it and in the end stops it and removes its folder.
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
        """Where clients reach it."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line that runs the server in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers a client; False for any refusal."""

    def prepare(self) -> None:  # noqa: B027  # most servers make their own
        """Make its data folder; called once, before the first start."""

    def environment(self) -> dict[str, str]:
        """The environment it runs in."""
        return dict(os.environ)

    def user(self) -> str | None:
        """The system user it runs as; ``None`` for the present one."""
        return None

    def start(self) -> Self:
        """Start it, and wait until it is ready."""
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
        """SIGKILL the server and all its children, as a power cut would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait for that. Idempotent."""
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after ``pause``."""
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
    """``server``, started for the block; it may be killed and started again inside."""
    with server:
        yield server
