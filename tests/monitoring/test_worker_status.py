"""The status of a worker, and its state file."""

from __future__ import annotations

import json
import subprocess

from eventsync.monitoring.worker_status import StateFile, WorkerStatus, read_states


def test_state_file(tmp_path):
    """A state file holds the status of a running worker and is removed with it."""
    progress = WorkerStatus("crm")
    progress.settled(3)
    file = StateFile(tmp_path / "state", progress)
    file.write()
    (state,) = read_states(tmp_path / "state")
    assert (state["store"], state["messages"], state["circuit"]["state"]) == ("crm", 3, "closed")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "state" / f"worker-crm-{dead.pid}.json").write_text(json.dumps({"pid": dead.pid}))
    assert len(list(read_states(tmp_path / "state"))) == 1
    file.remove()
    assert list((tmp_path / "state").iterdir()) == []
