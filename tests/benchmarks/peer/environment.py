"""The Python of a peer's own, with what it needs in it, and the peer's programs run by that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from benchmarks.peer.result import NotRunError

__all__ = ["Environment", "Program"]

_HERE = Path(__file__).parent


class Environment:
    """A virtual environment with a peer's packages, made in ``folder`` unless it is there already.

    Raises ``NotRunError`` when they cannot be installed.
    """

    def __init__(self, peer: str, folder: Path) -> None:
        self._bin = folder / peer / "bin"
        installed = folder / peer / "installed"
        if installed.exists():
            return
        venv.create(folder / peer, with_pip=True)
        ran = subprocess.run(
            [
                *(str(self._bin / "pip"), "install", "-q", "--disable-pip-version-check"),
                *("-r", str(_HERE / "requirements" / f"{peer}.txt")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise NotRunError(f"its packages cannot be installed: {last}")
        installed.touch()

    def command(self, name: str) -> str:
        """The path of an installed command."""
        return str(self._bin / name)

    def program(
        self, *arguments: str, variables: Mapping[str, str], folder: Path, name: str = "python"
    ) -> Program:
        """A program of the peer's; ``folder``: where its files and its log are."""
        return Program([self.command(name), *arguments], variables, folder)


class Program:
    """A process of a peer, with all that it starts. Usable as a context manager, which ends it.

    Those that say ``ready`` wait there for the word to go on, and say ``done`` at the end.
    """

    def __init__(self, command: list[str], variables: Mapping[str, str], folder: Path) -> None:
        self._log = folder / "peer.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(_HERE / "program"), **variables},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def wait_for(self, word: str) -> None:
        """Block until the program says so. Raises ``NotRunError`` when it ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise NotRunError(f"it ended before it was {word}: {self.last_words()}")

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Block until it ends. Raises ``NotRunError`` unless it ends well."""
        if self._process.wait():
            raise NotRunError(f"it failed: {self.last_words()}")

    def pause(self) -> None:
        """SIGSTOP to it and all that it started."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after ``pause``."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"

    @classmethod
    def ours(cls, *arguments: str, variables: Mapping[str, str], folder: Path) -> Self:
        """A program run by this Python."""
        return cls([sys.executable, *arguments], variables, folder)
