"""The supervisor: runs worker processes, and restarts each when it ends or hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

import structlog

from eventsync.retry import Backoff

__all__ = ["Lifeline", "ProcessObserver", "Supervisor"]

_POLL: Final = 0.05
_STABLE: Final = 60.0
_RESTART_BACKOFF: Final = Backoff(0.2, 30.0, jitter=0.5)
_FAILED: Final = 70


class ProcessObserver(Protocol):
    """Takes what happens to the processes, each under the name of its command."""

    def started(self, name: str, /) -> None:
        """Take note that a process was started."""

    def reported(self, name: str, report: bytes, /) -> None:
        """Take one report that a process sent over its lifeline."""

    def ended(self, name: str, /) -> None:
        """Take note that a process has ended and that there are no more reports of it."""


@dataclass(slots=True)
class _Child:
    """One command, and the process that runs it at the moment."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    lifeline: socket.socket | None = None
    started: float = 0.0
    heard: float = 0.0
    failures: int = 0
    start_at: float = 0.0
    unread: bytes = b""


class Supervisor:
    """Runs commands, each in a process of its own, until SIGTERM or SIGINT.

    ``commands``: by name. In each, ``{lifeline}`` stands for the file number of its lifeline. A
    process that ends with code 0 (it was recycled) is restarted at once; any other with exponential
    backoff up to 30 seconds, which starts over after a minute of life. A process that sends nothing
    for ``silence`` seconds is killed and restarted.

    A signal is passed on to the processes. Those that are left after ``grace`` seconds, or after
    some more signals, are killed. Should the supervisor die, its processes notice it by their
    lifelines and stop. ``observer`` is called when something happens to a process. For the main
    thread.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        grace: float,
        silence: float = 30.0,
        observer: ProcessObserver | None = None,
        log: Any = None,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = environment
        self._grace = grace
        self._silence = silence
        self._observer = observer
        self._log = log or structlog.get_logger("eventsync.supervisor")
        self._signals = 0
        self._passed_on = 0

    def run(self) -> int:
        """Run until a signal. Return the exit code: 0 if all processes ended without an error."""
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while not self._signals:
                for child in self._children:
                    self._check(child)
                time.sleep(_POLL)
            return self._stop()
        finally:
            for child in self._children:
                if child.process is not None and child.process.poll() is None:
                    child.process.kill()
                    child.process.wait()
                self._close_lifeline(child)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _check(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            if self._receive(child):
                child.heard = now
            elif now - child.heard > self._silence:
                self._log.error(
                    "worker unresponsive, killed", worker=child.name, pid=child.process.pid
                )
                child.process.kill()
            return
        if now - child.started > _STABLE:
            child.failures = 0
        wait = 0.0
        if code:
            child.failures += 1
            wait = _RESTART_BACKOFF.pause(child.failures)
        log = self._log.warning if code else self._log.info
        log("worker ended, restarting", worker=child.name, code=code, wait=round(wait, 2))
        self._close_lifeline(child)
        child.process, child.start_at = None, now + wait

    def _start(self, child: _Child) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            number = theirs.fileno()
            child.process = subprocess.Popen(
                [part.replace("{lifeline}", str(number)) for part in child.command],
                env=None if self._environment is None else dict(self._environment),
                stdin=subprocess.DEVNULL,
                pass_fds=(number,),
                # Ctrl-C on a terminal reaches only the supervisor, which passes it on once.
                start_new_session=True,
            )
        child.lifeline = ours
        child.started = child.heard = time.monotonic()
        if self._observer is not None:
            self._observer.started(child.name)
        self._log.info("worker process started", worker=child.name, pid=child.process.pid)

    def _receive(self, child: _Child) -> bool:
        """Read all that a child has sent until now. Return whether it has sent anything."""
        assert child.lifeline is not None
        heard = False
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while sent := child.lifeline.recv(65_536):
                heard = True
                *reports, child.unread = (child.unread + sent).split(b"\n")
                if self._observer is not None:
                    for report in filter(None, reports):
                        self._observer.reported(child.name, report)
        return heard

    def _stop(self) -> int:
        self._log.info("stopping workers")
        deadline = time.monotonic() + self._grace + 5.0
        running = [c.process for c in self._children if c.process is not None]
        while any(process.poll() is None for process in running):
            if self._passed_on < self._signals:
                self._passed_on += 1
                for process in running:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(signal.SIGTERM)
            for child in self._children:
                if child.lifeline is not None:
                    self._receive(child)
            if time.monotonic() > deadline or self._signals > 3:
                self._log.error("workers did not stop in time, killed")
                return _FAILED
            time.sleep(_POLL)
        codes = [process.returncode for process in running]
        self._log.info("workers stopped", codes=codes)
        # A process that SIGTERM ended had not installed its handler yet, and had taken nothing.
        return _FAILED if set(codes) - {0, -signal.SIGTERM} else 0

    def _close_lifeline(self, child: _Child) -> None:
        if child.lifeline is not None:
            # What a process sent before it died can still be read.
            self._receive(child)
            child.lifeline.close()
            child.lifeline, child.unread = None, b""
            if self._observer is not None:
                self._observer.ended(child.name)


class Lifeline:
    """The end of a supervised process's lifeline: reports, and notices when the supervisor died.

    ``number``: the file number of its socket.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._unsent = b""

    def send(self, report: bytes) -> bool:
        """Send one line to the supervisor. Return ``False`` and send nothing if it is busy.

        The supervisor reads what was sent even if this process dies at once. Thread-safe, does not
        block. Raises ``OSError`` when the supervisor is gone.
        """
        with self._lock:
            try:
                if self._unsent:
                    self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if self._unsent:
                    return False
                line = report + b"\n"
                self._unsent = line[self._socket.send(line) :]
            except BlockingIOError:
                return False
            return True

    def watch(self, beat: Callable[[], object] | None = None) -> None:
        """Call ``beat`` every second from a thread; end the process when the supervisor is gone.

        ``beat``: sends something by ``send``; an empty line by default.
        """
        beat = beat or (lambda: self.send(b""))

        def watch() -> None:
            orphaned = threading.Event()
            while not orphaned.wait(1.0):
                try:
                    beat()
                except OSError:
                    orphaned.set()
                    os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="eventsync-lifeline", daemon=True).start()
