"""What every command has in common: its options, its deployment, and how its errors end it.

It owns the exit codes. It must not know any single command.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Concatenate, Final, ParamSpec

import typer

from eventsync.cli.deployment import Deployment
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    FilterError,
    StoreUnavailableError,
)

__all__ = [
    "CONFIG",
    "EXIT_CODES",
    "FOUND_WRONG",
    "OK",
    "UNAVAILABLE",
    "USAGE",
    "JsonOption",
    "StoreArgument",
    "TypeArgument",
    "command",
    "complete_store",
    "complete_type",
    "duration",
    "exit_code",
    "help_of",
    "json_option",
    "reported",
    "split_names",
]

P = ParamSpec("P")
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

OK: Final = 0
FOUND_WRONG: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 69  # EX_UNAVAILABLE of sysexits.h
CONFIG: Final = 78  # EX_CONFIG

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 something reported is wrong; 2 wrong usage; "
    "69 a store or the broker is away; 78 wrong configuration."
)


def complete_store(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of stores that begin so, for a shell."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.stores))


def complete_type(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of record types that begin so, for a shell."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.record_types))


def _complete(
    ctx: typer.Context, incomplete: str, names: Callable[[Deployment], list[str]]
) -> list[str]:
    try:
        found = names(Deployment(app=ctx.params.get("app")))
    except EventSyncError:
        # A shell that completes has nowhere to show an error; it offers nothing.
        return []
    return [name for name in found if name.startswith(incomplete)]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="The store's name.", autocompletion=complete_store)
]
TypeArgument = Annotated[
    str, typer.Argument(metavar="TYPE", help="The record type.", autocompletion=complete_type)
]
_AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:ATTR",
        help="Where your registry is (or EVENTSYNC_APP). Default: workers:registry",
        rich_help_panel="Deployment",
    ),
]
_BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="The broker (or EVENTSYNC_BROKER). Default: sqlite:///eventsync-broker.db",
        rich_help_panel="Deployment",
    ),
]
_DebugOption = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Deployment"),
]


def command(function: Callable[Concatenate[Deployment, P], int | None]) -> Callable[..., None]:
    """A command of ``function``, whose first argument is the deployment and whose result, if any,
    is the exit code.

    Adds ``--app``, ``--broker`` and ``--debug``, and turns errors into a line and an exit code.
    """

    def run(
        app: str | None, broker: str | None, debug: bool, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        with reported(debug=debug), Deployment(app=app, broker=broker) as deployment:
            code = function(deployment, *args, **kwargs)
        if code:
            raise typer.Exit(code)

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("app", kind, default=None, annotation=_AppOption),
        inspect.Parameter("broker", kind, default=None, annotation=_BrokerOption),
        inspect.Parameter("debug", kind, default=False, annotation=_DebugOption),
    ]
    parameters = [*(parameter.replace(kind=kind) for parameter in own), *shared]
    # Typer reads the signature, which stands for what ``run`` takes.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


@contextmanager
def reported(*, debug: bool = False) -> Iterator[None]:
    """Tell an error of eventsync in one line on standard error, and leave with its exit code."""
    try:
        yield
    except EventSyncError as error:
        if debug:
            import traceback

            traceback.print_exception(error)
        else:
            typer.echo(f"eventsync: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except BrokenPipeError:
        raise  # the reader of our output has left; Typer ends the command quietly
    except OSError as error:
        if debug:
            raise
        typer.echo(f"eventsync: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None


def exit_code(error: EventSyncError | OSError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, StoreUnavailableError | BusUnavailableError | OSError):
        return UNAVAILABLE
    if isinstance(error, ConfigError):
        return CONFIG
    if isinstance(error, FilterError):
        return USAGE  # a filter comes from the command line
    return FOUND_WRONG


def split_names(given: list[str] | None) -> list[str] | None:
    """The names in options that may be repeated, or hold several with commas between."""
    if not given:
        return None
    return [name.strip() for item in given for name in item.split(",") if name.strip()]


def duration(text: str, option: str) -> float:
    """The seconds that an option means: a number of seconds, or one with ``s, m, h`` or ``d``.

    Raises a usage error.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise typer.BadParameter("write a time as 90s, 30m, 12h or 7d", param_hint=option)
    return float(found[1]) * _UNITS[found[2]]


def json_option(text: str | None, option: str) -> Any:
    """The JSON object that an option holds, ``None`` without one. Raises a usage error."""
    if text is None:
        return None
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter('not a JSON object, as {"age": {"$gt": 30}}', param_hint=option)
    return value


def help_of(function: Callable[..., Any]) -> str:
    """A function's docstring as help: paragraphs in one line each, examples line by line."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        paragraph if "\n " in paragraph else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )
