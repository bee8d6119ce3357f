"""``eventsync worker``: runs one worker, or several in supervised processes."""

from __future__ import annotations

import gc
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
    from eventsync.worker.capture_service import CaptureService
    from eventsync.worker.worker import Worker

__all__ = ["LogLevel", "log_to_stderr", "log_unread", "work", "work_supervised", "worker"]


class LogLevel(StrEnum):
    """The levels of the log. Messages below the chosen level are not logged."""

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
            help="The store. Without it, --all is required.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run workers for all stores.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="The number of supervised processes per store.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="The largest number of changes a second.", show_default=False),
    ] = None,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Apply what waits now, then exit.")
    ] = False,
    listen: ListenOption = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="The lowest level to log; debug shows the outcome of every change."),
    ] = LogLevel.INFO,
) -> int:
    """Run a worker: apply the changes in the queue of STORE.

    The worker also publishes the store's outbox, completes pending records from other stores, and
    captures foreign writes if the store is declared with capture_every. If the store is declared
    with capture, the command also runs eventsync capture for it, in a process of its own. Start the
    command several times for several workers of one store. On SIGTERM, the worker finishes its
    current work and exits; a second SIGTERM ends the worker at once. No change is lost, not even by
    SIGKILL.

    While the store or the broker is unreachable, the worker waits. If one of them refuses the
    worker from the start, the worker ends with exit code 78.

    With --processes or --all, the workers run in processes of their own, which are restarted when
    they end or hang. A worker whose store hangs for longer than EVENTSYNC_STALL_AFTER seconds ends
    with exit code 71, and one that does not finish within EVENTSYNC_GRACE seconds with 70.

    With --listen, the command serves metrics and health over HTTP, at one address for all of its
    processes. eventsync health reads the health.

    The log goes to standard error: as text on a terminal, as JSON lines elsewhere.

    Examples:
      eventsync worker crm
      eventsync worker crm --processes 4    four processes, restarted if they end
      eventsync worker --all                one process for each store
      eventsync worker crm --drain          apply what waits, then exit
      eventsync worker crm --listen 0.0.0.0:9464
      eventsync worker crm 2>> crm.log      JSON lines
    """
    from eventsync.monitoring.worker_group import WorkerGroup
    from eventsync.worker.worker import Worker

    if every == (store is not None):
        raise typer.BadParameter("give either a STORE or --all")
    settings = deployment.settings
    log_to_stderr(log_level, settings)
    registry = deployment.registry
    registry.check()
    log_unread(deployment, lifeline)
    follows = not drain and lifeline is None and not every and registry[str(store)].captured_by
    if every or processes or follows:
        if drain:
            raise typer.BadParameter("--drain cannot be combined with --processes or --all")
        names = list(registry.stores) if every else [registry[str(store)].name]
        return _supervise(deployment, names, processes or 1, rate, log_level, listen)
    instance = Worker(
        registry[str(store)],
        deployment.bus,
        options=replace(settings.worker_options(), rate=rate),
        peers=registry,
    )
    if drain:
        if listen:
            raise typer.BadParameter("--listen and --drain exclude each other")
        instance.store.open().ping()  # some stores need no server to be opened
        instance.drain()
    elif lifeline is not None:
        work_supervised(instance, settings, lifeline)
    else:
        group = WorkerGroup(instance.counters)
        group.join(instance.store.name, instance.progress)
        with listening(deployment, listen, group, [instance.store]):
            work(instance, settings)
    return OK


def work_supervised(worker: Worker | CaptureService, settings: Settings, lifeline: int) -> None:
    """Run a worker or capture that a supervisor has started, and report its status to it.

    Reports each second and after each batch. ``lifeline``: the file descriptor of the connection to
    the supervisor. The worker stops when the supervisor dies.
    """
    from eventsync.monitoring.worker_group import StatusReporter
    from eventsync.worker.supervisor import Lifeline
    from eventsync.worker.worker import Worker

    line = Lifeline(lifeline)
    reporter = StatusReporter(worker.counters, worker.progress, line.send)
    if isinstance(worker, Worker):
        worker.before_acknowledge = reporter.report_if_possible
    line.watch(reporter.report)
    try:
        work(worker, settings)
    finally:
        reporter.report_if_possible()


def work(worker: Worker | CaptureService, settings: Settings) -> None:
    """Run a worker or capture until a signal, watched, and with a state file if one is set."""
    from eventsync.monitoring.worker_status import StateFile
    from eventsync.worker.signals import run
    from eventsync.worker.watchdog import Watchdog

    # What is imported stays. Without this, each full collection of garbage looks at all of it,
    # which makes a large answer or file five times as slow to read.
    gc.collect()
    gc.freeze()
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
    from eventsync.monitoring.worker_status import StateFile
    from eventsync.worker.supervisor import Supervisor

    commands = {}
    for name in stores:
        limit = rate or deployment.store(name).rate
        command = [sys.executable, "-m", "eventsync", "worker", name, "--log-level", level.value]
        command += ["--lifeline", "{lifeline}"]
        if limit:
            # The limit is for all processes of the store together.
            command += ["--rate", str(limit / processes)]
        for number in range(processes):
            commands[f"{name}-{number + 1}"] = command
        if deployment.store(name).captured_by:
            # Of several such processes, on this and other machines, one captures at a time.
            commands[f"{name}-capture"] = [
                *(sys.executable, "-m", "eventsync", "capture", "run", name),
                *("--log-level", level.value, "--lifeline", "{lifeline}"),
            ]
    settings = deployment.settings
    # Pass the options of this command on to the workers. Secrets that were read from files are not
    # put into the environment; the workers read the files themselves.
    given = {f"EVENTSYNC_{name.upper()}": value for name, value in deployment.given.items()}
    environment = {**os.environ, **given, "EVENTSYNC_LISTEN": ""}  # the supervisor listens
    group = WorkerGroup()
    folder = settings.state_dir
    state = StateFile(folder, group, name="supervisor") if folder else None
    supervisor = Supervisor(
        commands,
        environment=environment,
        grace=settings.grace,
        observer=group,
        each=state.write if state else lambda: None,
    )
    try:
        with listening(deployment, listen, group, [deployment.store(name) for name in stores]):
            return supervisor.run()
    finally:
        if state is not None:
            state.remove()


def log_unread(deployment: Deployment, lifeline: int | None = None) -> None:
    """Log the settings that nothing reads. Call this when the registry is known.

    ``lifeline``: given if a supervisor has started this process; the supervisor has told them.
    """
    import structlog

    texts = deployment.unread_settings()
    for text in texts if lifeline is None else ():
        structlog.get_logger("eventsync").warning("setting without effect", error=text)


def log_to_stderr(level: LogLevel, settings: Settings) -> None:
    """Send the log to standard error, with each secret of ``settings`` replaced."""
    from eventsync.monitoring.log import configure

    configure(level.value, sys.stderr, secrets=settings.secrets())
