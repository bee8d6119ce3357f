"""``eventsync sync``: records are copied between stores."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from support.project import Cli

PEOPLE = "".join(
    f'{{"id": {n}, "name": "N{n}", "city": "{"Oslo" if n % 2 else "Rome"}"}}\n' for n in range(20)
)


@pytest.fixture
def filled(cli: Cli) -> Cli:
    """Return a project in which only ``crm`` holds people, twenty of them."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    return cli


def test_dry_run_changes_nothing(filled: Cli) -> None:
    """``--dry-run`` counts what would change, and writes nothing."""
    ran = filled("sync", "--from", "crm", "--to", "documents,report", "--dry-run", "--json").check()
    assert ran.json["outcomes"] == {
        "documents": {"applied": 10, "duplicate": 10},
        "report": {"applied": 20},
    }
    assert list(Path("documents").iterdir()) == []


def test_copies_and_reports(filled: Cli) -> None:
    """Records are copied and counted, and a second sync changes nothing."""
    out = filled("sync", "--from", "crm", "--to", "documents", "--to", "report").check().out
    assert out.splitlines()[0].split() == ["target", "applied"]
    filled("verify").check()
    before = filled("find", "Person", "--json").json
    filled("sync", "--from", "crm", "--to", "documents,report").check()
    assert filled("find", "Person", "--json").json == before


def test_says_that_nothing_was_new(filled: Cli) -> None:
    """A second sync reports every record as a duplicate."""
    filled("sync", "--from", "crm", "--to", "report").check()
    again = filled("sync", "--from", "crm", "--to", "report", "--json").check().json
    assert again["outcomes"] == {"report": {"duplicate": 20}}


def test_filter_and_types(filled: Cli) -> None:
    """``--filter`` and ``--records`` restrict what is copied."""
    filled(
        "sync", "--from", "crm", "--to", "report", "--records", "Person",
        "--filter", '{"id": {"$lt": 3}}',
    ).check()  # fmt: skip
    assert len(Path("report.csv").read_text().splitlines()) == 4


def test_captures_edits_made_behind(filled: Cli) -> None:
    """Foreign writes in a source are captured and win."""
    filled("sync").check()
    with sqlite3.connect("crm.db") as database:
        database.execute("UPDATE person SET name = 'Max' WHERE id = 7")
    database.close()
    out = filled("sync", "--from", "crm").check().out
    assert out.startswith("1 foreign write captured")
    assert (
        filled("get", "Person", "7", "--json").json["stores"]["report"]["values"]["name"] == "Max"
    )


def test_vanished_records_need_a_word(filled: Cli) -> None:
    """When most records of a source are gone, nothing is deleted without ``--allow-deletes``."""
    filled("sync").check()
    with sqlite3.connect("crm.db") as database:
        database.execute("DELETE FROM person WHERE id > 2")
    database.close()
    ran = filled("sync", "--from", "crm").check(1)
    assert "--allow-deletes" in ran.err
    assert len(Path("report.csv").read_text().splitlines()) == 21
    filled("sync", "--from", "crm", "--allow-deletes").check()
    assert len(Path("report.csv").read_text().splitlines()) == 4


def test_refused_records_are_told(filled: Cli) -> None:
    """A record that a target refuses is reported with the reason; the exit code is 1."""
    filled("sync", "--from", "crm", "--to", "report").check()
    filled("publish", "report", input='{"id": 5, "name": "Eve", "balance": 1}').check()
    with sqlite3.connect("crm.db") as database:
        database.execute(
            "CREATE TRIGGER no_eve BEFORE UPDATE ON person WHEN NEW.name = 'Eve' "
            "BEGIN SELECT RAISE(ABORT, 'not Eve'); END"
        )
    database.close()
    ran = filled("sync", "--from", "report", "--to", "crm").check(1)
    assert "crm refused Person 5" in ran.err
    assert "not Eve" in ran.err


def test_unreadable_record_does_not_stop_the_others(filled: Cli) -> None:
    """A record of a source that cannot be read is named, and the exit code says so."""
    filled("sync", "--from", "crm", "--to", "documents").check()
    next(Path("documents").glob("**/*7*.json")).write_text("{")
    ran = filled("sync", "--from", "documents", "--to", "report", "--json").check(1)
    assert len(ran.json["unreadable"]) == 1
    assert ran.json["unreadable"][0]["store"] == "documents"
    assert sum(ran.json["outcomes"]["report"].values()) == 9
    assert "cannot be read" in filled("sync", "--from", "documents", "--to", "report").check(1).err
