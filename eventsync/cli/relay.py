"""``eventsync relay``: publishes what waits in outboxes, without being a worker.

It owns which outboxes or spool, and when to leave. It must not know whose turn it is to publish.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventsync.cli.command import FOUND_WRONG, OK, JsonOption, command, complete_store
from eventsync.cli.deployment import Deployment
from eventsync.cli.listen import ListenOption, listening
from eventsync.cli.output import plural, print_json
from eventsync.cli.worker import LogLevel, log_to_stderr

if TYPE_CHECKING:
    from eventsync.broker.spool import Spool
    from eventsync.engine.store import Store

__all__ = ["relay"]

_ABORTED = 70  # EX_SOFTWARE: left before it had finished, as a worker that is told twice


@command
def relay(
    deployment: Deployment,
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE...",
            help="The stores' names; without any, --all.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="The outboxes of all stores.")] = False,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", metavar="FILE", dir_okay=False, help="A spool, not a store."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Publish what waits now, then leave.")
    ] = False,
    as_json: JsonOption = False,
    listen: ListenOption = None,
    log_level: Annotated[LogLevel, typer.Option(help="From which level on to log.")] = (
        LogLevel.INFO
    ),
) -> int:
    """Publish what waits in the outboxes of stores, or in a spool, until told to stop.

    For producers of a store whose worker runs elsewhere or not at all; a store's worker does the
    same beside its other work. Any number of relays and workers of a store may run: one of them
    publishes at a time, and another goes on some seconds after it died. A broker or store that is
    away is waited for. SIGTERM has it finish what it has in hand and leave.

    With --spool it publishes what eventsync publish --spool, or a Spool in your program, took in.

    With --listen it serves its metrics and its health over HTTP (eventsync health asks it).

    Logs to standard error. With --once it tells how much it published, and --json says so in JSON.

    Examples:
      eventsync relay crm
      eventsync relay crm cache
      eventsync relay --all
      eventsync relay crm --once --json
      eventsync relay --spool changes.db
      eventsync relay --all --listen 0.0.0.0:9464
    """
    if (every, bool(stores), spool is not None).count(True) != 1:
        raise typer.BadParameter("say which STORE, or --all, or --spool")
    if as_json and not once:
        raise typer.BadParameter("--json is for --once")
    if listen and once:
        raise typer.BadParameter("--listen is for a relay that goes on running")
    log_to_stderr(log_level, deployment.settings)
    if spool is not None:
        taken = deployment.spool(spool)
        if once:
            return _spool_once(deployment, taken, as_json)
        return _serve_spool(deployment, taken, listen)
    registry = deployment.registry
    chosen = list(registry) if every else [registry[name] for name in dict.fromkeys(stores or ())]
    if once:
        return _once(deployment, chosen, as_json)
    return _serve(deployment, chosen, listen)


def _once(deployment: Deployment, stores: list[Store], as_json: bool) -> int:
    bus = deployment.declare()
    # Now, whoever's turn it is: the caller wants it done when the command ends.
    published = {store.name: store.open().flush(bus) for store in stores}
    if as_json:
        print_json({"published": published})
    else:
        for name, count in published.items():
            typer.echo(f"{name}: {plural(count, 'change')} published.")
    return OK


def _serve(deployment: Deployment, stores: list[Store], listen: str | None) -> int:
    from eventsync.broker.relay import Relay, serve
    from eventsync.monitoring.worker_group import WorkerGroup

    # Made before the threads are, which share them.
    bus, _ = deployment.bus, deployment.registry
    stopping = threading.Event()

    def run(store: Store) -> None:
        def connect() -> None:
            store.open()
            deployment.declare()

        with Relay(store, crew.counted(store.name, bus)) as relay:
            serve(relay, stopping, connect=connect)

    crew = WorkerGroup()
    with listening(deployment, listen, crew, stores, relays=True):
        return _until_told(stopping, [partial(run, store) for store in stores])


def _spool_once(deployment: Deployment, spool: Spool, as_json: bool) -> int:
    with spool, spool.relay(deployment.declare()) as relay:
        published = relay.run_once()
        state = asdict(spool.state())
    if as_json:
        print_json({"published": published, **state})
    else:
        typer.echo(
            f"{plural(published, 'change')} published; {state['waiting']:,} wait, "
            f"{state['bytes']:,} bytes."
        )
    return FOUND_WRONG if state["waiting"] else OK


def _serve_spool(deployment: Deployment, spool: Spool, listen: str | None) -> int:
    from eventsync.broker.relay import serve
    from eventsync.monitoring.worker_group import WorkerGroup

    stopping = threading.Event()

    def run() -> None:
        with spool, spool.relay(crew.counted(spool.name, bus)) as relay:
            serve(
                relay,
                stopping,
                connect=deployment.declare,
                describe=lambda: asdict(spool.state()),
            )

    bus, crew = deployment.bus, WorkerGroup()
    # Made here, so that a wrong file ends the command at once.
    with spool:
        spool.state()
    with listening(deployment, listen, crew, (), spools=[spool], relays=True):
        return _until_told(stopping, [run])


def _until_told(stopping: threading.Event, tasks: list[Callable[[], None]]) -> int:
    """Run tasks in threads until one fails or a signal comes; then wait for them."""
    failed: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # told by the main thread, which ends the command with it
            failed.append(error)
            stopping.set()

    told = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if told.is_set():
            # At the second signal at once; what was not confirmed goes on waiting.
            raise typer.Exit(_ABORTED)
        told.set()

    handlers = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    # Daemons, so that one that hangs in its store cannot keep the process.
    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    try:
        for thread in threads:
            thread.start()
        while not told.is_set() and not stopping.is_set():
            told.wait(0.2)
        stopping.set()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    finally:
        stopping.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if failed:
        raise failed[0]
    return OK
