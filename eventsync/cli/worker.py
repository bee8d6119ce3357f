"""``eventsync worker``: the process that drains one store's queue.

It owns how a worker logs. It must not know how a worker works.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from eventsync.cli.command import StoreArgument, command
from eventsync.cli.deployment import Deployment

__all__ = ["worker"]


class LogLevel(StrEnum):
    """From which level on a worker logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@command
def worker(
    deployment: Deployment,
    store: StoreArgument,
    drain: Annotated[
        bool, typer.Option("--drain", help="Apply what is there, then leave.")
    ] = False,
    log_level: Annotated[
        LogLevel, typer.Option(help="debug shows what became of every single change.")
    ] = LogLevel.INFO,
) -> None:
    """Run a worker: apply to STORE what comes in its queue.

    It also sends what waits in the store's outbox, completes pending records from the other
    stores, and captures edits made behind eventsync's back where the store says how often. Start
    the command several times for several workers of one store. SIGTERM has it finish what it has
    in hand and leave; at a second SIGTERM it leaves at once. Nothing is lost either way, nor by
    SIGKILL.

    Logs to standard error: for people on a terminal, as JSON lines elsewhere.

    Examples:
      eventsync worker crm
      eventsync worker crm --drain          apply what waits, then leave
      eventsync worker crm 2>> crm.log      JSON lines
    """
    from eventsync.worker import Worker, run

    _log_to_stderr(log_level)
    settings = deployment.settings
    registry = deployment.registry
    registry.check()
    working = Worker(
        registry[store], deployment.bus, options=settings.worker_options(), peers=registry
    )
    if drain:
        working.store.open()
        working.drain()
    else:
        run(working, grace=settings.grace)


def _log_to_stderr(level: LogLevel) -> None:
    import structlog

    terminal = sys.stderr.isatty()
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if terminal
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="%H:%M:%S" if terminal else "iso", utc=not terminal
            ),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level.value),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
