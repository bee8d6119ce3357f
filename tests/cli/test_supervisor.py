"""The supervisor with real processes that are killed, frozen, stopped or orphaned."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from servers import eventually

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


class Family:
    """A supervisor process with two children."""

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
def family(tmp_path):
    family = Family(tmp_path)
    try:
        eventually(lambda: len(family.started()) == 2)
        yield family
    finally:
        family.process.kill()
        family.process.wait()
        for pid in family.started():
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def test_killed_child_is_started_again(family):
    """A killed child is restarted, and the other child keeps running."""
    first, second = family.started()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(family.started()) == 3)
    assert lives(second)
    assert lives(family.started()[-1])


def test_stopped_child_is_noticed(family):
    """A frozen child is killed and restarted."""
    first, _ = family.started()
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: len(family.started()) == 3)
    assert not lives(first)


def test_sigterm_ends_all_in_peace(family):
    """SIGTERM is passed on, and the supervisor ends with 0 when all children have ended with 0."""
    family.process.send_signal(signal.SIGTERM)
    assert family.process.wait(10) == 0
    assert not any(map(lives, family.started()))


def test_children_notice_that_they_are_alone(family):
    """The children stop when the supervisor is killed."""
    family.process.kill()
    family.process.wait()
    eventually(lambda: not any(map(lives, family.started())))


@pytest.mark.slow
def test_supervised_workers_of_a_project(cli):
    """``worker --processes 2`` applies changes although one is killed, and ends with 0."""
    supervisor = cli.start("worker", "report", "--processes", "2")
    try:
        pids = []
        while len(pids) < 2:
            line = json.loads(supervisor.stderr.readline())
            if line["event"] == "worker started":
                pids.append(line["pid"])
        os.kill(pids[0], signal.SIGKILL)
        cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
        report = cli.folder / "report.csv"
        eventually(lambda: report.exists() and "Ann" in report.read_text())
        supervisor.send_signal(signal.SIGTERM)
        _, err = supervisor.communicate(timeout=30)
    finally:
        supervisor.kill()
        supervisor.communicate()
    assert supervisor.returncode == 0, err
    assert re.search(r'"event": "worker ended: restarting"', err)


def test_failing_child_is_started_ever_more_seldom(tmp_path):
    """A child that fails at once is restarted with growing pauses."""
    command = [sys.executable, "-c", "import sys; sys.exit(3)", "{lifeline}"]
    supervisor = Supervisor({"a": command}, grace=1.0)
    child = supervisor._children[0]
    deadline = time.monotonic() + 20
    while child.failures < 3:
        supervisor._look_after(child)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert child.start_at - time.monotonic() > 0.3
