"""Records that cannot be read: listed, counted, and never the end of a command."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.project import Cli

PEOPLE = "\n".join(
    f'{{"id": {id}, "name": "p{id}", "city": "Oslo", "balance": {id}}}' for id in range(1, 6)
)


@pytest.fixture
def filled(cli: Cli) -> Cli:
    """Return a project whose stores hold five people, in sync."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    cli("sync", "--from", "crm").check()
    cli("verify").check()
    return cli


def run(statement: str) -> None:
    """Run a statement in the database of ``crm``, as a foreign writer."""
    with closing(sqlite3.connect("crm.db")) as connection, connection:
        connection.execute(statement)


def test_list_of_unreadable_records(filled: Cli) -> None:
    """It names type, key, reason, time and remedy; it is empty once the record is corrected."""
    assert "no unreadable records" in filled("unreadable", "crm", "--read").check().out
    run("UPDATE person SET balance = 'many' WHERE id = 2")
    assert filled("unreadable", "crm").check().out.startswith("crm has no")
    out = filled("unreadable", "crm", "--read").check(1).out
    assert out.splitlines()[1].split()[:2] == ["Person", "2"]
    assert "Person '2' cannot be read" in out
    (found,) = filled("unreadable", "crm", "Person", "--json").check(1).json
    assert (found["store"], found["type"], found["key"]) == ("crm", "Person", "2")
    assert found["reason"] == "field"
    assert "balance" in found["error"]
    assert found["hint"]
    assert found["since"].endswith("+00:00")
    assert filled("unreadable", "crm", "Line", "--read", "--json").check().json == []
    run("UPDATE person SET balance = '7' WHERE id = 2")
    assert filled("unreadable", "crm", "--read", "--json").check().json == []


def test_a_place_is_shown_where_no_key_can_be_read(filled: Cli) -> None:
    """A row of a file is named by its line, a document of the folder by its name."""
    with Path("report.csv").open("a", encoding="utf-8") as file:
        file.write("one,two,three,four\n")
    Path("documents", "a b.json").write_text("{broken", encoding="utf-8")
    (row,) = filled("unreadable", "report", "--read", "--json").check(1).json
    assert row["key"] is None
    assert row["place"].endswith("report.csv, line 7")
    (document,) = filled("unreadable", "documents", "--read", "--json").check(1).json
    assert document["place"] is None or document["place"].endswith("a b.json")
    assert "a b.json" in document["error"]


def test_status_counts_unreadable_records(filled: Cli) -> None:
    """In stores that are counted by reading, and in those that read them before."""
    run("UPDATE person SET balance = 'many' WHERE id IN (2, 3)")
    Path("documents", "1.json").write_text("{broken", encoding="utf-8")
    filled("sync", "--from", "crm").check(1)
    stores = filled("status", "--json").check().json["stores"]
    assert stores["crm"]["types"]["Person"]["unreadable"] == 2
    assert stores["documents"]["types"]["Person"]["unreadable"] == 1
    assert stores["report"]["types"]["Person"]["unreadable"] == 0
    assert "error" not in stores["documents"]["types"]["Person"]
    lines = filled("status").check().out.splitlines()
    assert next(line for line in lines if line.startswith("store")).split()[-1] == "unreadable"


def test_verify_counts_unreadable_records(filled: Cli) -> None:
    """Known and unknown ones, each once, and the others are compared."""
    run("UPDATE person SET balance = 'many' WHERE id = 2")
    run("INSERT INTO person (id, name, balance) VALUES (9, 'new', 'none')")
    found = filled("verify", "--json").check(1).json
    assert found["stores"]["crm"]["Person"]["unreadable"] == 2
    assert found["stores"]["crm"]["Person"]["error"] == ""
    kinds = [(d["store"], d["key"], d["kind"]) for d in found["differences"]]
    assert sorted(kinds) == [("crm", "2", "unreadable"), ("crm", "9", "unreadable")]
    with Path("report.csv").open("a", encoding="utf-8") as file:
        file.write("one,two,three,four\n")
    found = filled("verify", "--json").check(1).json
    assert found["stores"]["report"]["Person"]["unreadable"] == 1
    assert found["total"] == 3
    assert len(filled("unreadable", "report", "--json").check(1).json) == 1


def test_a_broken_line_of_a_known_record_counts_once(filled: Cli) -> None:
    """It is one difference, although neither its key nor its place alone says all."""
    path = Path("report.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] += ",more"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = filled("verify", "--json").check(1).json
    assert found["stores"]["report"]["Person"]["unreadable"] == 1
    assert [d["kind"] for d in found["differences"]] == ["unreadable"]


def test_verify_of_a_type_that_cannot_be_read_at_all(filled: Cli) -> None:
    """This is an error that names the store, not equality; the other stores are compared."""
    run("UPDATE person SET balance = 'many'")
    ran = filled("verify").check(1)
    assert "crm: no record of type Person could be read" in ran.err
    found = filled("verify", "--json").check(1).json
    assert "5 are unreadable" in found["stores"]["crm"]["Person"]["error"]
    assert found["stores"]["crm"]["Person"]["unreadable"] == 5
    assert found["stores"]["report"]["Person"]["error"] == ""


def test_verify_of_an_empty_index_and_unreadable_records(cli: Cli) -> None:
    """Records that no index knows, and that nobody can read, are no agreement either."""
    cli("sync").check()
    Path("documents", "1.json").write_text("{broken", encoding="utf-8")
    found = cli("verify", "--json").check(1).json
    assert found["stores"]["documents"]["Person"]["unreadable"] == 1
    assert found["stores"]["documents"]["Person"]["error"]


def test_find_shows_the_readable_ones(filled: Cli) -> None:
    """Standard error says how many are not, JSON has a row for each, and the exit code stays."""
    run("UPDATE person SET balance = 'many' WHERE id = 2")
    Path("documents", "1.json").write_text("{broken", encoding="utf-8")
    ran = filled("find", "Person").check()
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["1", "3", "4", "5", "2"]
    assert "crm: 1 record of type Person cannot be read" in ran.err
    assert "documents: 1 record of type Person cannot be read" in ran.err
    assert "Person '2' cannot be read" in ran.err
    filled("find", "Person", "--exit-code").check(1)
    filled("find", "Person", "--filter", '{"id": 3}', "--exit-code").check(1)
    rows = filled("find", "Person", "--json").check().json
    unreadable = [
        (d["store"], row["key"])
        for row in rows
        for state in row["stores"].values()
        for d in state["differences"]
        if d["kind"] == "unreadable"
    ]
    assert sorted(unreadable) == [("crm", "2"), ("documents", "1")]
    # What only an unreadable copy may match is a row of its own.
    run("INSERT INTO person (id, name, balance) VALUES (9, 'new', 'none')")
    rows = filled("find", "Person", "--json").check().json
    assert [(row["key"], row["merged"]) for row in rows if row["merged"] is None] == [("9", None)]


def test_get_of_an_unreadable_record(filled: Cli) -> None:
    """It shows the other stores, and why this one cannot be read."""
    run("UPDATE person SET balance = 'many' WHERE id = 2")
    out = filled("get", "Person", "2").check().out
    assert "! unreadable" in out
    assert "Person '2' cannot be read" in out


def test_sync_copies_the_others(filled: Cli) -> None:
    """Unreadable records of source and target are named, counted and left alone."""
    run("UPDATE person SET balance = 'many' WHERE id = 2")
    run("UPDATE person SET name = 'new' WHERE id IN (1, 3)")
    Path("documents", "1.json").write_text("{broken", encoding="utf-8")
    ran = filled("sync", "--from", "crm", "--json").check(1)
    assert sorted((found["store"], found["key"]) for found in ran.json["unreadable"]) == [
        ("crm", "2"),
        ("documents", "1"),
    ]
    assert Path("documents", "1.json").read_text(encoding="utf-8") == "{broken"
    assert '"new"' in Path("documents", "3.json").read_text(encoding="utf-8")
    assert Path("report.csv").read_text(encoding="utf-8").count("new") == 2
