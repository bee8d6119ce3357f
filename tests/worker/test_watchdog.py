"""The watchdog: which workers it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
