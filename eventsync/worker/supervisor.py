"""The supervisor: keeps worker processes running, each started anew when it ends.

It owns the processes, their lifelines and the pace of restarts. It must not know what they do, nor
what they report.
"""

from __future__ import annotations

import contextlib
import os
import random
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

__all__ = ["Audience", "Lifeline", "Supervisor"]

_LOOK: Final = 0.05
_STABLE: Final = 60.0
_LONGEST_WAIT: Final = 30.0
_FAILED: Final = 70


class Audience(Protocol):
    """Who is told of the processes, by the names of their places."""

    def started(self, name: str, /) -> None:
        """A process was started."""

    def heard(self, name: str, report: bytes, /) -> None:
        """A process reported something at its lifeline."""

    def left(self, name: str, /) -> None:
        """A process has ended; all that it reported was heard."""


@dataclass(slots=True)
class _Child:
    """One place in the crew, whoever fills it at the moment."""

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
    """Runs commands as processes of their own until SIGTERM or SIGINT.

    ``commands``: by name, each with ``{lifeline}`` where the number of its lifeline goes. A process
    that ends with 0 is started again at once (it was recycled), any other with exponential backoff
    up to 30 seconds, which begins anew after a minute of life. One that has given no sign of life
    for ``silence`` seconds is killed and started again. A signal is passed on; after ``grace``
    seconds, or some more signals, those left are killed. Should the supervisor die, its processes
    notice at their lifelines and stop. ``audience`` is told of them. For the main thread.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        grace: float,
        silence: float = 30.0,
        audience: Audience | None = None,
        log: Any = None,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = environment
        self._grace = grace
        self._silence = silence
        self._audience = audience
        self._log = log or structlog.get_logger("eventsync.supervisor")
        self._signals = 0
        self._passed_on = 0

    def run(self) -> int:
        """Work until told to stop; the exit code: 0 if all processes left in peace."""
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while not self._signals:
                for child in self._children:
                    self._look_after(child)
                time.sleep(_LOOK)
            return self._stop()
        finally:
            for child in self._children:
                if child.process is not None and child.process.poll() is None:
                    child.process.kill()
                    child.process.wait()
                self._let_go(child)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            if self._hears(child):
                child.heard = now
            elif now - child.heard > self._silence:
                self._log.error(
                    "worker gives no sign of life: killed", worker=child.name, pid=child.process.pid
                )
                child.process.kill()
            return
        if now - child.started > _STABLE:
            child.failures = 0
        wait = 0.0
        if code:
            wait = min(_LONGEST_WAIT, 0.2 * 2.0 ** min(child.failures, 10))
            wait *= random.uniform(0.5, 1.0)
            child.failures += 1
        tell = self._log.warning if code else self._log.info
        tell("worker ended: restarting", worker=child.name, code=code, wait=round(wait, 2))
        self._let_go(child)
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
                # Ctrl-C on a terminal is for the supervisor, which passes it on once.
                start_new_session=True,
            )
        child.lifeline = ours
        child.started = child.heard = time.monotonic()
        if self._audience is not None:
            self._audience.started(child.name)
        self._log.info("worker process started", worker=child.name, pid=child.process.pid)

    def _hears(self, child: _Child) -> bool:
        """Take in all that a child has sent until now; whether it has sent anything."""
        assert child.lifeline is not None
        heard = False
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while sent := child.lifeline.recv(65_536):
                heard = True
                *reports, child.unread = (child.unread + sent).split(b"\n")
                if self._audience is not None:
                    for report in filter(None, reports):
                        self._audience.heard(child.name, report)
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
                    self._hears(child)
            if time.monotonic() > deadline or self._signals > 3:
                self._log.error("workers did not leave in time: killed")
                return _FAILED
            time.sleep(_LOOK)
        codes = [process.returncode for process in running]
        self._log.info("workers stopped", codes=codes)
        # One that was told before it could listen had taken nothing.
        return _FAILED if set(codes) - {0, -signal.SIGTERM} else 0

    def _let_go(self, child: _Child) -> None:
        if child.lifeline is not None:
            # What a process has sent is there although it has died.
            self._hears(child)
            child.lifeline.close()
            child.lifeline, child.unread = None, b""
            if self._audience is not None:
                self._audience.left(child.name)


class Lifeline:
    """A supervised process's end of the lifeline: says that it lives, notices when it is alone."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._unsent = b""

    def send(self, report: bytes) -> bool:
        """Report one line to the supervisor; ``False``, and nothing sent, if it does not listen.

        What was sent is heard even if this process dies at once. Thread-safe, does not block.
        Raises ``OSError`` when there is no supervisor any more.
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
        """Beat every second from a thread, for as long as the process lives.

        ``beat``: does so by ``send``; by default with nothing to report.
        """
        beat = beat or (lambda: self.send(b""))

        def watch() -> None:
            alone = threading.Event()
            while not alone.wait(1.0):
                try:
                    beat()
                except OSError:
                    alone.set()
                    os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="eventsync-lifeline", daemon=True).start()
