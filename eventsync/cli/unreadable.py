"""``eventsync unreadable``: lists the records that a store holds and cannot read."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsync.cli.command import (
    FOUND_WRONG,
    OK,
    JsonOption,
    StoreArgument,
    command,
    complete_type,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import ago, print_json, print_table, say

if TYPE_CHECKING:
    from eventsync.engine.store import Store
    from eventsync.engine.unreadable import UnreadableRecord

__all__ = ["unreadable"]


@command
def unreadable(
    deployment: Deployment,
    store: StoreArgument,
    type: Annotated[
        str | None,
        typer.Argument(
            metavar="[TYPE]", help="The record type. Default: all.", autocompletion=complete_type
        ),
    ] = None,
    read: Annotated[
        bool, typer.Option("--read", help="Read all records of the store first.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """List the records of a store that cannot be read, and say why and since when.

    Such a record is neither published nor deleted, and changes of other stores to it are held. It
    is read again at each capture, so there is nothing to repeat here after you have corrected it in
    the store. The list is from the last capture, verify or sync that read all records; --read makes
    a new one. At most 10,000 records of each type are listed. The exit code is 1 if there are any.

    Examples:
      eventsync unreadable crm
      eventsync unreadable crm Customer --read
      eventsync unreadable crm --json | jq '.[].key'
    """
    opened: Store = deployment.registry.open()[store]
    types = list(opened.accessors) if type is None else [opened.accessor(type).type.name]
    if read:
        for name in types:
            opened.note_unreadable(name)
    found = [note for name in types for note in opened.unreadable_records.of(name).values()]
    if as_json:
        print_json([_json(store, note) for note in found])
    else:
        _print(store, found)
    return FOUND_WRONG if found else OK


def _json(store: str, note: UnreadableRecord) -> dict[str, Any]:
    return {
        "store": store,
        "type": note.type,
        "key": note.name if note.keyed else None,
        "place": None if note.keyed else note.name,
        "reason": note.reason,
        "error": note.error,
        "hint": _hint(note),
        "since": dt.datetime.fromtimestamp(note.since, dt.UTC).isoformat(timespec="milliseconds"),
    }


def _print(store: str, found: list[UnreadableRecord]) -> None:
    if not found:
        typer.echo(f"{store} has no unreadable records.")
        return
    now = time.time()
    print_table(
        ["type", "key or place", "since", "reason"],
        [[note.type, note.name, ago(max(0.0, now - note.since)), note.reason] for note in found],
    )
    typer.echo()
    for note in found:
        say(f"{note.error} ({_hint(note)})", indent=2)


def _hint(note: UnreadableRecord) -> str:
    return note.hint or "correct or remove the record in the store"
