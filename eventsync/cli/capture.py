"""``eventsync capture``: captures the foreign writes of a store as they happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from eventsync.cli.command import (
    EXIT_CODES,
    FOUND_WRONG,
    OK,
    JsonOption,
    StoreArgument,
    command,
    help_of,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.listen import ListenOption, listening
from eventsync.cli.output import echo, print_json, print_table
from eventsync.cli.worker import LogLevel, log_to_stderr, log_unread, work, work_supervised
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from eventsync.engine.change_source import ChangeSource, SourceState
    from eventsync.engine.finding import Finding
    from eventsync.engine.store import Store

__all__ = ["capture"]

_KindOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="KIND",
        help="The kind of the source. Default: as the store is declared.",
        show_default=False,
    ),
]


class _RunByDefault(TyperGroup):
    """A group whose command ``run`` may be left out: ``eventsync capture crm``."""

    # ``Any``, because Typer brings its own copy of click, whose types are private.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


def capture() -> typer.Typer:
    """Return the Typer application with the commands ``eventsync capture ...``."""
    app = typer.Typer(no_args_is_help=True, help=help_of(_capture), cls=_RunByDefault)
    for name, function in (
        ("run", run),
        ("status", status),
        ("install", install),
        ("remove", remove),
        ("print-sql", print_sql),
    ):
        app.command(name, help=help_of(function), epilog=EXIT_CODES)(function)
    return app


def _capture() -> None:
    """Capture the writes of other programs in a store as they happen.

    A store declared with capture="auto", or with the kind of a source, is captured by its worker.
    To capture in a process of its own, name the store: eventsync capture crm.

    Examples:
      eventsync capture crm                 capture the writes in the store crm
      eventsync capture status crm          what captures, and how far behind it is
      eventsync capture print-sql crm       the statements, for the administrator
      eventsync capture install crm         run these statements
      eventsync capture remove crm          remove what was installed
    """


@command
def run(
    deployment: Deployment,
    store: StoreArgument,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    listen: ListenOption = None,
    log_level: Annotated[LogLevel, typer.Option(help="The lowest level to log.")] = LogLevel.INFO,
) -> int:
    """Capture the foreign writes in STORE as they happen, until stopped.

    The word run may be left out. eventsync worker does this, too, in a process of its own. If
    several processes capture the same store, one works, and another takes over within seconds when
    it ends.

    At the first start, all records are read once. After a restart, the capture continues where it
    was. While the store or the broker is away, it waits.

    The log goes to standard error.

    Examples:
      eventsync capture crm
      eventsync capture run crm --listen 0.0.0.0:9464
    """
    from eventsync.monitoring.worker_group import WorkerGroup
    from eventsync.worker.capture_service import CaptureService

    settings = deployment.settings
    log_to_stderr(log_level, settings)
    opened = deployment.store(store)
    _declared_kind(opened)
    log_unread(deployment, lifeline)
    service = CaptureService(opened, deployment.bus, options=settings.worker_options())
    if lifeline is not None:
        work_supervised(service, settings, lifeline)
        return OK
    group = WorkerGroup(service.counters)
    group.join(f"{opened.name}-capture", service.progress)
    with listening(deployment, listen, group, [opened]):
        work(service, settings)
    return OK


@command
def status(
    deployment: Deployment,
    store: StoreArgument,
    kind: _KindOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show what captures the foreign writes of STORE, whether it is installed, and what waits.

    Ends with 1 if something is missing.

    Examples:
      eventsync capture status crm
      eventsync capture status crm --json
    """
    from eventsync.engine.finding import Level

    opened = deployment.store(store)
    source = _source(opened, kind)
    with opened.errors():
        state, findings = source.state(), list(source.findings())
    copies = opened.whole_reads()
    wrong = not state.installed or any(f.level is Level.WRONG for f in findings)
    if as_json:
        print_json(
            {
                "store": opened.name,
                "source": source.kind,
                **asdict(state),
                "findings": [asdict(finding) for finding in findings],
                "reading": {t: {**asdict(c), "remaining": c.remaining} for t, c in copies.items()},
            }
        )
    else:
        _print_state(opened.name, source, state, findings)
        for type, copy in copies.items():
            left = "" if copy.remaining is None else f", about {copy.remaining:,.0f} s left"
            echo(f"reading all {type}: {copy.done:,} of {copy.total:,}{left} ({copy.reason})")
    return FOUND_WRONG if wrong else OK


@command
def install(deployment: Deployment, store: StoreArgument, kind: _KindOption = None) -> int:
    """Create in STORE what its capture needs, for example triggers. Idempotent.

    Needs the rights for it; eventsync capture print-sql shows the statements for somebody else.

    Examples:
      eventsync capture install crm
      eventsync capture install crm --source triggers
    """
    opened = deployment.store(store)
    source = _source(opened, kind)
    with opened.errors():
        opened.open()
        source.install()
    echo(f"{opened.name}: capture by {source.kind} is installed.")
    return OK


@command
def remove(deployment: Deployment, store: StoreArgument, kind: _KindOption = None) -> int:
    """Remove from STORE what its capture created there, and forget how far it was. Idempotent.

    Examples:
      eventsync capture remove crm
    """
    opened = deployment.store(store)
    source = _source(opened, kind)
    with opened.errors():
        source.remove()
        opened.forget_mark(source)
    echo(f"{opened.name}: capture by {source.kind} is removed.")
    return OK


@command
def print_sql(deployment: Deployment, store: StoreArgument, kind: _KindOption = None) -> int:
    """Print the statements that eventsync capture install would run in STORE.

    Examples:
      eventsync capture print-sql crm
      eventsync capture print-sql crm | psql crm
    """
    opened = deployment.store(store)
    source = _source(opened, kind)
    with opened.errors():
        script = source.script()
    echo(script.rstrip())
    if not script:
        raise ConfigError(
            f"capture by {source.kind} needs no statements in store {opened.name!r}",
            hint="run: eventsync capture status " + opened.name,
        )
    return OK


def _declared_kind(store: Store) -> str:
    if store.captured_by is None:
        raise ConfigError(
            f"store {store.name!r} is not declared with a way to capture foreign writes",
            hint='declare it with Store(..., capture="auto")',
        )
    return store.captured_by


def _source(store: Store, kind: str | None) -> ChangeSource:
    with store.errors():
        return store.change_source(kind)


def _print_state(
    name: str, source: ChangeSource, state: SourceState, findings: Sequence[Finding]
) -> None:
    def shown(value: int | None) -> str:
        return "unknown" if value is None else f"{value:,}"

    rows: list[list[Any]] = [
        ["source", source.kind],
        ["installed", "yes" if state.installed else "no"],
        ["waiting changes", shown(state.waiting)],
    ]
    if state.lag_bytes is not None:
        rows.append(["bytes behind", shown(state.lag_bytes)])
    if state.retained_bytes is not None:
        rows.append(["bytes of log retained", shown(state.retained_bytes)])
    rows += [[name, value] for name, value in state.details.items()]
    print_table([name, ""], rows)
    for finding in findings:
        echo(f"{finding.level.name}: {finding.about}: {finding.text}")
        for statement in finding.statements:
            echo(f"    {statement}{source.statement_end}")
