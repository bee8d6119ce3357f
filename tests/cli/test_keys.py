"""``eventsync keys``: keys are made, listed, rotated and revoked while programs run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.project import Cli

PERSON = '{"id": %d, "name": "Ann", "balance": 1}'


@pytest.fixture
def secrets(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file with the keys, in the secrets folder of the project."""
    folder = cli.folder / "secrets"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(folder))
    return folder / "eventsync_keys"


def test_keys_turn_over(cli: Cli, secrets: Path) -> None:
    """A new key is made, signs, and the old one is revoked; nothing signed well is lost."""
    assert "signed with it" in cli("keys", "new", "2026").check().out
    assert secrets.stat().st_mode & 0o777 == 0o600
    cli("check", "--create").check()
    cli("publish", "report", input=PERSON % 1).check()
    assert "rotate 2027" in cli("keys", "new", "2027").check().out
    assert [one["signs"] for one in cli("keys", "list", "--json").json] == [True, False]
    cli("keys", "revoke", "2026").check(78)
    cli("keys", "rotate", "2027").check()
    assert [one["id"] for one in cli("keys", "list", "--json").json] == ["2027", "2026"]
    cli("publish", "report", input=PERSON % 2).check()
    cli.drain("crm")
    cli("keys", "revoke", "2026").check()
    cli("publish", "report", input=PERSON % 3).check()
    cli.drain("crm")
    assert cli("dlq", "list", "crm", "--json").json == []
    for key in "123":
        assert cli("get", "Person", key, "--json").json["stores"]["crm"]["values"]["name"] == "Ann"
    secret = secrets.read_text().partition(":")[2].strip()
    assert len(secret) == 44
    for out in (cli("keys", "list").out, cli("check").out, cli("keys", "new", "2027").err):
        assert secret not in out


def test_a_limited_key(cli: Cli, secrets: Path) -> None:
    """Its program is told at once; a worker refuses what another program signs with it."""
    cli("keys", "new", "all").check()
    cli("keys", "new", "shop", "--type", "Line", "--op", "put,patch").check()
    assert cli("keys", "list", "--json").json[1]["limits"] == "types=Line ops=patch,put"
    cli("check", "--create").check()
    every = secrets.read_text()
    secrets.write_text(every.splitlines()[1].partition(" ")[0])  # without the limits
    cli("publish", "report", input=PERSON % 1).check()
    secrets.write_text(every)
    cli.drain("crm")
    (letter,) = cli("dlq", "list", "crm", "--json").json
    assert letter["reason"] == "not-permitted"
    cli("keys", "rotate", "shop").check()
    assert "may not sign changes with the record type 'Person'" in (
        cli("publish", "--type", "Person", input=PERSON % 2).err
    )
    assert "may not sign changes of Person" in cli("check").out


def test_comments_and_one_line_forms_stay_readable(cli: Cli, secrets: Path) -> None:
    """A comment is kept; keys in one line become one a line."""
    secrets.write_text("# of the shop\nold:MDEyMzQ1Njc4OWFiY2RlZg==\n")
    cli("keys", "new", "2027").check()
    cli("keys", "rotate", "2027").check()
    lines = secrets.read_text().splitlines()
    assert (lines[0], lines[2]) == ("# of the shop", "old:MDEyMzQ1Njc4OWFiY2RlZg==")
    secrets.write_text("a:MDEyMzQ1Njc4OWFiY2RlZg==,b:QUJDREVGR0hJSktMTU5PUA==")
    cli("keys", "rotate", "b").check()
    assert [line[0] for line in secrets.read_text().splitlines()] == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "a key"), "not of the form"),
        (("new", "k", "--op", "copy"), "operation 'copy'"),
        (("rotate", "none"), "no key 'none'"),
        (("revoke", "none"), "no key 'none'"),
    ],
)
def test_wrong_use_changes_nothing(
    cli: Cli, secrets: Path, arguments: tuple[str, ...], said: str
) -> None:
    """The file stays as it was, and no other file is left behind."""
    cli("keys", "new", "first").check()
    before = secrets.read_text()
    assert said in cli("keys", *arguments).check(78).err
    assert secrets.read_text() == before
    assert os.listdir(secrets.parent) == ["eventsync_keys"]


def test_keys_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be listed; a command that would change them says where they belong."""
    monkeypatch.setenv("EVENTSYNC_KEYS", "one:" + "QUFB" * 8)
    assert [one["id"] for one in cli("keys", "list", "--json").json] == ["one"]
    assert "EVENTSYNC_SECRETS_DIR" in cli("keys", "new", "two").check(78).err
