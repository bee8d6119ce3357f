"""The command line: every command is the composition of a deployment and a few calls of the core.

This module owns the entry point. It must not know any command, so that it is quick to import.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name. Ends the process."""
    from eventsync.cli.program import program

    program(prog_name="eventsync")
