"""What others wrote is shown without control characters, and secret values are not shown."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import structlog
from support.project import Cli

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.envelope import codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.monitoring import log
from eventsync.values.printable import printable, printable_json

ESCAPE = "\x1b]0;owned\x07\x9b31mred\u202e"
SECRET = "tok-4711"


def harmless(text: str) -> bool:
    """Return whether a terminal obeys nothing in ``text``."""
    return not [sign for sign in text if not (sign.isprintable() or sign in "\t\n")]


@pytest.fixture
def letters(cli: Cli) -> Cli:
    """Return a project with dead letters whose every text is hostile."""
    from eventsync import Bus

    cli("check", "--create").check()
    data = {"id": 5, "name": ESCAPE, "token": SECRET}
    change = Change(
        type="Person", key="5", op="put", version=Clock().tick(), data=data, source=ESCAPE[:9]
    )
    given: dict[str, Any] = dict.fromkeys(("reason", "message", "store", "queue"), ESCAPE)
    times = {"first_time": 1e9, "last_time": 1e9}
    with Bus("sqlite:///eventsync-broker.db") as bus:
        bus.declare("crm", ["Person", "Line"])
        bus.dead_letter(
            "crm",
            [
                DeadLetter(
                    **given, **times, attempts=1, raw=codec.encode(change), type="Person", key="5"
                ),
                DeadLetter(
                    **given, **times, attempts=1, raw=b"x", type=ESCAPE, key=ESCAPE, op=ESCAPE
                ),
            ],
        )
    return cli


@pytest.mark.parametrize(
    "command",
    [
        ("dlq", "list", "crm"),
        ("dlq", "list", "crm", "--json"),
        ("dlq", "show", "crm", "--all"),
        ("dlq", "show", "crm", "--all", "--json"),
        ("dlq", "edit", "crm", "--key", "5", "--set", f"x={ESCAPE}"),
    ],
    ids=" ".join,
)
def test_letters_are_shown_without_control_characters(
    letters: Cli, command: tuple[str, ...]
) -> None:
    """Reason, message, type, key, values and source cannot command a terminal."""
    ran = letters(*command)
    assert harmless(ran.out)
    assert harmless(ran.err)
    assert SECRET not in ran.out
    assert "owned" in ran.out + ran.err or command[1] == "edit"


def test_records_are_shown_without_control_characters(cli: Cli) -> None:
    """Values and keys of records, and an unknown type in an error."""
    cli("check", "--create").check()
    record = json.dumps({"id": 5, "name": "\x1b[31mred\x9b", "token": SECRET})
    cli("publish", "crm", "--type", "Person", input=record).check()
    for command in (
        ("get", "Person", "5"),
        ("get", "Person", "5", "--json"),
        ("find", "Person"),
        ("find", "Person", "--json"),
        ("verify",),
        ("verify", "--json"),
        ("find", ESCAPE),
        ("get", "Person", ESCAPE),
    ):
        ran = cli(*command)
        assert harmless(ran.out), command
        assert harmless(ran.err), command
        assert SECRET not in ran.out + ran.err, command


def test_secret_differences_are_counted_without_their_values(cli: Cli) -> None:
    """``verify`` tells that a secret field differs, not how."""
    cli("check", "--create").check()
    cli("publish", "--type", "Person", input='{"id": 5, "name": "x", "city": "Oslo"}').check()
    cli.drain()
    text = (cli.folder / "documents" / "5.json").read_text()
    changed = json.loads(text) | {"token": SECRET}
    (cli.folder / "documents" / "5.json").write_text(json.dumps(changed))
    for arguments in (("verify",), ("verify", "--json")):
        ran = cli(*arguments).check(1)
        assert "token" in ran.out
        assert SECRET not in ran.out


@pytest.mark.parametrize("terminal", [True, False])
def test_logs_cannot_command_a_terminal(terminal: bool) -> None:
    """U+009B begins a command as ESC [ does; in JSON lines it is escaped, and reads the same."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    try:
        log.configure("info", stream)
        structlog.get_logger().error("dead letter", error=ESCAPE)
    finally:
        structlog.reset_defaults()
    text = stream.getvalue()
    assert "\x9b" not in text
    assert "\x07" not in text
    if not terminal:
        assert json.loads(text)["error"] == ESCAPE


def test_printable() -> None:
    """Other text stays as it is."""
    assert printable("Zoë 漢字 🙂") == "Zoë 漢字 🙂"
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable("a\nb") == "a\\nb"
    assert json.loads(printable_json(json.dumps(ESCAPE, ensure_ascii=False))) == ESCAPE
