"""``eventsync demo``: its numbers are counted and add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_demo(tmp_path: Path) -> None:
    """At the end all stores agree, nothing is lost, and every change is counted once."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("EVENTSYNC_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "eventsync", "demo", "played", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["problems"] == []
    assert answer["differing"] == answer["lost"] == 0
    assert answer["dead_lettered"] == 2
    assert answer["superseded"] > 0
    assert answer["kills"] == 1
    assert answer["messages_in_hand_when_killed"] > 0
    assert set(answer["stores"]) == {"lab", "stockroom", "site"}
    for totals in answer["stores"].values():
        assert sum(totals["counts"].values()) == answer["published"]
    records = {name: totals["records"] for name, totals in answer["stores"].items()}
    assert records == {"lab": 119, "stockroom": 119, "site": 81}
    assert "SIGKILL" in done.stderr
    # The reader can go on from there, and the other end of the comparison is looked at, too.
    played = tmp_path / "played"
    row = subprocess.run(
        [sys.executable, "-m", "eventsync", "get", "Element", "79", "--json", "--exit-code"],
        cwd=played,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    gold = json.loads(row.stdout)
    assert gold["merged"]["remark"] == "Au, from aurum"
    assert json.loads((played / "site" / "79.json").read_text())["remark"] == "Au, from aurum"


def test_demo_wants_a_fresh_folder(tmp_path: Path) -> None:
    """The demo refuses a folder that is not empty, and changes nothing in it."""
    (tmp_path / "mine").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "eventsync", "demo", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_lost_changes_are_noticed() -> None:
    """A change without a logged outcome counts as lost; the others count by their outcome."""
    from eventsync.cli.demo.ledger import totals_of

    events = [
        {"event": "applied", "version": "a"},
        {"event": "duplicate", "version": "a"},
        {"event": "stale", "version": "b"},
        {"event": "duplicate", "version": "c"},
        {"event": "dead letter", "version": "d"},
        {"event": "dead letter"},
        {"event": "worker started"},
        {"event": "applied", "version": "nobody's"},
    ]
    totals = totals_of(events, ["a", "b", "c", "d", "e"])
    assert totals.counts == {
        "applied": 1,
        "superseded": 1,
        "already there": 1,
        "dead-lettered": 1,
        "lost": 1,
    }
    assert (totals.again, totals.foreign) == (1, 1)


@pytest.mark.parametrize("column", ["number", "symbol", "name"])
def test_elements_are_all_there(column: str) -> None:
    """The data of the demo are 118 different elements."""
    import csv

    path = ROOT / "eventsync" / "cli" / "demo" / "folder" / "elements.csv"
    with path.open(encoding="utf-8", newline="") as file:
        values = [row[column] for row in csv.DictReader(file)]
    assert len(set(values)) == len(values) == 118
