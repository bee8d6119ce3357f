"""The parts that all commands share: the decorator, common options, exit codes, error reports.

A command is a function decorated with ``command``. Its first parameter is the ``Deployment``. The
others are its arguments and options, declared as for Typer. Its result is the exit code, or
``None`` for 0. Its docstring is its help text and ends with examples, one on each line. A command
raises the errors of ``eventsync.errors``, and the decorator reports them. To keep ``--help`` quick,
a command imports stores, brokers and other slow modules inside its function.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Concatenate, Final, ParamSpec, get_type_hints

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
    "Exit codes: 0 success; 1 a problem was found; 2 wrong usage; "
    "69 a store or the broker is unreachable; 78 wrong configuration."
)


def complete_store(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of stores that begin with ``incomplete``, for a shell."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.stores))


def complete_type(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of record types that begin with ``incomplete``, for a shell."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.record_types))


def _complete(
    ctx: typer.Context, incomplete: str, names: Callable[[Deployment], list[str]]
) -> list[str]:
    try:
        found = names(Deployment(app=ctx.params.get("app")))
    except EventSyncError:
        # Completion has no place to show an error.
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
        help="The store registry (or EVENTSYNC_APP). Default: workers:registry",
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
    """Return ``function`` as a command for Typer.

    Adds the options ``--app``, ``--broker`` and ``--debug``, opens and closes the deployment, and
    reports errors (see ``reported``). A parameter whose type is a dataclass stands for one option
    per field, so that commands can share a list of options.
    """

    def run(
        app: str | None, broker: str | None, debug: bool, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        for name, options in shared.items():
            kwargs[name] = options(
                **{field.name: kwargs.pop(field.name) for field in fields(options)}
            )
        with reported(debug=debug), Deployment(app=app, broker=broker) as deployment:
            code = function(deployment, *args, **kwargs)
        if code:
            raise typer.Exit(code)

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    shared: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    parameters: list[inspect.Parameter] = []
    for parameter in own:
        options = shared.get(parameter.name)
        parameters += [parameter] if options is None else _parameters(options)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(parameter.replace(kind=kind) for parameter in parameters),
        inspect.Parameter("app", kind, default=None, annotation=_AppOption),
        inspect.Parameter("broker", kind, default=None, annotation=_BrokerOption),
        inspect.Parameter("debug", kind, default=False, annotation=_DebugOption),
    ]
    # Typer reads the parameters from the signature and the annotations.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _parameters(options: Any) -> Iterator[inspect.Parameter]:
    """Yield a parameter for each field of a dataclass."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )


@contextmanager
def reported(*, debug: bool = False) -> Iterator[None]:
    """Report an error of the block in one line on standard error, and exit with its code.

    ``debug``: print the traceback instead. Other errors than those of eventsync and ``OSError`` are
    faults of the program and pass through.
    """
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
        raise  # the reader of the output is gone; Typer ends the command without a message
    except OSError as error:
        if debug:
            raise
        typer.echo(f"eventsync: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None


def exit_code(error: EventSyncError | OSError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, StoreUnavailableError | BusUnavailableError | OSError):
        return UNAVAILABLE
    if isinstance(error, ConfigError):
        return CONFIG
    if isinstance(error, FilterError):
        return USAGE  # a filter comes from the command line
    return FOUND_WRONG


def split_names(given: list[str] | None) -> list[str] | None:
    """Return the names in an option that is repeated or holds several names, split by commas."""
    if not given:
        return None
    return [name.strip() for item in given for name in item.split(",") if name.strip()]


def duration(text: str, option: str) -> float:
    """Return the seconds that an option states: a number, with the unit ``s, m, h`` or ``d``.

    A number without a unit is in seconds. Raises a usage error.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not a time; write 90s, 30m, 12h or 7d", param_hint=option
        )
    return float(found[1]) * _UNITS[found[2]]


def json_option(text: str | None, option: str) -> Any:
    """Return the JSON object in an option, or ``None`` without one. Raises a usage error."""
    if text is None:
        return None
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(
            'not a JSON object; write for example {"age": {"$gt": 30}}', param_hint=option
        )
    return value


def help_of(function: Callable[..., Any]) -> str:
    """Return a function's docstring as help text: each paragraph in one line, except examples."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        paragraph if "\n " in paragraph else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )
