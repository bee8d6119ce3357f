"""The supervisor: runs worker processes, and restarts each process that ends or hangs."""

from __future__ import annotations

import contextlib
import errno
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
_SCARCE: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors of a system that has no more processes, memory or open files at the moment."""


class ProcessObserver(Protocol):
    """Receives events about the processes of a ``Supervisor``.

    ``name``: the name of the command that the process runs.
    """

    def started(self, name: str, /) -> None:
        """Handle that a process was started."""

    def reported(self, name: str, report: bytes, /) -> None:
        """Handle one report that a process has sent over its lifeline."""

    def ended(self, name: str, /) -> None:
        """Handle that a process has ended. No more reports of this process follow."""

    def restarting(self, name: str, code: int, failures: int, /) -> None:
        """Handle that an ended process is about to be restarted.

        ``code``: the exit code of the process. ``failures``: how many processes of this command in
        a row ended with an error.
        """


@dataclass(slots=True)
class _Child:
    """One command, and the process that currently runs it, if any.

    ``started``, ``heard``: when the process was started and when it last sent something.
    ``start_at``: when to start the next process. These times are on the monotonic clock.
    ``failures``: the number of recent exits with an error. ``unread``: an incomplete report.
    """

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
    """Runs each command in its own process until SIGTERM or SIGINT, and restarts ended processes.

    ``commands``: the argument lists by name. The text ``{lifeline}`` in an argument is replaced by
    the file descriptor of the process's ``Lifeline``. A process that ends with exit code 0 is
    restarted at once. After another exit code there is a pause, which doubles with each failure up
    to 30 seconds, as it does if the system has no process left to start; a process that has run for
    a minute resets the pause. A process that sends
    nothing over its lifeline for ``silence`` seconds is killed and restarted.

    After SIGTERM or SIGINT, the supervisor sends SIGTERM to the processes. It kills those that
    still run five seconds after ``grace`` seconds, or at the fourth signal. If the supervisor dies,
    the processes detect this by their lifelines and stop. ``environment``: the environment of the
    processes; by default that of the supervisor. ``observer``: called when a process starts,
    reports or ends. ``each``: called every second, for example to write a state file; if it raises
    an ``OSError``, the error is logged. Use this class only in the main thread.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        grace: float,
        silence: float = 30.0,
        observer: ProcessObserver | None = None,
        each: Callable[[], None] = lambda: None,
        log: Any = None,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = environment
        self._grace = grace
        self._silence = silence
        self._observer = observer
        self._each = each
        self._each_at = 0.0
        self._each_failed = ""
        self._log = log or structlog.get_logger("eventsync.supervisor")
        self._signals = 0
        self._passed_on = 0

    def run(self) -> int:
        """Run the commands until a signal; return the exit code.

        The exit code is 0 if all processes ended without an error after the signal.
        """
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while not self._signals:
                self.step()
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

    def step(self) -> None:
        """Look after each process once: start it, read its reports, notice its end. Do not block.

        ``run`` calls this method again and again.
        """
        for child in self._children:
            self._check(child)
        self._report_state()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _report_state(self) -> None:
        now = time.monotonic()
        if now < self._each_at:
            return
        self._each_at = now + 1.0
        try:
            self._each()
            self._each_failed = ""
        except OSError as error:
            if str(error) != self._each_failed:
                self._each_failed = str(error)
                self._log.warning("supervisor status not reported", error=self._each_failed)

    def _check(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        if (code := child.process.poll()) is not None:
            self._note_end(child, code, "worker ended, restarting")
        elif self._receive(child):
            child.heard = now
        elif now - child.heard > self._silence:
            self._log.error("worker unresponsive, killed", worker=child.name, pid=child.process.pid)
            child.process.kill()

    def _note_end(self, child: _Child, code: int, event: str) -> None:
        now = time.monotonic()
        if now - child.started > _STABLE:
            child.failures = 0
        wait = 0.0
        if code:
            child.failures += 1
            wait = _RESTART_BACKOFF.pause(child.failures)
        log = self._log.warning if code else self._log.info
        log(event, worker=child.name, code=code, wait=round(wait, 2))
        self._close_lifeline(child)
        child.process, child.start_at = None, now + wait
        if self._observer is not None:
            self._observer.restarting(child.name, code, child.failures if code else 0)

    def _start(self, child: _Child) -> None:
        try:
            child.process, child.lifeline = self._spawn(child.command)
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            child.failures += 1
            wait = _RESTART_BACKOFF.pause(child.failures)
            child.start_at = time.monotonic() + wait
            self._log.error(
                "worker process not started, retrying",
                worker=child.name,
                error=str(error),
                wait=round(wait, 2),
            )
            return
        child.started = child.heard = time.monotonic()
        if self._observer is not None:
            self._observer.started(child.name)
        self._log.info("worker process started", worker=child.name, pid=child.process.pid)

    def _spawn(self, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start a process, and return it with our end of its lifeline."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            number = theirs.fileno()
            try:
                process = subprocess.Popen(
                    [part.replace("{lifeline}", str(number)) for part in command],
                    env=None if self._environment is None else dict(self._environment),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(number,),
                    # In a new session, so that Ctrl-C on a terminal signals only the supervisor,
                    # which then sends SIGTERM to each process once.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

    def _receive(self, child: _Child) -> bool:
        """Read all data that a process has sent, and pass complete reports to the observer.

        Returns whether the process has sent anything. Does not block.
        """
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
        for child in self._children:
            # A process that ended by itself before the signal says nothing about the stop.
            if child.process is not None and (code := child.process.poll()) is not None:
                self._note_end(child, code, "worker ended")
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
        # A process killed by SIGTERM had not installed its handler yet, and had taken no messages.
        return _FAILED if set(codes) - {0, -signal.SIGTERM} else 0

    def _close_lifeline(self, child: _Child) -> None:
        if child.lifeline is not None:
            # Data that the process sent before it ended can still be read.
            self._receive(child)
            child.lifeline.close()
            child.lifeline, child.unread = None, b""
            if self._observer is not None:
                self._observer.ended(child.name)


class Lifeline:
    """The connection of a supervised process to its supervisor.

    The process sends reports over the lifeline, and detects by it that the supervisor has died.
    ``number``: the file descriptor of the socket.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._unsent = b""

    def send(self, report: bytes) -> bool:
        """Send one report, without line breaks, to the supervisor and return True.

        If the supervisor is too busy to read, sends nothing and returns False. The supervisor
        receives a sent report even if this process dies right after. Thread-safe, does not block.
        Raises ``OSError`` if the supervisor has died.
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
        """Start a thread that calls ``beat`` every second and detects that the supervisor has died.

        The thread then sends SIGTERM to this process. ``beat``: must call ``send``; by default it
        sends an empty report.
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
