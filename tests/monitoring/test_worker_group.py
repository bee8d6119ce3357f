"""The worker group: the reports of workers in other processes."""

from __future__ import annotations

import signal
import subprocess
import sys

from support.scraping import polled, scrape
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_group import StatusReporter, WorkerGroup
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.supervisor import Supervisor

REPORTING = """
import os, signal, sys
from eventsync.monitoring import catalogue
from eventsync.monitoring.worker_group import StatusReporter
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.supervisor import Lifeline
from eventsync.monitoring.counters import Counters
counters = Counters()
reporter = StatusReporter(counters, WorkerStatus("crm"), Lifeline(int(sys.argv[1])).send)
for number in range(100):
    counters.add(catalogue.MESSAGES, 2, "crm")
    reporter.report()
    counters.observe(catalogue.BATCH, number, "crm")
reporter.report()
open(sys.argv[2], "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_takes_no_counts_along(tmp_path):
    """What a process reported before it was killed is counted, and its gauges are removed."""
    (tmp_path / "reporting.py").write_text(REPORTING)
    workers = WorkerGroup()
    done = tmp_path / "done"
    command = [sys.executable, str(tmp_path / "reporting.py"), "{lifeline}", str(done)]
    supervisor = Supervisor({"crm-1": command}, grace=1.0, observer=workers)
    supervisor.step()
    eventually(done.exists)
    counts = [count for one, _, count in workers.counters.totals() if one is catalogue.MESSAGES]
    assert not counts
    codes = []
    workers.restarting = lambda name, code, failures: codes.append(code)

    def has_ended():
        supervisor.step()
        return codes

    eventually(has_ended)
    assert codes == [-signal.SIGKILL]
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        found = scrape(workers, polled(bus, []))
    assert found["eventsync_worker_starts_total", "crm", "crm-1"] == 1
    assert not [name for name, *_ in found if name.startswith("eventsync_worker_memory")]
    assert found["eventsync_messages_total", "crm"] == 200
    assert found["eventsync_batch_changes_count", "crm"] == 100


def test_report_that_cannot_be_sent_goes_with_the_next():
    """A report that cannot be sent is contained in the next one."""
    sent, listens = [], False
    counters = Counters()

    def send(line):
        if listens:
            sent.append(line)
        return listens

    reporter = StatusReporter(counters, WorkerStatus("crm"), send)
    for _ in range(3):
        counters.add(catalogue.MESSAGES, 1, "crm")
        reporter.report()
    listens = True
    reporter.report()
    workers = WorkerGroup()
    for line in sent:
        workers.reported("crm-1", line)
    assert list(workers.counters.totals()) == [(catalogue.MESSAGES, ("crm",), 3)]


def test_the_extra_is_named():
    """Without the library the error names the extra to install."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import eventsync.monitoring.exporters.prometheus"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "pip install 'eventsync[metrics]'" in ran.stderr.splitlines()[-1]
