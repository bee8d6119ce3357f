"""``eventsync dlq``: the dead letters of a store, listed, explained, replayed, mended, discarded.

It owns the options. It must not know how letters are kept, nor how they are shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsync.cli.command import (
    EXIT_CODES,
    FOUND_WRONG,
    OK,
    JsonOption,
    StoreArgument,
    command,
    complete_type,
    duration,
    help_of,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import note, plural, print_json, warn
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from eventsync.broker.bus import QueueBrowser
    from eventsync.cli.dead_letters import Choice, Found

__all__ = ["letters"]

_PANEL = "Which letters"
_IdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--id", metavar="ID", help="Of this id (its end is enough).", rich_help_panel=_PANEL
    ),
]
_AllOption = Annotated[bool, typer.Option("--all", help="All of them.", rich_help_panel=_PANEL)]
_ReasonOption = Annotated[
    str | None,
    typer.Option("--reason", metavar="REASON", help="Dead for this.", rich_help_panel=_PANEL),
]
_TypeOption = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="Of this record type.",
        autocompletion=complete_type,
        rich_help_panel=_PANEL,
    ),
]
_KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Of this record.", rich_help_panel=_PANEL),
]
_OlderOption = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        metavar="TIME",
        help="Last tried longer ago than this, as 90s, 30m, 12h or 7d.",
        rich_help_panel=_PANEL,
    ),
]


def letters() -> typer.Typer:
    """The commands about dead letters, under one name."""
    app = typer.Typer(no_args_is_help=True, help=help_of(_dlq))
    for name, function in (
        ("list", list_letters),
        ("show", show),
        ("replay", replay),
        ("edit", edit),
        ("discard", discard),
    ):
        app.command(name, help=help_of(function), epilog=EXIT_CODES)(function)
    return app


def _dlq() -> None:
    """List, explain, replay, mend or discard what a store could not apply.

    A dead letter holds the original bytes of a change that the store refused, or of a message that
    is none, with the reason. Nothing is ever dropped silently: what is not applied or superseded is
    here.

    Examples:
      eventsync dlq list crm
      eventsync dlq show crm --id 3f2a
      eventsync dlq replay crm --reason rejected        after the cause is gone
      eventsync dlq edit crm --id 3f2a --set name=Ann   when the record is wrong
    """


@command
def list_letters(
    deployment: Deployment,
    store: StoreArgument,
    id: _IdOption = None,
    reason: _ReasonOption = None,
    type: _TypeOption = None,
    key: _KeyOption = None,
    older_than: _OlderOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters of STORE, oldest first.

    Examples:
      eventsync dlq list crm
      eventsync dlq list crm --reason rejected --json | jq -r '.[].key'
    """
    from eventsync.cli.dead_letters import Choice
    from eventsync.cli.explain import letter_json, print_letters

    choice = Choice(
        ids=id or (), every=True, reason=reason, type=type, key=key, until=_until(older_than)
    )
    with _chosen(deployment, store, choice) as (_, chunks):
        found = [one for chunk in chunks for one in chunk]
        if as_json:
            print_json([letter_json(one) for one in found])
        elif found:
            print_letters(found)
        else:
            typer.echo("No dead letters.")


@command
def show(
    deployment: Deployment,
    store: StoreArgument,
    id: _IdOption = None,
    every: _AllOption = False,
    reason: _ReasonOption = None,
    type: _TypeOption = None,
    key: _KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain dead letters: why, since when, what they say, and what STORE holds instead.

    Examples:
      eventsync dlq show crm --id 3f2a
      eventsync dlq show crm --all
    """
    from eventsync.cli.dead_letters import Choice
    from eventsync.cli.explain import explanation, print_letter

    choice = Choice(ids=id or (), every=every, reason=reason, type=type, key=key)
    with _chosen(deployment, store, choice) as (_, chunks):
        target = deployment.store(store)
        found = [explanation(one, target) for chunk in chunks for one in chunk]
        _some(found, choice)
        if as_json:
            print_json(found)
        else:
            for one in found:
                print_letter(one)


@command
def replay(
    deployment: Deployment,
    store: StoreArgument,
    id: _IdOption = None,
    every: _AllOption = False,
    reason: _ReasonOption = None,
    type: _TypeOption = None,
    key: _KeyOption = None,
    older_than: _OlderOption = None,
    as_json: JsonOption = False,
) -> int:
    """Send dead letters to STORE's queue once more, just as they came.

    They go to this store only, and pass its version gate again: what was overtaken meanwhile
    changes nothing. One that fails again is dead again. QueueBrowser that hold no change cannot be
    replayed and stay; the exit code is then 1.

    Examples:
      eventsync dlq replay crm --id 3f2a
      eventsync dlq replay crm --reason rejected
      eventsync dlq replay crm --all
    """
    from eventsync.cli.dead_letters import Choice
    from eventsync.cli.dead_letters import replay as send_again

    choice = Choice(
        ids=id or (), every=every, reason=reason, type=type, key=key, until=_until(older_than)
    )
    sent: list[str] = []
    stay: list[str] = []
    with _chosen(deployment, store, choice) as (opened, chunks):
        # So that the queue is there even if the store's worker has never run.
        bus = deployment.declare()
        for chunk in chunks:
            left = [one.id for one in send_again(bus, store, opened, chunk)]
            stay += left
            sent += [one.id for one in chunk if one.id not in left]
    _some(sent + stay, choice)
    if as_json:
        print_json({"replayed": sent, "not_a_change": stay})
    else:
        typer.echo(f"{plural(len(sent), 'letter')} sent to the queue of {store} again.")
        for one in stay:
            warn(f"letter {one[-8:]} holds no change, so it cannot be replayed; it stays")
    return FOUND_WRONG if stay else OK


@command
def discard(
    deployment: Deployment,
    store: StoreArgument,
    id: _IdOption = None,
    every: _AllOption = False,
    reason: _ReasonOption = None,
    type: _TypeOption = None,
    key: _KeyOption = None,
    older_than: _OlderOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Throw dead letters away for good.

    Examples:
      eventsync dlq discard crm --id 3f2a
      eventsync dlq discard crm --reason foreign --yes
      eventsync dlq discard crm --older-than 3d
    """
    from eventsync.cli.dead_letters import Choice

    choice = Choice(
        ids=id or (), every=every, reason=reason, type=type, key=key, until=_until(older_than)
    )
    with _chosen(deployment, store, choice) as (opened, chunks):
        found = [one for chunk in chunks for one in chunk]
        _some(found, choice)
        what = plural(len(found), "dead letter")
        if not yes:
            typer.confirm(f"Throw {what} of {store} away for good?", abort=True, err=True)
        opened.settle(one.delivery for one in found)
    if as_json:
        print_json({"discarded": [one.id for one in found]})
    else:
        typer.echo(f"{what} discarded.")


@command
def edit(
    deployment: Deployment,
    store: StoreArgument,
    id: _IdOption = None,
    every: _AllOption = False,
    reason: _ReasonOption = None,
    type: _TypeOption = None,
    key: _KeyOption = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Mend the data of one dead letter and publish it to all stores.

    Opens $EDITOR on the data as JSON, or sets fields with --set (a VALUE that is JSON is taken as
    such: null, 7, "7", [1, 2]). What is set gets a new version, made now, so it wins over what
    other stores hold of it. Of a type merged per field that is so for the fields that were set;
    the others keep their old version, and lose to what was written since. Of a type merged per
    record the whole record is written anew.

    Examples:
      eventsync dlq edit crm --id 3f2a
      eventsync dlq edit crm --id 3f2a --set 'email=ann@example.org' --set age=null
    """
    from eventsync.changes.clock import Clock
    from eventsync.cli.dead_letters import Choice, data_of, mended
    from eventsync.cli.editor import assigned, edited

    choice = Choice(ids=id or (), every=every, reason=reason, type=type, key=key)
    with _chosen(deployment, store, choice) as (opened, chunks):
        one = _only([one for chunk in chunks for one in chunk], choice)
        change = one.change
        if change is None:
            raise ConfigError(f"letter {one.short_id} holds no change", hint="discard it")
        target = deployment.store(store)
        before = data_of(change, target)
        values = assigned(before, set) if set else edited(before)
        new, fields = mended(change, values, target, Clock())
        deployment.declare().publish(new.type, [deployment.bus.encode(new)])
        # Only now that the change is safe at the broker.
        opened.settle([one.delivery])
    if as_json:
        print_json(
            {
                "id": one.id,
                "type": new.type,
                "key": new.key,
                "fields": fields,
                "version": new.version.hex(),
            }
        )
    else:
        typer.echo(f"{new.type} {new.key} published to all stores with {', '.join(fields)}.")


def _until(older_than: str | None) -> float | None:
    return None if older_than is None else time.time() - duration(older_than, "--older-than")


# -- choosing --------------------------------------------------------------------------------------


@contextmanager
def _chosen(
    deployment: Deployment, store: str, choice: Choice
) -> Iterator[tuple[QueueBrowser, Iterator[list[Found]]]]:
    from eventsync.cli.dead_letters import picked

    if not choice:
        raise typer.BadParameter(
            "say which letters: --id, --reason, --type, --key, --older-than or --all"
        )
    deployment.store(store)  # a wrong name is told, not made into a queue
    now = time.time()
    with deployment.bus.letters(store) as opened:
        yield opened, picked(opened, choice, before=now)


def _some(found: list[Any], choice: Choice) -> None:
    if not found:
        if choice.ids:
            raise ConfigError(
                "there is no such dead letter", hint="a worker or another command may hold it"
            )
        note("No dead letter is meant.")


def _only(found: list[Found], choice: Choice) -> Found:
    if not found:
        raise ConfigError("there is no such dead letter", hint="see eventsync dlq list")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} dead letters are meant", hint="choose one with --id")
    return found[0]
