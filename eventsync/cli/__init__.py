"""The command line.

To add a command, write a function in a module of this package and decorate it with
``command.command``, list the function in ``program.py``, and add its name to
``tests/cli/test_help.py``. The docstring of the function is its ``--help``.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that ``sys.argv`` names, then end the process with its exit code."""
    from eventsync.cli.program import program

    program(prog_name="eventsync")
