"""``eventsync dlq``: dead letters are listed, explained, replayed, edited and discarded."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from support.project import Cli

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.cli.command import duration
from eventsync.envelope import codec
from eventsync.envelope.signing import Keyring

TRIGGER = (
    "CREATE TRIGGER no_eve BEFORE INSERT ON person WHEN NEW.name = 'Eve' "
    "BEGIN SELECT RAISE(ABORT, 'not Eve'); END"
)


def database(statement: str) -> None:
    with sqlite3.connect("crm.db") as connection:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def refused(cli: Cli) -> Cli:
    """Return a project in which ``crm`` refused person 5, Eve, whom ``report`` holds."""
    cli("check", "--create").check()
    database(TRIGGER)
    people = '{"id": 4, "name": "Dan"}\n{"id": 5, "name": "Eve", "balance": 3}\n'
    cli("publish", "report", input=people).check()
    cli.drain("crm")
    return cli


def letters(cli: Cli) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli("dlq", "list", "crm", "--json").check().json
    return found


def test_list(refused: Cli) -> None:
    """``dlq list`` shows the record and the reason; ``status`` counts the dead letters."""
    (letter,) = letters(refused)
    assert (letter["type"], letter["key"], letter["op"]) == ("Person", "5", "put")
    assert letter["reason"] == "rejected"
    assert "not Eve" in letter["message"]
    assert "not Eve" in refused("dlq", "list", "crm").out
    assert refused("status", "--json").check(1).json["stores"]["crm"]["queues"]["dead"] == 1
    assert refused("dlq", "list", "report").check().out == "No dead letters.\n"


def test_looking_changes_nothing(refused: Cli) -> None:
    """Listing dead letters twice gives the same dead letters with the same ids."""
    assert letters(refused) == letters(refused)


def test_show(refused: Cli) -> None:
    """``dlq show`` shows a dead letter with its change and what the store holds now."""
    (letter,) = letters(refused)
    said = refused("dlq", "show", "crm", "--id", letter["id"][-8:], "--json").check().json[0]
    assert said["data"] == {"id": 5, "name": "Eve", "balance": "3"}
    assert said["now"] is None
    assert said["attempts"] >= 1
    assert "would be tried" in said["replay"]
    out = refused("dlq", "show", "crm", "--all").check().out
    assert "put of Person 5" in out
    assert "not Eve" in out


def test_replay_when_the_cause_is_gone(refused: Cli) -> None:
    """After the cause is removed, a replay applies the change and removes the dead letter."""
    database("DROP TRIGGER no_eve")
    assert len(refused("dlq", "replay", "crm", "--all", "--json").check().json["replayed"]) == 1
    refused.drain("crm", "report", "crm")
    assert letters(refused) == []
    refused("verify", "--records", "Person")
    row = refused("get", "Person", "5", "--json").json
    assert row["stores"]["crm"]["values"]["name"] == "Eve"


def test_replay_in_vain(refused: Cli) -> None:
    """A replay that fails again leaves exactly one dead letter."""
    refused("dlq", "replay", "crm", "--reason", "rejected").check()
    assert letters(refused) == []
    refused.drain("crm")
    assert [letter["key"] for letter in letters(refused)] == ["5"]


def test_replay_of_what_was_overtaken(refused: Cli) -> None:
    """A replayed change does not overwrite a later one."""
    refused("publish", "report", input='{"id": 5, "name": "Eva"}').check()
    refused.drain("crm")
    refused("dlq", "replay", "crm", "--key", "5").check()
    refused.drain("crm")
    assert letters(refused) == []
    values = refused("get", "Person", "5", "--json").json["stores"]["crm"]["values"]
    assert values is None or values["name"] == "Eva"


def test_edit_sets_a_field_everywhere(refused: Cli) -> None:
    """An edited change goes to all stores; only the edited field gets a new version."""
    refused("publish", "report", input='{"id": 5, "balance": 9}').check()
    refused.drain("crm")
    one = letters(refused)[0]["id"]
    answer = refused("dlq", "edit", "crm", "--id", one, "--set", "name=Eva", "--json").check().json
    assert answer["fields"] == ["name"]
    refused.drain()
    merged = refused("get", "Person", "5", "--json").json
    assert merged["merged"]["name"] == "Eva"
    assert merged["merged"]["balance"] == "9", "what was written since has to stay"
    assert merged["stores"]["report"]["values"]["name"] == "Eva"


def test_edit_in_an_editor(refused: Cli) -> None:
    """``dlq edit`` opens the data as JSON in the editor and publishes the result."""
    import os
    import pty
    import subprocess

    script = Path("editor.py")
    script.write_text(
        "import sys, pathlib\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text().replace('Eve', 'Eva'))\n"
    )
    (letter,) = letters(refused)
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "eventsync", "dlq", "edit", "crm", "--id", letter["id"]],
            cwd=refused.folder,
            env=refused.environment(EDITOR=f"{sys.executable} {script.resolve()}"),
            stdin=slave,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(master)
        os.close(slave)
    assert "Person 5 published to all stores with name." in done.stdout, done.stderr
    assert letters(refused) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("name=Eve", "nothing was changed"),
        ("id=7", "part of the key"),
        ("balance=much", "Person.balance"),
        ("nmae=Eva", "has no field 'nmae'"),
    ],
)
def test_edits_that_cannot_be(refused: Cli, setting: str, said: str) -> None:
    """An edit that is invalid or changes nothing is refused, and the dead letter stays."""
    ran = refused("dlq", "edit", "crm", "--all", "--set", setting)
    assert ran.code in (1, 78)
    assert said in ran.err
    assert len(letters(refused)) == 1


def test_edit_under_the_per_record_rule(cli: Cli) -> None:
    """In a record type that merges per record, an edit writes the whole record."""
    cli("check", "--create").check()
    database(TRIGGER.replace("person", "line").replace("NEW.name", "NEW.text"))
    line = '{"order": 1, "number": 2, "text": "Eve"}'
    cli("publish", "--type", "Line", input=line).check()
    cli.drain("crm")
    cli("dlq", "edit", "crm", "--all", "--set", "text=ok").check()
    cli.drain("crm")
    assert cli("get", "Line", "1/2", "--json").check().json["merged"]["text"] == "ok"


def put_letter(cli: Cli, raw: bytes) -> None:
    """Put a message of one envelope into the queue of ``crm``, as anybody at the broker can."""
    from eventsync import Bus

    with Bus("sqlite:///eventsync-broker.db") as bus:
        bus.declare("crm", ["Person", "Line"])
        bus.send_to("crm", [raw])


def eve(**more: Any) -> Change:
    """Return a put of person 5, which a producer without a key made."""
    from eventsync import Clock

    data = {"id": 5, "name": "Eve", "balance": 1_000_000, "city": "Oslo"}
    given: dict[str, Any] = {"version": Clock().tick(), "ext": {"note": "unseen"}} | more
    return Change(type="Person", key="5", op="put", source="crm", data=data, **given)


def test_edit_signs_nothing_unseen(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that is not signed with our keys is shown whole, and signed only if told to."""
    monkeypatch.setenv("EVENTSYNC_KEYS", "one:" + "QUFB" * 8)
    cli("check", "--create").check()
    put_letter(cli, codec.encode(eve()))
    put_letter(cli, codec.encode(eve(), keys=Keyring.parse("one:" + "QkJC" * 8)))
    cli.drain("crm")
    unsigned, forged = letters(cli)
    assert {unsigned["reason"], forged["reason"]} == {"signature"}
    for letter in (unsigned, forged):
        edit = ("dlq", "edit", "crm", "--id", letter["id"], "--set", "name=Ann", "--json")
        asked = cli(*edit, input="n\n").check(1)
        assert "written by an unknown program" in asked.err
        for seen in ("name: Ann", "balance: 1000000", "city: Oslo", "patch of Person 5"):
            assert seen in asked.err
    assert len(letters(cli)) == 2
    cli.drain()
    assert cli("get", "Person", "5", "--json").json["merged"] is None
    cli("dlq", "edit", "crm", "--id", unsigned["id"], "--set", "name=Ann", "--yes").check()
    cli.drain()
    assert cli("get", "Person", "5", "--json").check().json["merged"]["name"] == "Ann"


def test_edit_of_a_signed_letter_does_not_ask(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a known program published is edited without a question, under any of the keys."""
    monkeypatch.setenv("EVENTSYNC_KEYS", "two:" + "QUFB" * 8 + ",one:" + "QkJC" * 8)
    cli("check", "--create").check()
    database(TRIGGER)
    put_letter(cli, codec.encode(eve(), keys=Keyring.parse("one:" + "QkJC" * 8)))
    cli.drain("crm")
    cli("dlq", "edit", "crm", "--all", "--set", "name=Ann").check()
    cli.drain()
    assert cli("get", "Person", "5", "--json").check().json["merged"]["name"] == "Ann"


def test_edit_of_a_change_from_the_future(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its fields get the new version, because its own would win for ever."""
    monkeypatch.setenv("EVENTSYNC_HOLD_FOR", "0.001")
    cli("check", "--create").check()
    put_letter(cli, codec.encode(eve(version=Version.of(32_472_144_000_000))))
    cli.drain("crm")
    edited = cli("dlq", "edit", "crm", "--all", "--set", "name=Ann", "--json").check().json
    assert {"name", "balance", "city"} <= {*edited["fields"]}
    cli.drain()
    found = cli("get", "Person", "5", "--json").check().json
    assert (found["merged"]["name"], found["merged"]["city"]) == ("Ann", "Oslo")
    cli("publish", "report", input='{"id": 5, "balance": 9}').check()
    cli.drain()
    assert cli("get", "Person", "5", "--json").json["merged"]["balance"] == "9"


def test_foreign_bytes(cli: Cli) -> None:
    """Bytes that are not a change can be shown and discarded, but not replayed or edited."""
    from eventsync import Bus

    cli("status")
    with Bus("sqlite:///eventsync-broker.db") as bus:
        bus.declare("crm", ["Person", "Line"])
        bus.send_to("crm", [b"GET / HTTP/1.1\r\n", b"\x00\xff"])
    cli.drain("crm")
    shown = cli("dlq", "show", "crm", "--all").check().out
    assert "GET / HTTP/1.1\\r\\n" in shown
    assert "00 ff" in shown
    ran = cli("dlq", "replay", "crm", "--all", "--json").check(1)
    assert len(ran.json["not_a_change"]) == 2
    assert (
        "holds no change"
        in cli("dlq", "edit", "crm", "--id", ran.json["not_a_change"][0], "--set", "x=1")
        .check(78)
        .err
    )
    assert len(letters(cli)) == 2
    cli("dlq", "discard", "crm", "--all", "--yes").check()
    assert letters(cli) == []


def test_discard_asks(refused: Cli) -> None:
    """``dlq discard`` deletes nothing without confirmation."""
    refused("dlq", "discard", "crm", "--all", input="n\n").check(1)
    assert len(letters(refused)) == 1
    assert (
        "1 dead letter discarded"
        in refused("dlq", "discard", "crm", "--all", input="y\n").check().out
    )
    assert letters(refused) == []


def test_no_such_letter(refused: Cli) -> None:
    """An unknown id is an error."""
    for command in ("show", "replay", "edit", "discard"):
        assert "no such dead letter" in refused("dlq", command, "crm", "--id", "0123abcd").err


def test_older_than(refused: Cli) -> None:
    """``--older-than`` selects dead letters by their last try; a wrong time is a usage error."""
    assert refused("dlq", "list", "crm", "--older-than", "1h", "--json").check().json == []
    discard = ("dlq", "discard", "crm", "--yes", "--json", "--older-than")
    assert refused(*discard, "0.5d").check().json == {"discarded": []}
    replay = ("dlq", "replay", "crm", "--json", "--older-than")
    assert refused(*replay, "30m").check().json["replayed"] == []
    (letter,) = letters(refused)
    refused(*discard, "soon").check(2)
    assert refused(*discard, "0").check().json == {"discarded": [letter["id"]]}
    assert letters(refused) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86_400)]
)
def test_durations(text: str, seconds: float) -> None:
    """A time is a number with a unit, or a number of seconds."""
    assert duration(text, "--older-than") == seconds
