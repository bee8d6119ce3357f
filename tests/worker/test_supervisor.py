"""The supervisor: processes that are killed, suspended, stopped, or left without it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from structlog.testing import CapturingLogger
from support.waiting import eventually

from eventsync.worker.supervisor import Supervisor

CHILD = """
import signal, sys, time, os
from eventsync.worker.supervisor import Lifeline
Lifeline(int(sys.argv[1])).watch()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(sys.argv[2], "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(0.05)
"""
MAIN = """
import sys
from eventsync.worker.supervisor import Supervisor
command = [sys.executable, "child.py", "{lifeline}", "pids"]
sys.exit(Supervisor({"a": command, "b": command}, grace=5.0, silence=2.5).run())
"""


class Supervised:
    def __init__(self, folder):
        self.folder = folder
        (folder / "child.py").write_text(CHILD)
        (folder / "main.py").write_text(MAIN)
        self.process = subprocess.Popen(
            [sys.executable, "main.py"], cwd=folder, stdout=subprocess.DEVNULL
        )

    def started(self):
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def supervised(tmp_path):
    supervised = Supervised(tmp_path)
    try:
        eventually(lambda: len(supervised.started()) == 2)
        yield supervised
    finally:
        supervised.process.kill()
        supervised.process.wait()
        for pid in supervised.started():
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def test_killed_child_is_started_again(supervised):
    """A child that is killed is replaced, and the other one keeps running."""
    first, second = supervised.started()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(supervised.started()) == 3)
    assert lives(second)
    assert lives(supervised.started()[-1])


def test_stopped_child_is_noticed(supervised):
    """A child that is suspended sends nothing, is killed and replaced."""
    first, _ = supervised.started()
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: len(supervised.started()) == 3)
    assert not lives(first)


def test_sigterm_ends_all_processes(supervised):
    """SIGTERM is passed on, and the supervisor ends with 0 when all processes have."""
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(10) == 0
    assert not any(map(lives, supervised.started()))


def test_a_child_that_was_killed_before_the_signal_is_no_fault_of_the_stop(supervised):
    """The supervisor ends with 0 though it notices the killed child only after its own signal."""
    first, _ = supervised.started()
    os.kill(supervised.process.pid, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not lives(first))
    os.kill(supervised.process.pid, signal.SIGTERM)
    os.kill(supervised.process.pid, signal.SIGCONT)
    assert supervised.process.wait(timeout=20) == 0


def test_children_notice_that_they_are_alone(supervised):
    """When the supervisor is killed its children stop."""
    supervised.process.kill()
    supervised.process.wait()
    eventually(lambda: not any(map(lives, supervised.started())))


class Watching:
    """An observer that notes the restarts, with the time of each."""

    def __init__(self):
        self.restarts = []

    def started(self, name):
        """Do nothing."""

    def reported(self, name, report):
        """Do nothing."""

    def ended(self, name):
        """Do nothing."""

    def restarting(self, name, code, failures):
        self.restarts.append((name, code, failures, time.monotonic()))


def test_failing_child_is_started_ever_more_seldom():
    """A child that fails at once is restarted after longer and longer pauses."""
    command = [sys.executable, "-c", "import sys; sys.exit(3)", "{lifeline}"]
    watching = Watching()
    supervisor = Supervisor({"a": command}, grace=1.0, observer=watching)

    def has_failed_four_times():
        supervisor.step()
        return len(watching.restarts) >= 4

    eventually(has_failed_four_times)
    assert [restart[:3] for restart in watching.restarts] == [("a", 3, n) for n in (1, 2, 3, 4)]
    times = [restart[3] for restart in watching.restarts]
    assert times[3] - times[2] > 0.3


def test_a_state_file_that_cannot_be_written_stops_nothing():
    """An error of the report about the processes is logged once, and they are looked after."""
    command = [sys.executable, "-c", "pass", "{lifeline}"]
    log, watching = CapturingLogger(), Watching()

    def full():
        raise OSError("no space left")

    supervisor = Supervisor({"a": command}, grace=1.0, observer=watching, each=full, log=log)

    def has_run_twice():
        supervisor.step()
        return len(watching.restarts) >= 2

    eventually(has_run_twice)
    warnings = [call for call in log.calls if call.args == ("supervisor status not reported",)]
    assert len(warnings) == 1
    assert [failures for _, _, failures, _ in watching.restarts[:2]] == [0, 0]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_system_without_processes(monkeypatch, number):
    """If the system has no process left, the supervisor goes on and tries again."""
    start, tries = subprocess.Popen, []

    def spawn(*arguments, **options):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(number, "no more")
        supervisor._signals = 1  # as SIGTERM does
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", spawn)
    supervisor = Supervisor({"a": [sys.executable, "-c", ""]}, grace=5.0)
    assert supervisor.run() == 0
    assert len(tries) == 3
