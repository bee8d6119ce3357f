"""``eventsync worker``: the process that drains one store's queue.

It owns which processes there are. It must not know how a worker works.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from eventsync.cli.command import OK, command, complete_store
from eventsync.cli.deployment import Deployment
from eventsync.cli.listen import ListenOption, listening

if TYPE_CHECKING:
    from eventsync.config import Settings
    from eventsync.worker.worker import Worker

__all__ = ["LogLevel", "log_to_stderr", "worker"]


class LogLevel(StrEnum):
    """From which level on a worker logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@command
def worker(
    deployment: Deployment,
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE",
            help="The store's name; without it, --all.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Workers of all stores.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many supervised processes a store.", show_default=False),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Changes a second at most.", show_default=False),
    ] = None,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Apply what is there, then leave.")
    ] = False,
    listen: ListenOption = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="debug shows what became of every single change.")
    ] = LogLevel.INFO,
) -> int:
    """Run a worker: apply to STORE what comes in its queue.

    It also sends what waits in the store's outbox, completes pending records from the other
    stores, and captures edits made behind eventsync's back where the store says how often. Start
    the command several times for several workers of one store. SIGTERM has it finish what it has
    in hand and leave; at a second SIGTERM it leaves at once. Nothing is lost either way, nor by
    SIGKILL.

    With --processes or --all the workers run in processes of their own, which are started again
    when they end or hang. A worker whose store hangs for longer than EVENTSYNC_STALL_AFTER ends
    with 71, and one that does not finish in time with 70.

    With --listen it serves its metrics and its health over HTTP, one endpoint for all processes of
    the command (eventsync health asks it).

    Logs to standard error: for people on a terminal, as JSON lines elsewhere.

    Examples:
      eventsync worker crm
      eventsync worker crm --processes 4    four of them, kept running
      eventsync worker --all                one for each store, kept running
      eventsync worker crm --drain          apply what waits, then leave
      eventsync worker crm --listen 0.0.0.0:9464
      eventsync worker crm 2>> crm.log      JSON lines
    """
    from eventsync.monitoring.worker_group import WorkerGroup
    from eventsync.worker.worker import Worker

    if every == (store is not None):
        raise typer.BadParameter("say which STORE, or --all")
    settings = deployment.settings
    log_to_stderr(log_level, settings)
    registry = deployment.registry
    registry.check()
    if every or processes:
        if drain:
            raise typer.BadParameter("--drain is for one worker, without --processes or --all")
        names = list(registry.stores) if every else [registry[str(store)].name]
        return _supervise(deployment, names, processes or 1, rate, log_level, listen)
    working = Worker(
        registry[str(store)],
        deployment.bus,
        options=replace(settings.worker_options(), rate=rate),
        peers=registry,
    )
    if drain:
        if listen:
            raise typer.BadParameter("--listen is for a worker that goes on running")
        working.store.open()
        working.drain()
    elif lifeline is not None:
        _work_supervised(working, settings, lifeline)
    else:
        crew = WorkerGroup(working.counters)
        crew.join(working.store.name, working.progress)
        with listening(deployment, listen, crew, [working.store]):
            _work(working, settings)
    return OK


def _work_supervised(worker: Worker, settings: Settings, lifeline: int) -> None:
    """Work, and report to the supervisor each second and after each batch."""
    from eventsync.monitoring.worker_group import StatusReporter
    from eventsync.worker.supervisor import Lifeline

    line = Lifeline(lifeline)
    reporter = StatusReporter(worker.counters, worker.progress, line.send)
    worker.before_acknowledge = reporter.report_if_possible
    line.watch(reporter.report)
    try:
        _work(worker, settings)
    finally:
        reporter.report_if_possible()


def _work(worker: Worker, settings: Settings) -> None:
    from eventsync.monitoring.worker_status import StateFile
    from eventsync.worker.signals import run
    from eventsync.worker.watchdog import Watchdog

    state = StateFile(settings.state_dir, worker.progress) if settings.state_dir else None
    each = state.write if state else lambda: None
    try:
        run(
            worker,
            grace=settings.grace,
            watchdog=Watchdog(worker.progress, stall_after=settings.stall_after, each=each),
        )
    finally:
        if state is not None:
            state.remove()


def _supervise(
    deployment: Deployment,
    stores: list[str],
    processes: int,
    rate: float | None,
    level: LogLevel,
    listen: str | None,
) -> int:
    from eventsync.monitoring.worker_group import WorkerGroup
    from eventsync.worker.supervisor import Supervisor

    commands = {}
    for name in stores:
        limit = rate or deployment.store(name).rate
        command = [sys.executable, "-m", "eventsync", "worker", name, "--log-level", level.value]
        command += ["--lifeline", "{lifeline}"]
        if limit:
            # Together they keep to what the store allows.
            command += ["--rate", str(limit / processes)]
        for number in range(processes):
            commands[f"{name}-{number + 1}"] = command
    settings = deployment.settings
    # Only what came by an option, which everybody on the host could read; what is in a file of
    # secrets is to stay there.
    given = {f"EVENTSYNC_{name.upper()}": held for name, held in deployment.given.items()}
    environment = {**os.environ, **given, "EVENTSYNC_LISTEN": ""}  # the one endpoint is here
    crew = WorkerGroup()
    supervisor = Supervisor(commands, environment=environment, grace=settings.grace, observer=crew)
    with listening(deployment, listen, crew, [deployment.store(name) for name in stores]):
        return supervisor.run()


def log_to_stderr(level: LogLevel, settings: Settings) -> None:
    """Log to standard error, without the secrets that the settings hold."""
    from eventsync.monitoring.log import configure

    configure(level.value, sys.stderr, secrets=settings.secrets())
