"""The Typer application with all commands, in the order and groups that ``--help`` shows."""

from __future__ import annotations

from typing import Annotated

import typer

from eventsync.cli import (
    capture,
    check,
    demo,
    dlq,
    find,
    health,
    keys,
    project,
    publish,
    relay,
    status,
    sync,
    top,
    unreadable,
    worker,
)
from eventsync.cli.command import EXIT_CODES, help_of

__all__ = ["program"]

_BEGIN, _RUN, _RECORDS = "Begin", "Run and watch", "Records"


def _version(wanted: bool) -> None:
    if wanted:
        from eventsync import __version__

        typer.echo(f"eventsync {__version__}")
        raise typer.Exit


def _eventsync(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Keep the same records consistent across databases, files and services.

    Stores publish their changes to a queue, and workers apply them to the other stores. The last
    write wins everywhere. Your stores are declared in a Python module, "workers" by default, in the
    current folder. eventsync init writes an example.

    Examples:
      eventsync demo                        watch three stores in sync, in 30 seconds
      eventsync init shop                   start a project of your own
      eventsync worker crm                  apply changes of other stores to the store crm
      eventsync status                      show queues, dead letters and stores
      eventsync top                         show queues, stores and workers live
      eventsync find Customer               compare the records of all stores
    """


def _program() -> typer.Typer:
    app = typer.Typer(
        name="eventsync",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=help_of(_eventsync), epilog=EXIT_CODES)(_eventsync)
    for panel, commands in (
        (_BEGIN, (demo.demo, project.init, check.check)),
        (_RUN, (worker.worker, relay.relay, status.status, top.top, health.health)),
        (
            _RECORDS,
            (publish.publish, sync.sync, find.get, find.find, find.verify, unreadable.unreadable),
        ),
    ):
        for function in commands:
            app.command(help=help_of(function), rich_help_panel=panel, epilog=EXIT_CODES)(function)
    app.add_typer(dlq.dlq(), name="dlq", rich_help_panel=_RUN)
    app.add_typer(capture.capture(), name="capture", rich_help_panel=_RUN)
    app.add_typer(keys.keys(), name="keys", rich_help_panel=_RUN)
    return app


program = _program()
"""The command line as a Typer application."""
