"""The supervisor: keeps worker processes running, each started anew when it ends.

It owns the processes, their lifelines and the pace of restarts. It must not know what they do.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import structlog

__all__ = ["Lifeline", "Supervisor"]

_LOOK: Final = 0.05
_STABLE: Final = 60.0
_LONGEST_WAIT: Final = 30.0
_FAILED: Final = 70


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


class Supervisor:
    """Runs commands as processes of their own until SIGTERM or SIGINT.

    ``commands``: by name, each with ``{lifeline}`` where the number of its lifeline goes. A process
    that ends with 0 is started again at once (it was recycled), any other with exponential backoff
    up to 30 seconds, which begins anew after a minute of life. One that has given no sign of life
    for ``silence`` seconds is killed and started again. A signal is passed on; after ``grace``
    seconds, or some more signals, those left are killed. Should the supervisor die, its processes
    notice at their lifelines and stop. For the main thread.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        grace: float,
        silence: float = 30.0,
        log: Any = None,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = environment
        self._grace = grace
        self._silence = silence
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
        self._log.info("worker process started", worker=child.name, pid=child.process.pid)

    def _hears(self, child: _Child) -> bool:
        assert child.lifeline is not None
        try:
            return bool(child.lifeline.recv(4096))
        except (BlockingIOError, ConnectionResetError):
            return False

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
            if time.monotonic() > deadline or self._signals > 3:
                self._log.error("workers did not leave in time: killed")
                return _FAILED
            time.sleep(_LOOK)
        codes = [process.returncode for process in running]
        self._log.info("workers stopped", codes=codes)
        # One that was told before it could listen had taken nothing.
        return _FAILED if set(codes) - {0, -signal.SIGTERM} else 0

    @staticmethod
    def _let_go(child: _Child) -> None:
        if child.lifeline is not None:
            child.lifeline.close()
            child.lifeline = None


class Lifeline:
    """A supervised process's end of the lifeline: says that it lives, notices when it is alone."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)

    def watch(self) -> None:
        """Beat every second from a thread, for as long as the process lives."""

        def watch() -> None:
            alone = threading.Event()
            while not alone.wait(1.0):
                try:
                    self._socket.send(b".")
                except OSError:
                    alone.set()
                    os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="eventsync-lifeline", daemon=True).start()
