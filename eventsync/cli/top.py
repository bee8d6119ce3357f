"""``eventsync top``: stores and workers live in a terminal.

It owns what is shown where. It must not know where a fact comes from.
"""

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
    from rich.console import ConsoleDimensions, RenderableType

    from eventsync.cli.snapshot import Lookout, Snapshot, StoreSight, WorkerSight

__all__ = ["top"]

_WIDE: Final = 120
_UNKNOWN: Final = "?"
_BEHIND: Final = 60.0


@command
def top(
    deployment: Deployment,
    endpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Where workers listen (--listen), as http://crm:9464. Repeat it for several.",
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and print it.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Watch stores and workers: what waits, how fast it is applied, how far behind, what is wrong.

    Of each store, waiting: messages in its queue; behind: the age of the oldest change that is not
    applied yet, as far as it is seen; changes/s: those that its workers settle; dead: dead letters;
    outbox: changes not published yet. A wider terminal shows more. ? is what nobody can tell.

    Queues and outboxes are asked for at the broker and in the stores. Workers are known from the
    endpoints that --endpoint names (a name with several addresses stands for all of them), and with
    EVENTSYNC_STATE_DIR set from the state files on this host.

    Ctrl-C ends it. Off a terminal, and with --once or --json, it looks for the length of one
    interval and prints that; the exit code is then 69 if the broker cannot be asked.

    Examples:
      eventsync top
      eventsync top --endpoint http://crm:9464 --endpoint http://cache:9464
      eventsync top --json | jq '.stores[] | select(.dead > 0)'
    """
    from eventsync.cli.snapshot import Lookout

    with Lookout(deployment, endpoints or (), every=every) as lookout:
        if once or as_json or not sys.stdout.isatty():
            return _once(lookout, every, as_json)
        _watch(lookout, every, deployment.bus.shown_url)
    return OK


def _once(lookout: Lookout, every: float, as_json: bool) -> int:
    lookout.wait(5.0)
    lookout.look()
    time.sleep(every)
    sight = lookout.look()
    if as_json:
        print_json(asdict(sight))
    else:
        columns = shutil.get_terminal_size().columns
        wide = columns >= _WIDE or not sys.stdout.isatty()
        print_table(**_sheet(_STORES, sight.stores, wide))
        if sight.workers:
            typer.echo()
            print_table(**_sheet(_WORKERS, sight.workers, wide))
        for problem in sight.problems:
            warn(problem)
        if not lookout.knows_workers:
            warn(_NOBODY)
    return OK if sight.broker else UNAVAILABLE


def _watch(lookout: Lookout, every: float, broker: str) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    # Ended in whatever way, it gives the terminal back as it was.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        lookout.wait(1.0)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                sight = lookout.look()
                live.update(_screen(sight, lookout, broker, console.size, every), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _screen(
    sight: Snapshot, lookout: Lookout, broker: str, size: ConsoleDimensions, every: float
) -> RenderableType:
    """What fits a screen: first what is wrong, then as many workers as there is room for."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    name = Text.assemble(("eventsync top  ", "bold"), broker)
    if not sight.broker:
        name.append("  away", style="bold red")
    head.add_row(name, f"{time.strftime('%H:%M:%S', time.localtime(sight.at))}  every {every:g} s")
    wide = size.width >= _WIDE
    parts: list[Any] = [head, Text(), draw_table(**_sheet(_STORES, sight.stores, wide)), Text()]
    used = 5 + len(sight.stores)
    if sight.problems:
        parts += [Text(problem, style="red", overflow="fold") for problem in sight.problems]
        parts.append(Text())
        used += 1 + sum(-(-len(problem) // size.width) for problem in sight.problems)
    if not lookout.knows_workers:
        parts.append(Text(_NOBODY, style="dim"))
    if sight.workers:
        workers, room = sight.workers, max(1, size.height - used - 2)
        if len(workers) > room:
            # Those in trouble first; the sort keeps the others in their order.
            workers = sorted(workers, key=lambda w: (w.circuit == "closed", w.silence < _BEHIND))
            workers = workers[: max(1, room - 1)]
        parts.append(draw_table(**_sheet(_WORKERS, workers, wide)))
        if len(workers) < len(sight.workers):
            left = len(sight.workers) - len(workers)
            parts.append(Text(f"and {left:,} more", style="dim"))
    return Group(*parts)


_NOBODY: Final = (
    "Nobody tells of workers: name their endpoints with --endpoint, or set EVENTSYNC_STATE_DIR."
)


@dataclass(slots=True, frozen=True)
class _Column:
    """A column of a table of things: what it shows of one, and when that is marked."""

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


def _sheet(
    columns: tuple[_Column, ...], things: list[StoreSight] | list[WorkerSight], wide: bool
) -> dict[str, Any]:
    """A table, as ``print_table`` and ``draw_table`` take it."""
    shown = [column for column in columns if wide or not column.wide]
    return {
        "columns": [column.title for column in shown],
        "rows": [[column.show(thing) for column in shown] for thing in things],
        "right": [number for number, column in enumerate(shown) if not column.left],
        "marked": lambda row, number: shown[number].mark(things[row]),
    }
