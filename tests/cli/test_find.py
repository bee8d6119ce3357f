"""``eventsync get``, ``find`` and ``verify``: the records of several stores are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.project import Cli

PEOPLE = """\
{"id": 1, "name": "Ann", "city": "Oslo", "balance": 12.5, "token": "s3cret"}
{"id": 2, "name": "Bob", "city": "Rome", "balance": 7}
{"id": 3, "name": "Cid", "city": "Oslo", "balance": 99}
"""


@pytest.fixture
def filled(cli: Cli) -> Cli:
    """Return a project whose stores hold three people, in sync."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    cli("sync", "--from", "crm").check()
    return cli


def edit_document(number: int, **values: object) -> None:
    path = Path("documents", f"{number}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


def test_get_side_by_side(filled: Cli) -> None:
    """``get`` shows the fields of a record in each store, missing values, version and state."""
    lines = filled("get", "Person", "2").check().out.splitlines()
    assert lines[0].split() == ["Person", "2", "crm", "documents", "report"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert table["name"] == ["Bob", "–", "Bob"]
    assert table["city"] == ["Rome", "–", "·"]
    assert table["state"] == ["present", "filtered", "out", "present"]


def test_get_by_another_spelling_of_the_key(filled: Cli) -> None:
    """A key may be typed in another form than the canonical one; an invalid key is an error."""
    assert filled("get", "Person", "002", "--json").check().json["key"] == "2"
    assert "Person.id" in filled("get", "Person", "two").check(1).err


def test_get_composite_key(cli: Cli) -> None:
    """The parts of a composite key are joined by a slash."""
    cli("publish", "crm", "--type", "Line", input='{"order": 7, "number": 1, "text": "x"}').check()
    assert cli("get", "Line", "7/1", "--json").check().json["merged"]["text"] == "x"
    cli("get", "Line", "7").check(1)


def test_get_marks_differences(filled: Cli) -> None:
    """A value that differs from the winner is marked, and ``--exit-code`` makes the exit code 1."""
    edit_document(1, name="Anne")
    out = filled("get", "Person", "1").check().out
    assert out.count("! ") == 2
    filled("get", "Person", "1", "--exit-code").check(1)
    filled("get", "Person", "2", "--exit-code").check(0)


def test_secrets_are_not_shown(filled: Cli) -> None:
    """Tables do not show the values of secret fields."""
    assert "s3cret" not in filled("get", "Person", "1").out + filled("find", "Person").out
    assert "***" in filled("get", "Person", "1").out


def test_find_filters_sorts_and_limits(filled: Cli) -> None:
    """Filter, order and limit apply to each store."""
    found = filled(
        "find", "Person", "--filter", '{"balance": {"$gt": 10}}', "--sort", "-balance", "--json"
    )
    assert [row["key"] for row in found.check().json] == ["3", "1"]
    found = filled("find", "Person", "--sort", "-id", "--limit", "1", "--json").check().json
    # One of each store; the documents hold no number 2.
    assert [row["key"] for row in found] == ["3"]


def test_find_shows_stores_in_columns(filled: Cli) -> None:
    """Each row has the values of the winner and a mark for each store."""
    edit_document(3, name="Sid")
    lines = filled("find", "Person", "--fields", "name").check().out.splitlines()
    assert lines[0].split() == ["id", "name", "crm", "documents", "report"]
    rows = {line.split()[0]: line.split()[2:] for line in lines[1:]}
    assert rows["1"] == ["=", "=", "="]
    assert rows["2"] == ["=", "–", "="]
    # Both are at one version, so either may stand as the winner: the stores differ all the same.
    assert "!" in rows["3"]
    filled("find", "Person", "--exit-code").check(1)


def test_find_nothing(filled: Cli) -> None:
    """Finding nothing is reported and is not an error."""
    assert "No store holds" in filled("find", "Line").check().out
    assert filled("find", "Line", "--json").check().json == []


def test_find_unknown_field(filled: Cli) -> None:
    """An error for an unknown field names the known fields."""
    assert "the fields are id, name" in filled("find", "Person", "--fields", "nmae").check(1).err


def test_verify_finds_what_differs(filled: Cli) -> None:
    """``verify`` accepts stores in sync; otherwise it counts and names the differences."""
    filled("verify").check()
    Path("documents", "3.json").unlink()
    report = Path("report.csv").read_text().replace("Bob", "Rob")
    Path("report.csv").write_text(report)
    answer = filled("verify", "--json").check(1).json
    assert answer["records"] == {"Person": 3, "Line": 0}
    assert answer["stores"]["documents"]["Person"]["missing"] == 1
    assert answer["total"] == 2
    out = filled("verify").check(1).out
    assert "documents: Person 3 is missing" in out
    assert "2 differences" in out
    filled("verify", "--records", "Line").check()
