"""``eventsync top``: shows stores and workers live in a terminal."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from eventsync.cli.command import OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import ago, draw_table, print_json, print_table, warn

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import ConsoleDimensions, RenderableType

    from eventsync.cli.snapshot import Sampler, Snapshot, StoreSnapshot, WorkerSnapshot

__all__ = ["top"]

_WIDE: Final = 120
_UNKNOWN: Final = "?"
_BEHIND: Final = 60.0
# A signal is noticed after so many seconds.
_STEP: Final = 0.1


@command
def top(
    deployment: Deployment,
    endpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="An endpoint of workers (--listen), as http://crm:9464. Can be repeated.",
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot and exit.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Watch stores and workers: what waits, how fast it is applied, and what is wrong.

    Stores (a narrow terminal shows fewer columns; ? means not known):
      waiting     messages in the queue
      in hand     messages that workers have taken
      oldest      how long the oldest message has waited
      behind      age of the oldest change that is not applied yet, as far as known
      changes/s   changes that the workers settle
      held        changes that cannot be applied yet and are retried
      dead        dead letters; see eventsync dlq list STORE
      outbox      changes that are not published yet
      since       how long the oldest change in the outbox has waited
      circuit     the circuit breaker: open while the store is unreachable

    The state of queues comes from the broker, and the state of outboxes from the stores. The state
    of workers comes from the endpoints that --endpoint names, and from the state files on this host
    if EVENTSYNC_STATE_DIR is set. If the host name of an endpoint has several addresses, all of
    them are asked.

    Press Ctrl-C to end the command. With --once or --json, or without a terminal, the command
    measures for one interval, prints the result and exits; the exit code is 69 if the broker is
    unreachable.

    Examples:
      eventsync top
      eventsync top --endpoint http://crm:9464 --endpoint http://cache:9464
      eventsync top --json | jq '.stores[] | select(.dead > 0)'
    """
    from eventsync.cli.snapshot import Sampler

    with Sampler(deployment, endpoints or (), every=every) as sampler:
        if once or as_json or not sys.stdout.isatty():
            return _once(sampler, every, as_json)
        _watch(sampler, every, deployment.bus.shown_url)
    return OK


def _once(sampler: Sampler, every: float, as_json: bool) -> int:
    sampler.wait(5.0)
    sampler.take()
    time.sleep(every)
    snapshot = sampler.take()
    if as_json:
        print_json(asdict(snapshot))
    else:
        columns = shutil.get_terminal_size().columns
        wide = columns >= _WIDE or not sys.stdout.isatty()
        print_table(**_table(_STORES, snapshot.stores, wide))
        if snapshot.workers:
            typer.echo()
            print_table(**_table(_WORKERS, snapshot.workers, wide))
        for problem in snapshot.problems:
            warn(problem)
        if not sampler.has_worker_sources:
            warn(_NO_WORKERS_KNOWN)
    return OK if snapshot.broker else UNAVAILABLE


def _watch(sampler: Sampler, every: float, broker: str) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    signals: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        # Not a KeyboardInterrupt, which is lost if it is raised in a finalizer.
        signals.append(number)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        sampler.wait(1.0)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not signals:
                snapshot = sampler.take()
                live.update(_screen(snapshot, sampler, broker, console.size, every), refresh=True)
                shown_at = time.monotonic()
                while not signals and time.monotonic() - shown_at < every:
                    time.sleep(min(_STEP, every))
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _screen(
    snapshot: Snapshot, sampler: Sampler, broker: str, size: ConsoleDimensions, every: float
) -> RenderableType:
    """Return one screen: the stores, the problems, and as many workers as fit below them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    name = Text.assemble(("eventsync top  ", "bold"), broker)
    if not snapshot.broker:
        name.append("  unreachable", style="bold red")
    head.add_row(
        name, f"{time.strftime('%H:%M:%S', time.localtime(snapshot.at))}  every {every:g} s"
    )
    wide = size.width >= _WIDE
    parts: list[Any] = [head, Text(), draw_table(**_table(_STORES, snapshot.stores, wide)), Text()]
    used = 5 + len(snapshot.stores)
    if snapshot.problems:
        parts += [Text(problem, style="red", overflow="fold") for problem in snapshot.problems]
        parts.append(Text())
        used += 1 + sum(-(-len(problem) // size.width) for problem in snapshot.problems)
    if not sampler.has_worker_sources:
        parts.append(Text(_NO_WORKERS_KNOWN, style="dim"))
    if snapshot.workers:
        workers, room = snapshot.workers, max(1, size.height - used - 2)
        if len(workers) > room:
            # Show workers with problems first, and keep the order otherwise (the sort is stable).
            workers = sorted(workers, key=lambda w: (w.circuit == "closed", w.silence < _BEHIND))
            workers = workers[: max(1, room - 1)]
        parts.append(draw_table(**_table(_WORKERS, workers, wide)))
        if len(workers) < len(snapshot.workers):
            left = len(snapshot.workers) - len(workers)
            parts.append(Text(f"and {left:,} more", style="dim"))
    return Group(*parts)


_NO_WORKERS_KNOWN: Final = (
    "Workers are not shown: name their endpoints with --endpoint, or set EVENTSYNC_STATE_DIR."
)


@dataclass(slots=True, frozen=True)
class _Column:
    """A column of a table of stores or workers.

    ``show`` and ``mark`` get the snapshot of a store or worker and return the text of its cell and
    the colour of that cell, if any. ``left``: whether the column is left-aligned. ``wide``: whether
    the column is shown only on a terminal of at least 120 columns.
    """

    title: str
    show: Callable[[Any], str]
    mark: Callable[[Any], str | None] = lambda thing: None
    left: bool = False
    wide: bool = False


def _number(value: int | float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _age(value: float | None) -> str:
    return _UNKNOWN if value is None else ago(value)


def _size(value: int) -> str:
    return f"{value / (1 << 20):,.0f} MB"


def _red(is_wrong: Callable[[Any], bool]) -> Callable[[Any], str | None]:
    return lambda thing: "bold red" if is_wrong(thing) else None


def _is_behind(lag: float | None) -> str | None:
    return "yellow" if lag is not None and lag > _BEHIND else None


_STORES: Final = (
    _Column("store", lambda s: s.store, left=True),
    _Column("waiting", lambda s: _number(s.waiting)),
    _Column("in hand", lambda s: _number(s.in_hand), wide=True),
    _Column("oldest", lambda s: _age(s.oldest), wide=True),
    _Column("behind", lambda s: _age(s.lag), lambda s: _is_behind(s.lag)),
    _Column("changes/s", lambda s: _number(s.rate)),
    _Column("held", lambda s: _number(s.held), wide=True),
    _Column("dead", lambda s: _number(s.dead), _red(lambda s: bool(s.dead))),
    _Column("outbox", lambda s: _number(s.outbox)),
    _Column(
        "since", lambda s: _age(s.outbox_oldest), lambda s: _is_behind(s.outbox_oldest), wide=True
    ),
    _Column("workers", lambda s: _number(s.workers), _red(lambda s: s.workers == 0)),
    _Column(
        "circuit",
        lambda s: s.circuit or _UNKNOWN,
        _red(lambda s: s.circuit not in (None, "closed")),
        left=True,
    ),
)
_WORKERS: Final = (
    _Column("worker", lambda w: w.worker, left=True),
    _Column("pid", lambda w: str(w.pid)),
    _Column("doing", lambda w: w.doing, left=True),
    _Column("silent", lambda w: ago(max(0.0, w.silence)), lambda w: _is_behind(w.silence)),
    _Column("in hand", lambda w: _number(w.in_hand), wide=True),
    _Column("behind", lambda w: ago(w.lag), lambda w: _is_behind(w.lag), wide=True),
    _Column("changes/s", lambda w: _number(w.rate)),
    _Column("messages", lambda w: _number(w.messages), wide=True),
    _Column("memory", lambda w: _size(w.memory)),
    _Column("up", lambda w: ago(max(0.0, time.time() - w.started)), wide=True),
    _Column("circuit", lambda w: w.circuit, _red(lambda w: w.circuit != "closed"), left=True),
    _Column("at", lambda w: w.where, left=True, wide=True),
)


def _table(
    columns: tuple[_Column, ...], things: list[StoreSnapshot] | list[WorkerSnapshot], wide: bool
) -> dict[str, Any]:
    """Return the arguments for ``print_table`` or ``draw_table``, with a row for each snapshot.

    ``wide``: include the columns that only a wide terminal shows.
    """
    visible = [column for column in columns if wide or not column.wide]
    return {
        "columns": [column.title for column in visible],
        "rows": [[column.show(thing) for column in visible] for thing in things],
        "right": [number for number, column in enumerate(visible) if not column.left],
        "marked": lambda row, number: visible[number].mark(things[row]),
    }
