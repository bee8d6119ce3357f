"""``eventsync status`` shows the workers of its host."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.project import Cli

from eventsync.errors import StoreUnavailableError
from eventsync.monitoring.worker_status import StateFile, WorkerStatus


def test_status_shows_workers_and_circuits(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder of state files, running workers are shown with their circuit breaker."""
    assert "workers" not in cli("status", "--json").json["stores"]["crm"]
    folder = Path("state")
    monkeypatch.setenv("EVENTSYNC_STATE_DIR", str(folder))
    progress = WorkerStatus("crm")
    progress.settled(1200)
    progress.beat("waiting")
    progress.circuit.open(StoreUnavailableError("the database is away"))
    file = StateFile(folder, progress)
    file.write()
    (folder / "worker-crm-999999999.json").write_text('{"pid": 999999999, "store": "crm"}')
    stores = cli("status", "--json").check().json["stores"]
    (worker,) = stores["crm"]["workers"]
    assert (worker["messages"], worker["circuit"]["state"]) == (1200, "open")
    assert stores["report"]["workers"] == []
    shown = cli("status").check()
    (line,) = [line for line in shown.out.splitlines() if " open " in line]
    assert line.split()[0] == "crm"
    assert "1,200" in line
    assert "the database is away" in shown.err
