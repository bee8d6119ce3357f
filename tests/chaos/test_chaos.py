"""The chaos harnesses, in short: seeded faults, and nothing lost or differing in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script, *arguments):
    """Run a harness as the documentation says; its report."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=HERE.parent.parent
    )
    if "is not installed" in ran.stderr and not os.environ.get("CI"):
        pytest.skip(ran.stderr.splitlines()[-1])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_workers_lose_nothing():
    """Workers killed at random moments over three unlike stores: all equal the model."""
    report = run("chaos.py", "--events", 2000, "--kills", 15, "--seed", 11)
    assert report["faults"]["kill"] == 15
    assert report["published"] > 1500
    assert (report["differing"], report["pending"], report["sound"]) == (0, 0, True)


@pytest.mark.slow
def test_a_broken_broker_loses_nothing():
    """Redis, killed, and reached over connections that break, while workers and stores fail too."""
    faults = ["pause", "term", "kill-producer", "reset", "hole", "truncate", "step-clock"]
    faults += ["lock-store", "stop-store", "cut-store", "tangle", "poison"]
    report = run(
        *("chaos.py", "--scenario", "plain", "--broker", "redis-always", "--store", "postgres"),
        *("--events", 6000, "--pace", 2000, "--workers", 2, "--restarts", 2, "--kills", 6),
        *("--each", *faults, "--seed", 3),
    )
    assert report["published"] == 6000 + report["poison"]
    assert report["faults"] == {"kill": 6, "restart": 2} | dict.fromkeys(faults, 1)
    assert (report["forgotten"], report["echoes"], report["fallen"]) == (0, 0, 0)
    assert report["letters"] == {"left": 1, "right": 1}
    assert (report["differing"], report["sound"]) == (0, True)


@pytest.mark.slow
def test_a_spool_covers_a_broker_that_forgets():
    """Redis that loses the last second in each power cut: what went through a spool comes again."""
    report = run(
        *("chaos.py", "--scenario", "plain", "--broker", "redis", "--power-cuts"),
        *("--events", 6000, "--pace", 2000, "--restarts", 2, "--kills", 4, "--faults", "kill"),
        *("--through", "spool", "--seed", 5),
    )
    assert report["faults"] == {"kill": 4, "cut_power": 2}
    assert (report["forgotten"], report["differing"], report["sound"]) == (0, 0, True)


@pytest.mark.slow
def test_tracker_both_ways():
    """A tracker, PostgreSQL and documents, edited on all sides under kills: each edit is everywhere
    once, and then there is silence."""
    report = run("trackers.py", "--edits", 8, "--kills", 6, "--silence", 2, "--seed", 3)
    assert report["kills"] == 6
    assert report["edits"].keys() == {"database", "documents", "rows", "tracker"}
    assert (report["differing"], report["duplicates"], report["dead_letters"]) == ([], [], 0)
    assert (report["writes_in_silence"], report["sound"]) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["record", "field"])
def test_what_foreign_writers_wrote_last_stays(rule):
    """PostgreSQL, files and Redis written to by others, altered and emptied, under kills."""
    report = run(
        *("foreign_writers.py", "--seconds", 20, "--kills", 8, "--disasters", 10, "--every", 10),
        *("--rule", rule, "--seed", 4),
    )
    assert report["faults"]
    assert report["disasters"]
    assert (report["wrong"], report["others"]) == ([], [])
    assert report["planted"] == report["found"] == 9
    assert report["sound"]


@pytest.mark.slow
def test_existing_database(tmp_path):
    """A database as it stands, edited on three sides while workers are killed."""
    database = tmp_path / "music.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "CREATE TABLE Artist (ArtistId INTEGER PRIMARY KEY, Name NVARCHAR(120));"
            'CREATE TABLE "Play List" (list INT, place INT, Price NUMERIC(10,2) NOT NULL,'
            " Added DATETIME, Note TEXT, PRIMARY KEY (list, place));"
        )
        connection.executemany(
            "INSERT INTO Artist VALUES (?, ?)", [(n, f"Ärtist {n}") for n in range(40)]
        )
        connection.executemany(
            'INSERT INTO "Play List" VALUES (?, ?, ?, ?, ?)',
            [(n % 7, n, n / 100, "2009-01-01 00:00:00", None) for n in range(60)],
        )
        connection.commit()
    report = run(
        "existing.py",
        "--database",
        database,
        "--edits",
        90,
        "--deletes",
        9,
        "--kills",
        4,
        "--seed",
        3,
    )
    assert (report["records"], report["tables"]) == (100, 2)
    assert (report["differing_after_sync"], report["differing"]) == (0, 0)
    assert report["kills"] >= 4


@pytest.mark.slow
def test_records_that_refer_to_others_in_any_order(tmp_path):
    """A database with foreign keys in random order: databases have children wait, others do not."""
    database = tmp_path / "shop.db"
    rng = random.Random(4)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "CREATE TABLE Maker (MakerId INTEGER PRIMARY KEY, Name NVARCHAR(120) NOT NULL);"
            "CREATE TABLE Item (ItemId INTEGER PRIMARY KEY, Price NUMERIC(10,2) NOT NULL,"
            " MakerId INTEGER NOT NULL REFERENCES Maker (MakerId),"
            " PartOf INTEGER REFERENCES Item (ItemId), Added DATETIME);"
            "CREATE TABLE Supply (ItemId INTEGER REFERENCES Item (ItemId), Place NVARCHAR(20),"
            " PRIMARY KEY (ItemId, Place));"
        )
        makers = [(n, f"Mäker {n}") for n in range(30)]
        items = [
            (n, n / 100, rng.randrange(30), rng.randrange(n) or None, "2009-01-01 00:00:00")
            for n in range(1, 301)
        ]
        supplies = [(n, place) for n in range(1, 301) for place in ("north", "South")]
        connection.executemany("INSERT INTO Maker VALUES (?, ?)", makers)
        connection.executemany("INSERT INTO Item VALUES (?, ?, ?, ?, ?)", items)
        connection.executemany("INSERT INTO Supply VALUES (?, ?)", supplies)
        connection.commit()
    report = run("foreign.py", "--database", database, "--seed", 5)
    assert (report["records"], report["tables"]) == (930, 3)
    found = report["stores"]
    assert {name: store["records"] for name, store in found.items()} == {
        "postgres": 930,
        "mariadb": 930,
        "redis": 930,
        "ldap": 330,
    }
    assert all(store["differing"] == [] for store in found.values())
    assert found["postgres"]["outcomes"]["held"] == found["mariadb"]["outcomes"]["held"] > 100
    assert found["redis"]["outcomes"] == {"applied": 930}
