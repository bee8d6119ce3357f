"""The watchdog: which workers it ends."""

from __future__ import annotations

import faulthandler
import queue
import subprocess
import sys
from types import SimpleNamespace

import pytest

from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.watchdog import Watchdog

WATCHED = """
import sys, time, threading
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.watchdog import Watchdog

progress = WorkerStatus("crm")
if sys.argv[1] == "open":
    progress.circuit.open(OSError("away"))
if sys.argv[1] == "pause":
    progress.beat(pause=60)
Watchdog(progress, stall_after=0.4).start()
end = time.monotonic() + 1.6
def call():
    time.sleep(0.05)
if sys.argv[1] == "hung":
    threading.Event().wait(30)
elif sys.argv[1] == "slow":
    while time.monotonic() < end:
        call()
elif sys.argv[1] == "stuck":
    while True:
        call()
else:
    time.sleep(1.6)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [("hung", 71), ("stuck", 71), ("open", 0), ("pause", 0), ("slow", 0)]
)
def test_watchdog(how, code):
    """A hanging call ends the process with its stacks; a slow or unreachable store does not."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, how], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "most recent call first" in done.stderr


def test_what_fails_beside_the_watchdog_does_not_end_it(monkeypatch):
    """Without a thread for its timer, and with a failing report, a hung worker is still ended."""
    codes = queue.SimpleQueue()
    warnings = queue.SimpleQueue()

    def no_thread(*_, **__):
        raise RuntimeError("unable to start watchdog thread")

    def report():
        raise ValueError("odd")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", no_thread)
    log = SimpleNamespace(warning=lambda what, **_: warnings.put(what), error=lambda *_, **__: None)
    watchdog = Watchdog(WorkerStatus("crm"), stall_after=0.2, each=report, exit=codes.put, log=log)
    watchdog.start()
    assert codes.get(timeout=10) == 71
    logged = [warnings.get() for _ in range(warnings.qsize())]
    assert sorted(logged) == ["timer of the watchdog not set", "worker status not reported"]
