"""The program as a whole: its help, its version, its start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.project import Cli

COMMANDS = [
    ("demo",),
    ("init",),
    ("check",),
    ("worker",),
    ("relay",),
    ("status",),
    ("top",),
    ("health",),
    ("publish",),
    ("sync",),
    ("get",),
    ("find",),
    ("verify",),
    ("unreadable",),
    ("dlq", "list"),
    ("dlq", "show"),
    ("dlq", "replay"),
    ("dlq", "edit"),
    ("dlq", "discard"),
    ("capture", "run"),
    ("capture", "status"),
    ("capture", "install"),
    ("capture", "remove"),
    ("capture", "print-sql"),
    ("keys", "list"),
    ("keys", "new"),
    ("keys", "rotate"),
    ("keys", "revoke"),
]


def test_help_names_every_command_and_the_exit_codes(bare: Cli) -> None:
    """``--help`` lists all commands and explains the exit codes."""
    help = bare("--help").check().out
    for command in COMMANDS:
        assert command[0] in help
    assert "69" in help
    assert "78" in help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_shows_examples(bare: Cli, command: tuple[str, ...]) -> None:
    """The help of every command has examples and the exit codes."""
    help = bare(*command, "--help").check().out
    examples = help.partition("Examples:")[2]
    assert f"eventsync {' '.join(command)}" in examples
    assert "Exit codes" in help or command in (("demo",), ("init",))


def test_all_commands_are_tested_here(bare: Cli) -> None:
    """``COMMANDS`` above lists all commands."""
    from eventsync.cli.program import program

    names = {function.callback.__name__ for function in program.registered_commands}
    assert names == {command[0] for command in COMMANDS if len(command) == 1}
    in_groups = {
        (group.name, function.name)
        for group in program.registered_groups
        for function in group.typer_instance.registered_commands
    }
    assert in_groups == {command for command in COMMANDS if len(command) == 2}


def test_help_imports_nothing_heavy() -> None:
    """``--help`` does not import the libraries of brokers, databases, settings and logs."""
    script = (
        "import sys, eventsync.cli.program\n"
        "heavy = {'kombu', 'sqlalchemy', 'pydantic', 'structlog', 'msgpack', 'tenacity',\n"
        "    'http.client'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    """Each name in ``eventsync.__all__`` can be imported, and any other is an error."""
    import eventsync

    for name in eventsync.__all__:
        assert getattr(eventsync, name) is not None
    with pytest.raises(AttributeError, match="Storage"):
        eventsync.Storage  # noqa: B018  # that it raises is what is tested


def test_version(bare: Cli) -> None:
    """``--version`` prints the version of the package."""
    import eventsync

    ran = bare.real("--version").check()
    assert ran.out.strip() == f"eventsync {eventsync.__version__}"
