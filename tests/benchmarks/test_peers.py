"""What the comparison with others rests on: that theirs is right, and the figures are.

The peers themselves are not run here: they need packages of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.customer import rows
from benchmarks.peer.batch import made
from benchmarks.peer.result import Taken, compared, left_out, spent
from benchmarks.peer.source import commit_by_server
from benchmarks.peer.target import Target, create, warm_row
from servers.postgres import PostgresServer
from sqlalchemy import create_engine

PEER = Path(__file__).parent / "peer"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as running:
        yield running


@pytest.fixture
def target(server):
    """The table of customers, empty."""
    create(server.url)
    with Target(server.url) as reached:
        yield reached


@pytest.mark.server
@pytest.mark.parametrize("way", ["merge", "upsert"])
def test_written_by_hand_the_last_change_of_each_record_stands(server, target, way, monkeypatch):
    """Half of the changes are of records that came before, and all are right in the end."""
    monkeypatch.syspath_prepend(PEER / "program")
    import by_hand

    engine = create_engine(server.url)
    changes = rows(60, seed=3)
    for row in [warm_row(), *changes]:
        getattr(by_hand, way)(engine, row)
    engine.dispose()
    target.wait(changes[-1], timeout=5.0)
    assert target.wrong(changes) == 0


@pytest.mark.server
@pytest.mark.parametrize("size", [1, 7])
def test_a_backlog_made_by_the_server_holds_the_same_changes(server, target, size):
    """Committed inside the server, in transactions of any size, in the order given."""
    changes = rows(50, seed=4)
    commit_by_server(changes, server, size)
    target.wait(changes[-1], timeout=5.0)
    assert target.wrong(changes) == 0


@pytest.mark.server
def test_a_record_that_is_wrong_missing_or_too_many_is_counted(server, target):
    """What a peer leaves behind is not taken on trust."""
    changes = rows(20, seed=5)
    commit_by_server(changes, server, 20)
    target.wait_for_first(timeout=5.0)
    with pytest.raises(TimeoutError, match="was not applied within"):
        target.wait(warm_row(), timeout=0.05)
    assert target.wrong([*changes, changes[3] | {"visits": -1}]) == 1
    assert target.wrong([*changes, changes[3] | {"id": 999}]) == 1
    assert target.wrong(changes[1:]) == (changes[0]["id"] not in {r["id"] for r in changes[1:]})


def test_a_batch_changes_half_of_its_records_and_adds_the_others():
    """Each record is in it once, so that rows are events."""
    before, batch = made(20)
    assert sorted(row["id"] for row in batch) == list(range(20))
    assert [row["id"] for row in before] == list(range(10))
    assert not {row["token"] for row in before} & {row["token"] for row in batch}


def test_a_line_says_how_many_times_as_fast_and_what_was_left_wrong():
    """The ratio is eventsync's rate by the peer's; a peer that was not run has the same keys."""
    line = compared(
        "p", "c", Taken(100, 2.0, 1.0, wrong=3), Taken(1000, 1.0, 0.5, 0), broker="b", note="n"
    )
    assert (line["peer_per_s"], line["eventsync_per_s"], line["ratio"]) == (50, 1000, 20.0)
    assert line["note"] == "p left 3 records wrong; n"
    missing = left_out("p", "there is no Java")
    assert missing.keys() == line.keys()
    assert missing["note"] == "not run: there is no Java"
    assert missing["ratio"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_processor_time_of_processes_that_have_ended_counts():
    """A child that worked and was waited for is in the sum."""
    before = spent()
    work = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", work], check=True)
    assert spent() - before >= 0.25
