"""``eventsync dlq``: lists, explains, replays, edits and discards the dead letters of a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

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
from eventsync.cli.output import echo, note, plural, print_json, warn
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from eventsync.broker.bus import QueueBrowser
    from eventsync.changes.change import Change
    from eventsync.cli.dead_letters import FoundLetter, Selection
    from eventsync.engine.store import Store
    from eventsync.errors import SignatureError

__all__ = ["dlq"]

_PANEL = "Selection of dead letters"


@dataclass(slots=True, frozen=True)
class SelectionOptions:
    """The options that select dead letters. A dead letter must match every option that is given."""

    id: Annotated[
        list[str] | None,
        typer.Option(
            "--id", metavar="ID", help="Those with this id or end of id.", rich_help_panel=_PANEL
        ),
    ] = None
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason", metavar="REASON", help="Those with this reason.", rich_help_panel=_PANEL
        ),
    ] = None
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Those of this record type.",
            autocompletion=complete_type,
            rich_help_panel=_PANEL,
        ),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="KEY",
            help="Those of the record with this key.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def selection(self, *, every: bool = False, older_than: str | None = None) -> Selection:
        """Return the selection that these options describe.

        ``every``: whether ``--all`` is given. ``older_than``: the value of ``--older-than``. Raises
        ``typer.BadParameter`` if that value is not a duration.
        """
        from eventsync.cli.dead_letters import Selection

        until = None
        if older_than is not None:
            until = time.time() - duration(older_than, "--older-than")
        return Selection(
            ids=self.id or (),
            every=every,
            reason=self.reason,
            type=self.type,
            key=self.key,
            until=until,
        )


_AllOption = Annotated[
    bool, typer.Option("--all", help="All dead letters of the store.", rich_help_panel=_PANEL)
]
_OlderOption = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        metavar="TIME",
        help="Those last tried longer ago than this: 90s, 30m, 12h or 7d.",
        rich_help_panel=_PANEL,
    ),
]


def dlq() -> typer.Typer:
    """Return the Typer application with the commands ``eventsync dlq ...``."""
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
    """List, explain, replay, edit or discard the dead letters of a store.

    A dead letter holds the original bytes of a change that the store refused, or of a message that
    is not a change, and the reason. eventsync never drops a change silently: each change is
    applied, is superseded by a later change, or becomes a dead letter. After
    EVENTSYNC_LETTER_RETENTION seconds a dead letter is deleted, with a line in the log.

    Examples:
      eventsync dlq list crm
      eventsync dlq show crm --id 3f2a
      eventsync dlq replay crm --reason rejected        after the cause is removed
      eventsync dlq edit crm --id 3f2a --set name=Ann   when the record is wrong
    """


@command
def list_letters(
    deployment: Deployment,
    store: StoreArgument,
    options: SelectionOptions,
    older_than: _OlderOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters of STORE, oldest first.

    Examples:
      eventsync dlq list crm
      eventsync dlq list crm --reason rejected --json | jq -r '.[].key'
    """
    from eventsync.cli.explain import letter_json, print_letters

    selection = options.selection(every=True, older_than=older_than)
    with _selected(deployment, store, selection) as (_, chunks):
        found = [one for chunk in chunks for one in chunk]
        if as_json:
            target = deployment.store(store)
            print_json([letter_json(one, target) for one in found])
        elif found:
            print_letters(found)
        else:
            typer.echo("No dead letters.")


@command
def show(
    deployment: Deployment,
    store: StoreArgument,
    options: SelectionOptions,
    every: _AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Explain dead letters: the reason, the change, and what STORE holds of the record now.

    Examples:
      eventsync dlq show crm --id 3f2a
      eventsync dlq show crm --all
    """
    from eventsync.cli.explain import explanation, print_letter

    selection = options.selection(every=every)
    with _selected(deployment, store, selection) as (_, chunks):
        target = deployment.store(store)
        found = [explanation(one, target) for chunk in chunks for one in chunk]
        _check_found(found, selection)
        if as_json:
            print_json(found)
        else:
            for one in found:
                print_letter(one)


@command
def replay(
    deployment: Deployment,
    store: StoreArgument,
    options: SelectionOptions,
    every: _AllOption = False,
    older_than: _OlderOption = None,
    as_json: JsonOption = False,
) -> int:
    """Send dead letters to the queue of STORE again, unchanged.

    The changes go to this store only. The worker of the store treats them as any other change: if a
    later change has superseded a change, nothing happens, and if a change fails again, it becomes a
    dead letter again. A dead letter that holds no change cannot be replayed; it stays, and the exit
    code is 1.

    Examples:
      eventsync dlq replay crm --id 3f2a
      eventsync dlq replay crm --reason rejected
      eventsync dlq replay crm --all
    """
    from eventsync.cli.dead_letters import replay as send_again

    selection = options.selection(every=every, older_than=older_than)
    sent: list[str] = []
    kept: list[str] = []
    with _selected(deployment, store, selection) as (opened, chunks):
        # The queue may not exist yet if the store's worker has never run.
        bus = deployment.declare()
        for chunk in chunks:
            without_change = [one.id for one in send_again(bus, store, opened, chunk)]
            kept += without_change
            sent += [one.id for one in chunk if one.id not in without_change]
    _check_found(sent + kept, selection)
    if as_json:
        print_json({"replayed": sent, "not_a_change": kept})
    else:
        typer.echo(f"{plural(len(sent), 'dead letter')} sent to the queue of {store} again.")
        for one in kept:
            warn(
                f"dead letter {one[-8:]} holds no change, so it cannot be replayed; "
                f"see it with eventsync dlq show {store} --id {one[-8:]}"
            )
    return FOUND_WRONG if kept else OK


@command
def discard(
    deployment: Deployment,
    store: StoreArgument,
    options: SelectionOptions,
    every: _AllOption = False,
    older_than: _OlderOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete dead letters for good.

    Examples:
      eventsync dlq discard crm --id 3f2a
      eventsync dlq discard crm --reason foreign --yes
      eventsync dlq discard crm --older-than 3d
    """
    selection = options.selection(every=every, older_than=older_than)
    with _selected(deployment, store, selection) as (opened, chunks):
        found = [one for chunk in chunks for one in chunk]
        _check_found(found, selection)
        count = plural(len(found), "dead letter")
        if not yes:
            typer.confirm(f"Delete {count} of {store} for good?", abort=True, err=True)
        opened.settle(one.delivery for one in found)
    if as_json:
        print_json({"discarded": [one.id for one in found]})
    else:
        typer.echo(f"{count} discarded.")


@command
def edit(
    deployment: Deployment,
    store: StoreArgument,
    options: SelectionOptions,
    every: _AllOption = False,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field. Can be repeated."),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Sign a change whose own signature is not valid."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Edit the data of one dead letter and publish the result to all stores.

    Opens the data as JSON in $VISUAL or $EDITOR, or sets fields with --set. A VALUE that is JSON is
    read as JSON: null, 7, "7", [1, 2]. Any other VALUE is text.

    The edited change gets a new version, so it wins over older values in all stores. In a record
    type that merges per field, only the edited fields get the new version. The other fields keep
    their old version and do not overwrite later values. In a record type that merges per record,
    the whole record gets the new version.

    If signing keys are configured, the edited change is signed with them. If the dead letter itself
    is not signed with one of these keys, anybody may have written it. The command then shows all
    that it would sign and asks.

    Examples:
      eventsync dlq edit crm --id 3f2a
      eventsync dlq edit crm --id 3f2a --set 'email=ann@example.org' --set age=null
    """
    from eventsync.changes.clock import Clock
    from eventsync.cli.dead_letters import edit_change, readable_data, signature_error
    from eventsync.cli.editor import edited, with_assignments

    selection = options.selection(every=every)
    with _selected(deployment, store, selection) as (opened, chunks):
        one = _only([one for chunk in chunks for one in chunk], store)
        change = one.change
        if change is None:
            raise ConfigError(
                f"dead letter {one.short_id} holds no change, so it cannot be edited",
                hint=f"delete it with eventsync dlq discard {store} --id {one.short_id}",
            )
        target = deployment.store(store)
        before = readable_data(change, target)
        values = with_assignments(before, set) if set else edited(before)
        new, fields = edit_change(change, values, target, Clock())
        unsigned = signature_error(one.letter.raw, deployment.bus.keys)
        if unsigned is not None:
            _confirm_signing(new, target, unsigned, yes=yes)
        deployment.declare().publish(new.type, [deployment.bus.encode(new)])
        # Remove the dead letter only after the broker has stored the new change.
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
        echo(f"{new.type} {new.key} published to all stores with {', '.join(fields)}.")


def _confirm_signing(change: Change, store: Store, why: SignatureError, *, yes: bool) -> None:
    """Show all that ``change`` says, and ask whether to sign it. ``yes``: do not ask.

    ``why``: what is wrong with the signature of the dead letter.
    """
    from eventsync.cli.explain import print_change

    warn(f"the dead letter was written by an unknown program: {why.message}")
    print_change(change, store)
    if not yes:
        typer.confirm("Sign all of this and publish it to all stores?", abort=True, err=True)


# -- selecting -------------------------------------------------------------------------------------


@contextmanager
def _selected(
    deployment: Deployment, store: str, selection: Selection
) -> Iterator[tuple[QueueBrowser, Iterator[list[FoundLetter]]]]:
    from eventsync.cli.dead_letters import select

    if not selection:
        raise typer.BadParameter(
            "select dead letters, for example with --id or --reason, or use --all"
        )
    deployment.store(store)  # raises for an unknown store, before bus.letters creates its queue
    now = time.time()
    with deployment.bus.letters(store) as opened:
        yield opened, select(opened, selection, before=now)


def _check_found(found: Sequence[object], selection: Selection) -> None:
    if not found:
        if selection.ids:
            raise ConfigError(
                f"no such dead letter: {', '.join(selection.ids)}",
                hint="list the ids with `eventsync dlq list`; while a worker or another command "
                "reads a dead letter, this command does not see it, so you may have to try again",
            )
        note("No dead letter matches.")


def _only(found: list[FoundLetter], store: str) -> FoundLetter:
    if not found:
        raise ConfigError(
            f"no such dead letter in the store {store!r}",
            hint=f"list the dead letters with `eventsync dlq list {store}`",
        )
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} dead letters match, but only one can be edited at a time",
            hint="select one dead letter with --id",
        )
    return found[0]
