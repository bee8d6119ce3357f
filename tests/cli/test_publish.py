"""``eventsync publish``: records are published, and wrong lines are reported."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from support.project import Cli

PEOPLE = """\
{"id": 1, "name": "Ann", "city": "Oslo", "balance": 12.345678901234567890}

{"id": 2, "name": "Bjørn", "city": null}
"""


def people(cli: Cli, *stores: str) -> dict[str, dict[str, dict[str, object]]]:
    """Return the values that each store holds of each person, by key and store."""
    rows = cli("find", "Person", "--json", "--limit", "1000").check().json
    return {
        row["key"]: {name: sight["values"] for name, sight in row["stores"].items()} for row in rows
    }


def test_json_lines_from_standard_input(cli: Cli) -> None:
    """JSON Lines are written to the store and reach the other stores, with exact decimals."""
    ran = cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    assert ran.out == "2 records published.\n"
    cli.drain()
    held = people(cli)
    assert held["1"]["crm"]["balance"] == held["1"]["report"]["balance"] == "12.345678901234567890"
    assert held["2"]["report"]["name"] == "Bjørn"
    assert held["2"]["documents"] is None, "it does not match that store's filter"
    assert cli("verify").check().out.endswith("The stores agree.\n")


def test_csv_file(cli: Cli) -> None:
    """A file named *.csv is read as CSV; an empty cell is None or no value."""
    Path("people.csv").write_text(
        "\ufeffid,name,city,balance,photo\n1,Ann,Oslo,,aGk=\n2,Bob,,7,\n", encoding="utf-8"
    )
    cli("publish", "crm", "--type", "Person", "--file", "people.csv").check()
    held = people(cli)
    assert held["1"]["crm"] == {
        "id": 1,
        "name": "Ann",
        "city": "Oslo",
        "balance": "0",
        "photo": base64.b64encode(b"hi").decode(),
        "token": None,
    }
    assert held["2"]["crm"]["city"] is None
    assert held["2"]["crm"]["balance"] == "7"


def test_what_find_prints_can_be_published(cli: Cli) -> None:
    """The JSON that ``find`` prints can be published, bytes and decimals included."""
    line = {
        "id": 1,
        "name": "Ann",
        "balance": "0.1",
        "photo": base64.b64encode(b"\xff\x00").decode(),
    }
    cli("publish", "crm", "--type", "Person", input=json.dumps(line)).check()
    before = people(cli)["1"]["crm"]
    ran = cli("publish", "crm", "--type", "Person", "--json", input=json.dumps(before)).check()
    assert ran.json == {"published": 1, "wrong": 0, "waiting": False, "errors": []}
    assert people(cli)["1"]["crm"] == before


def test_part_of_a_record(cli: Cli) -> None:
    """A line changes only its own fields, and publishing it again changes nothing."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    version = cli("get", "Person", "1", "--json").json["version"]
    for _ in range(2):
        cli("publish", "crm", "--type", "Person", input='{"id": 1, "city": "Bergen"}').check()
    row = cli("get", "Person", "1", "--json").json
    assert row["merged"]["name"] == "Ann"
    assert row["merged"]["city"] == "Bergen"
    assert list(row["stores"]["crm"]["field_versions"]) == ["city"]
    assert row["version"] > version


def test_wrong_lines_are_told_and_the_rest_goes_on(cli: Cli) -> None:
    """Each wrong line is reported with file, number and reason; the exit code is 1."""
    lines = [
        '{"id": 1, "name": "Ann"}',
        '{"id": 2, "name": 7}',
        '{"id": 3, "nmae": "Cid"}',
        "{",
        '["id"]',
        '{"name": "Eve"}',
        '{"id": 6, "name": "\\ud800"}',
        '{"id": 7, "name": "Gus", "balance": NaN}',
        '{"id": 8, "name": "Hal"}',
    ]
    raw = "\n".join(lines).encode() + b'\n{"id": 9, "name": "\xff"}\n{"id": 10, "name": "Ida"}\n'
    Path("people.jsonl").write_bytes(raw)
    ran = cli("publish", "crm", "--type", "Person", "-f", "people.jsonl", "--json").check(1)
    assert ran.json["published"] == 3
    assert [error["line"] for error in ran.json["errors"]] == [2, 3, 4, 5, 6, 7, 8, 10]
    assert "people.jsonl:2: Person.name: 7 (int) is not a string" in ran.err
    assert "people.jsonl:6: the key is missing: id" in ran.err
    assert sorted(people(cli)) == ["1", "10", "8"]


def test_a_new_record_that_lacks_a_field(cli: Cli) -> None:
    """A new record without a required field is reported, and the other lines are published."""
    lines = '{"id": 1, "city": "Oslo"}\n{"id": 2, "name": "Bob"}\n'
    ran = cli("publish", "crm", "--type", "Person", input=lines).check(1)
    assert "standard input:1: store 'crm': Person '1' was put without the field 'name'" in ran.err
    assert sorted(people(cli)) == ["2"]


def test_wrong_csv(cli: Cli) -> None:
    """Wrong rows of a CSV file are reported with their line; a wrong header is an error."""
    text = 'id,name\n1,Ann\n2\n"3","two\nlines"\nx,Dan\n'
    ran = cli("publish", "crm", "--type", "Person", "--format", "csv", input=text).check(1)
    assert "standard input:3: 1 cells, but the header has 2" in ran.err
    assert "standard input:6: Person.id: 'x'" in ran.err
    assert sorted(people(cli)) == ["1", "3"]
    ran = cli("publish", "crm", "--type", "Person", "--format", "csv", input="id,nmae\n1,x\n")
    assert "Person has no field 'nmae'" in ran.check(1).err


def test_a_record_that_the_store_refuses(cli: Cli) -> None:
    """A record that the store refuses is reported, and the other records are published."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    import sqlite3

    with sqlite3.connect("crm.db") as database:
        database.execute(
            "CREATE TRIGGER no_eve BEFORE INSERT ON person WHEN NEW.name = 'Eve' "
            "BEGIN SELECT RAISE(ABORT, 'not Eve'); END"
        )
    database.close()
    lines = "".join(f'{{"id": {n}, "name": "{"Eve" if n == 5 else "Ann"}"}}\n' for n in range(3, 9))
    ran = cli("publish", "crm", "--type", "Person", input=lines).check(1)
    assert "standard input:3: " in ran.err
    assert "not Eve" in ran.err
    assert sorted(people(cli)) == ["1", "2", "3", "4", "6", "7", "8"]


def test_a_record_twice_in_one_input(cli: Cli) -> None:
    """Of two lines for the same record, the later one wins."""
    lines = '{"id": 1, "name": "Ann"}\n{"id": 1, "name": "Bob"}\n'
    cli("publish", "crm", "--type", "Person", input=lines).check()
    assert people(cli)["1"]["crm"]["name"] == "Bob"


def test_deletes(cli: Cli) -> None:
    """``--delete`` deletes records by key in all stores, and reports unknown keys."""
    cli("publish", "crm", "--type", "Person", input=PEOPLE).check()
    cli.drain()
    ran = cli(
        "publish", "crm", "--type", "Person", "--delete", input='{"id": 1, "x": 0}\n{"id": 5}\n'
    )
    assert "standard input:2: Person '5' does not exist in store 'crm'" in ran.check(1).err
    cli.drain()
    assert sorted(people(cli)) == ["2"]
    cli("get", "Person", "1").check(1)


def test_onto_the_bus(cli: Cli) -> None:
    """Without a STORE, records and deletes go to every store that holds the type."""
    cli("publish", "--type", "Person", input=PEOPLE).check()
    assert people(cli) == {}
    cli.drain()
    assert people(cli)["1"]["report"]["name"] == "Ann"
    cli("publish", "--type", "Person", "--delete", input='{"id": 1}').check()
    cli.drain()
    assert sorted(people(cli)) == ["2"]
    assert "Person.name" in cli("publish", "--type", "Person", input='{"id": 3}').check(1).err


def test_broker_away_keeps_the_edit(cli: Cli) -> None:
    """With an unreachable broker edits are written, wait in the outbox, and end with 69."""
    away = "redis://127.0.0.1:1/0"
    ran = cli("publish", "crm", "--type", "Person", "--broker", away, input=PEOPLE).check(69)
    assert "wait in the outbox" in ran.err
    assert cli("status", "--json").json["stores"]["crm"]["outbox"] == 2
    cli.drain()
    assert people(cli)["1"]["report"]["name"] == "Ann"


def test_which_type(cli: Cli) -> None:
    """A store of several types requires ``--type``, and the type has to be one of them."""
    assert "--type Person|Line" in cli("publish", "crm", input="").check(78).err
    ran = cli("publish", "report", "--type", "Line", input="").check(78)
    assert "the store holds Person" in ran.err
