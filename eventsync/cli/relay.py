"""``eventsync relay``: publishes the outboxes of stores, or a spool."""

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
from eventsync.cli.worker import LogLevel, log_to_stderr, log_unread

if TYPE_CHECKING:
    from eventsync.broker.spool import Spool
    from eventsync.engine.store import Store

__all__ = ["relay"]

_ABORTED = 70  # EX_SOFTWARE: a second signal ended the relay while it worked; as for workers


@command
def relay(
    deployment: Deployment,
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE...",
            help="The stores. Without any, --all is required.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Publish the outboxes of all stores.")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", metavar="FILE", dir_okay=False, help="Publish this spool file."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Publish what waits now, then exit.")
    ] = False,
    as_json: JsonOption = False,
    listen: ListenOption = None,
    log_level: Annotated[LogLevel, typer.Option(help="The lowest level to log.")] = (LogLevel.INFO),
) -> int:
    """Publish the outboxes of stores, or a spool, until stopped.

    The worker of a store also publishes the outbox of this store. You need a relay only for a store
    whose worker runs elsewhere or not at all. Several relays and workers of a store may run: one at
    a time publishes, and if that process dies, another takes over after some seconds. While a store
    or the broker is unreachable, the relay waits. On SIGTERM, the relay finishes its current work
    and exits.

    With --spool, the relay publishes the changes that eventsync publish --spool, or a Spool in your
    program, wrote to the file.

    With --listen, the relay serves metrics and health over HTTP. eventsync health reads the health.

    The log goes to standard error. With --once, the command prints how many changes it published;
    with --json too, it prints the count as JSON.

    Examples:
      eventsync relay crm
      eventsync relay crm cache
      eventsync relay --all
      eventsync relay crm --once --json
      eventsync relay --spool changes.db
      eventsync relay --all --listen 0.0.0.0:9464
    """
    if (every, bool(stores), spool is not None).count(True) != 1:
        raise typer.BadParameter("give exactly one of STORE, --all and --spool")
    if as_json and not once:
        raise typer.BadParameter("--json requires --once")
    if listen and once:
        raise typer.BadParameter("--listen and --once exclude each other")
    log_to_stderr(log_level, deployment.settings)
    if spool is not None:
        taken = deployment.spool(spool)
        if once:
            return _spool_once(deployment, taken, as_json)
        return _serve_spool(deployment, taken, listen)
    registry = deployment.registry
    log_unread(deployment)
    chosen = list(registry) if every else [registry[name] for name in dict.fromkeys(stores or ())]
    if once:
        return _once(deployment, chosen, as_json)
    return _serve(deployment, chosen, listen)


def _once(deployment: Deployment, stores: list[Store], as_json: bool) -> int:
    bus = deployment.declare()
    # Do not take the lease of the outbox: if another relay held the lease, nothing would be
    # published.
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

    # Make the bus and the registry before the threads start, because the threads share them.
    bus, _ = deployment.bus, deployment.registry
    stopping = threading.Event()

    def run(store: Store) -> None:
        def connect() -> None:
            store.open()
            deployment.declare()

        with Relay(store, group.counted(store.name, bus)) as relay:
            serve(relay, stopping, connect=connect)

    group = WorkerGroup()
    with listening(deployment, listen, group, stores, relays=True):
        return _run_until_signal(stopping, [partial(run, store) for store in stores])


def _spool_once(deployment: Deployment, spool: Spool, as_json: bool) -> int:
    with spool, spool.relay(deployment.declare()) as relay:
        published = relay.run_once()
        state = asdict(spool.state())
    if as_json:
        print_json({"published": published, **state})
    else:
        typer.echo(
            f"{plural(published, 'change')} published; {state['waiting']:,} waiting, "
            f"{state['bytes']:,} bytes in the file."
        )
    return FOUND_WRONG if state["waiting"] else OK


def _serve_spool(deployment: Deployment, spool: Spool, listen: str | None) -> int:
    from eventsync.broker.relay import serve
    from eventsync.monitoring.worker_group import WorkerGroup

    stopping = threading.Event()

    def run() -> None:
        with spool, spool.relay(group.counted(spool.name, bus)) as relay:
            serve(
                relay,
                stopping,
                connect=deployment.declare,
                describe=lambda: asdict(spool.state()),
            )

    bus, group = deployment.bus, WorkerGroup()
    # Read the file once, so that a file that is not a spool ends the command at once.
    with spool:
        spool.state()
    with listening(deployment, listen, group, (), spools=[spool], relays=True):
        return _run_until_signal(stopping, [run])


def _run_until_signal(stopping: threading.Event, tasks: list[Callable[[], None]]) -> int:
    """Run each task in a thread, and return 0 when all tasks have ended.

    When a task fails, or SIGTERM or SIGINT arrives, ``stopping`` is set, and the other tasks must
    end. Raises the first error of a task. A second signal raises ``typer.Exit`` with code 70.
    """
    failed: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # raised by the main thread, below
            failed.append(error)
            stopping.set()

    signalled = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if signalled.is_set():
            # Exit at once. Changes that the broker has not confirmed stay in the outbox.
            raise typer.Exit(_ABORTED)
        signalled.set()

    handlers = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    # Daemon threads, so that a thread that hangs in a store does not keep the process alive.
    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    try:
        for thread in threads:
            thread.start()
        while not signalled.is_set() and not stopping.is_set():
            signalled.wait(0.2)
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
