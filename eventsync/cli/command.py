"""The parts that all commands share: the decorator, common options, exit codes, error reports.

A command is a function decorated with ``command``. The first parameter of the function is the
``Deployment``; the other parameters are the arguments and options of the command, declared as for
Typer. The function returns the exit code, or ``None`` for 0. The docstring of the function is the
help text of the command and ends with examples, one on each line.

A command raises the errors of ``eventsync.errors``, and the decorator reports them. To keep
``--help`` quick, a command imports stores, brokers and other slow modules inside its function.
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
from eventsync.cli.output import echo, warn
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

# Typer brings its own copy of click, and gives the base class of usage errors no name.
_TYPERS: Final[tuple[type[BaseException], ...]] = (
    typer.Exit,
    typer.Abort,
    *(
        one
        for one in typer.BadParameter.__mro__
        if issubclass(one, Exception) and one.__name__ == "ClickException"
    ),
)

EXIT_CODES: Final = (
    "Exit codes: 0 success; 1 a problem was found; 2 wrong usage; 69 a store or the broker is "
    "unreachable; 78 wrong configuration, or refused by a store or the broker."
)


def complete_store(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the stores that begin with ``incomplete``, for completion in a shell."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.stores))


def complete_type(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the record types that begin with ``incomplete``, for shell completion."""
    return _complete(ctx, incomplete, lambda deployment: list(deployment.registry.record_types))


def _complete(
    ctx: typer.Context, incomplete: str, names: Callable[[Deployment], list[str]]
) -> list[str]:
    app = ctx.params.get("app")
    try:
        deployment = Deployment(app=app)
        if not app and "app" not in deployment.settings.model_fields_set:
            # The module in the current folder may be anybody's. A key press must not run it.
            return []
        found = names(deployment)
    except EventSyncError:
        # A shell has no place to show an error of a completion.
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
    """Return a function that Typer can run as a command and that calls ``function``.

    The returned function has the additional options ``--app``, ``--broker`` and ``--debug``. It
    makes the deployment, passes it to ``function``, closes it afterwards, and reports errors (see
    ``reported``). A parameter whose type is a dataclass becomes one option for each field of the
    dataclass, so that several commands can share these options.
    """

    def run(
        app: str | None, broker: str | None, debug: bool, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        for name, options in shared.items():
            kwargs[name] = options(
                **{field.name: kwargs.pop(field.name) for field in fields(options)}
            )
        with reported(debug=debug), Deployment(app=app, broker=broker) as deployment:
            try:
                code = function(deployment, *args, **kwargs)
            finally:
                _tell_unread(deployment)
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


def _tell_unread(deployment: Deployment) -> None:
    """Warn of settings that nothing reads, unless the command has logged them."""
    for text in deployment.unread_settings():
        warn(text)


def _parameters(options: Any) -> Iterator[inspect.Parameter]:
    """Yield a keyword parameter for each field of the dataclass ``options``."""
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
    """Report an error that the ``with`` block raises, and exit with the code of the error.

    An ``EventSyncError`` or ``OSError`` is printed as one line on standard error, or with its
    traceback if ``debug`` is true. Any other exception is a fault of the program; its traceback is
    printed, without secrets. ``exit_code`` lists the codes.
    """
    try:
        yield
    except _TYPERS:
        raise  # usage errors, and the ends of commands
    except EventSyncError as error:
        if debug:
            _print_traceback(error)
        else:
            echo(f"eventsync: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except BrokenPipeError:
        raise  # the reader of the output is gone; Typer ends the command without a message
    except OSError as error:
        if debug:
            _print_traceback(error)
        echo(f"eventsync: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        _print_traceback(error)
        raise typer.Exit(FOUND_WRONG) from None


def _print_traceback(error: BaseException) -> None:
    """Print the traceback of an error, without the passwords of URLs and the known secrets."""
    import traceback

    from eventsync.config import known_secrets
    from eventsync.monitoring.log import Redaction

    text = "".join(traceback.format_exception(error))
    echo(Redaction(known_secrets()).text(text).rstrip(), err=True)


def exit_code(error: EventSyncError | OSError) -> int:
    """Return the exit code that tells a script what kind of error has ended a command.

    69: a store, the broker or the system failed. 78: the configuration is wrong. 2: a filter on the
    command line is wrong. 1: any other error.
    """
    if isinstance(error, StoreUnavailableError | BusUnavailableError | OSError):
        return UNAVAILABLE
    if isinstance(error, ConfigError):
        return CONFIG
    if isinstance(error, FilterError):
        return USAGE  # a filter comes from the command line
    return FOUND_WRONG


def split_names(given: list[str] | None) -> list[str] | None:
    """Return the names given to an option, or ``None`` if the option is not given.

    The option may be repeated, and each value may hold several names, separated by commas.
    """
    if not given:
        return None
    return [name.strip() for item in given for name in item.split(",") if name.strip()]


def duration(text: str, option: str) -> float:
    """Return a duration in seconds, given as a number and a unit: ``s``, ``m``, ``h`` or ``d``.

    A number without a unit is in seconds. ``option``: the name of the option, for the error. Raises
    ``typer.BadParameter`` if ``text`` has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not a duration; write for example 90s, 30m, 12h or 7d", param_hint=option
        )
    return float(found[1]) * _UNITS[found[2]]


def json_option(text: str | None, option: str) -> Any:
    """Return the JSON object that ``text`` holds, as a dict; ``None`` if the option is not given.

    ``option``: the name of the option, for the error. Raises ``typer.BadParameter`` if ``text`` is
    not a JSON object.
    """
    if text is None:
        return None
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"the value is not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(
            'the value is not a JSON object; write for example {"age": {"$gt": 30}}',
            param_hint=option,
        )
    return value


def help_of(function: Callable[..., Any]) -> str:
    """Return the docstring of a function as help text for Typer.

    The lines of a paragraph are joined, because Typer wraps them anew. A paragraph with indented
    lines, such as a list of examples, keeps its line breaks.
    """
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        paragraph if "\n " in paragraph else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )
