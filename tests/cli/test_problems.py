"""What goes wrong for long is seen in ``health``, ``status``, ``top`` and the metrics.

Each state is made with real processes and foreign writers.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import free_port
from support.project import STORES, Cli
from support.waiting import eventually

STALL_AFTER = "3"
COUNT = 30
CAPTURED = STORES.replace(
    'SqlAccessor(Line, DATABASE, table="line", create=True),\n',
    'SqlAccessor(Line, DATABASE, table="line", create=True),\n        capture_every=0.2,\n',
)
CRASHING = """
import os, sys

if os.path.exists("crash") and "--lifeline" in sys.argv:
    sys.exit(3)
"""


class Place:
    """A supervised worker of store ``crm``, and the four places in which its state shows."""

    def __init__(self, cli: Cli, port: int) -> None:
        self.cli = cli
        self.url = f"http://127.0.0.1:{port}"

    def health(self) -> tuple[int, str]:
        """The exit code and the reasons of ``eventsync health``."""
        ran = self.cli("health", self.url)
        return ran.code, ran.err

    def status(self) -> tuple[int, list[dict[str, str]]]:
        """The exit code of ``eventsync status``, and the problems of the store."""
        ran = self.cli("status", "--json")
        return ran.code, ran.json["stores"]["crm"].get("problems", [])

    def top(self) -> str:
        """What ``eventsync top`` calls problems."""
        ran = self.cli("top", "--json", "--every", "0.5", "--endpoint", self.url)
        return "\n".join(ran.json["problems"])

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a metric with these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            given = all(f'{label}="{value}"' in line for label, value in labels.items())
            if line.startswith(f"{name}{{") and given:
                return float(line.rpartition(" ")[2])
        return None

    def pids(self) -> list[int]:
        """The worker processes."""
        with urllib.request.urlopen(f"{self.url}/live", timeout=10) as answer:
            return [worker["pid"] for worker in json.load(answer)["workers"]]


def sql(*statements: str) -> None:
    """Run statements in the database of ``crm``, as another program does."""
    with sqlite3.connect("crm.db", timeout=30) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.fixture
def place(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Run a supervised worker of ``crm`` that listens, with thirty people and thirty lines."""
    Path("workers.py").write_text(CAPTURED + CRASHING, encoding="utf-8")
    people = "\n".join(json.dumps({"id": n, "name": "x"}) for n in range(COUNT))
    cli("publish", "crm", "--type", "Person", input=people).check()
    lines = "\n".join(json.dumps({"order": n, "number": 1}) for n in range(COUNT))
    cli("publish", "crm", "--type", "Line", input=lines).check()
    cli.drain("documents", "report")
    monkeypatch.setenv("EVENTSYNC_STATE_DIR", "state")
    monkeypatch.setenv("EVENTSYNC_STALL_AFTER", STALL_AFTER)
    with working(cli) as place:
        eventually(lambda: place.health()[0] == 0)
        eventually(lambda: place.metric("eventsync_queue_messages", store="crm", queue="work") == 0)
        yield place


@contextmanager
def working(cli: Cli) -> Iterator[Place]:
    port = free_port()
    arguments = ("worker", "crm", "--processes", "1", "--listen", f"127.0.0.1:{port}")
    with Path("worker.log").open("w") as log:
        process = cli.start(
            *arguments, EVENTSYNC_STATE_DIR="state", EVENTSYNC_STALL_AFTER=STALL_AFTER, log=log
        )
    try:
        yield Place(cli, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def logged(event: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in Path("worker.log").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def assert_seen(place: Place, kind: str, type: str, text: str) -> None:
    """Assert that a problem shows in every place, with this text."""
    eventually(lambda: text in place.health()[1], what="health")
    assert place.health()[0] == 1
    eventually(
        lambda: any(one["kind"] == kind and text in one["text"] for one in place.status()[1]),
        what="status",
    )
    assert text in place.cli("status").check(1).err
    assert text in place.top()
    assert place.metric("eventsync_problem", store="crm", type=type, kind=kind) == 1


def assert_over(place: Place, kind: str, type: str) -> None:
    """Assert that a problem no longer shows anywhere."""
    eventually(lambda: place.health() == (0, ""), what=f"health: {place.health()}")
    assert place.metric("eventsync_problem", store="crm", type=type, kind=kind) == 0
    assert_fine(place)


def assert_fine(place: Place) -> None:
    """Assert that status and top show no problem."""
    place.cli.drain("documents", "report")
    eventually(lambda: place.status() == (0, []), what=f"status: {place.status()}")
    assert place.top() == ""


def test_a_tripped_delete_guard_is_seen(place: Place) -> None:
    """Most rows of a table are deleted; the command that the hint names ends the problem."""
    sql('DELETE FROM line WHERE number = 1 AND "order" >= 5')
    command = "eventsync sync --from crm --records Line --allow-deletes"
    assert_seen(place, "guard", "Line", command)
    # The other type is captured as before.
    sql("UPDATE person SET name = 'edited' WHERE id = 3")
    eventually(lambda: "edited" in drained(place), what="the edit of the other type")
    assert place.metric("eventsync_problem", store="crm", type="Person", kind="guard") == 0
    assert len(logged("capture blocked")) == 1
    place.cli(*command.split()[1:]).check()
    assert_over(place, "guard", "Line")
    with sqlite3.connect("crm.db") as connection:
        assert connection.execute("SELECT count(*) FROM line").fetchone() == (5,)
    connection.close()


def drained(place: Place) -> str:
    """Return the file of ``report`` after its worker has applied what waits."""
    place.cli("worker", "report", "--drain").check()
    return Path("report.csv").read_text()


def test_a_blocked_capture_is_seen(place: Place) -> None:
    """A table whose rows cannot be listed blocks the capture of its type, until it can."""
    sql("ALTER TABLE line RENAME TO line_before")
    assert_seen(place, "capture", "Line", "no such table")
    sql("ALTER TABLE line_before RENAME TO line")
    assert_over(place, "capture", "Line")


def test_an_emptied_table_is_seen(place: Place) -> None:
    """A table loses all its rows; nothing is deleted elsewhere, and the hint fills it again."""
    drained(place)
    sql("DELETE FROM person")
    command = "eventsync sync --to crm --records Person"
    assert_seen(place, "guard", "Person", command)
    assert_seen(place, "loss", "Person", command)
    assert drained(place).count("\n") == COUNT + 1
    place.cli(*command.split()[1:]).check()
    assert_over(place, "guard", "Person")
    with sqlite3.connect("crm.db") as connection:
        assert connection.execute("SELECT count(*) FROM person").fetchone() == (COUNT,)
    connection.close()


def test_a_worker_that_crashes_again_and_again_is_seen(place: Place) -> None:
    """Its processes end as soon as they are started; the exit code shows in each place."""
    Path("crash").touch()
    for pid in place.pids():
        os.kill(pid, signal.SIGKILL)
    text = "in a row, the last time with exit code 3"
    eventually(lambda: text in place.health()[1], what="health")
    assert place.health()[0] == 1
    eventually(lambda: any(text in one["text"] for one in place.status()[1]), what="status")
    assert place.status()[0] == 1
    assert text in place.top()
    assert place.metric("eventsync_workers", store="crm") == 0
    starts = place.metric("eventsync_worker_starts_total", store="crm")
    assert starts is not None
    assert starts >= 4
    Path("crash").unlink()
    # The next process works: it settles a message.
    place.cli("publish", "report", "--type", "Person", input='{"id": 99, "name": "y"}').check()
    eventually(lambda: place.health()[0] == 0, timeout=60, what="health")
    assert_fine(place)


def has_noted_progress() -> bool:
    """Return whether the worker has noted its progress in the index of its store."""
    with sqlite3.connect("crm.db", timeout=30) as connection:
        query = "SELECT count(*) FROM eventsync_mark WHERE name = 'worker/progress'"
        (count,) = connection.execute(query).fetchone()
    connection.close()
    return bool(count)


def test_a_store_that_does_not_apply_although_work_waits_is_seen(place: Place) -> None:
    """The worker process is suspended; what waits for it is told in each place."""
    eventually(has_noted_progress)
    (pid,) = place.pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        place.cli("publish", "report", "--type", "Person", input='{"id": 98, "name": "z"}').check()
        eventually(lambda: "none was settled for" in place.health()[1], what="health")
        eventually(lambda: place.status()[0] == 1, what="status")
        (problem,) = place.status()[1]
        assert problem["kind"] == "stall"
        assert "none was settled for" in problem["text"]
        assert "none was settled for" in place.top()
        waiting = place.metric("eventsync_queue_messages", store="crm", queue="work")
        assert waiting is not None
        assert waiting >= 1
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: place.health() == (0, ""), what="health")
    assert_fine(place)
