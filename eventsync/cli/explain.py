"""Dead letters as people and scripts see them.

It owns the explanation of a letter. It must not know how letters are found or settled.
"""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from eventsync.cli.dead_letters import data_of, envelopes_of, now_held
from eventsync.cli.output import ago, plural, print_table, say, shown
from eventsync.errors import ConfigError, EventSyncError
from eventsync.records.record_type import same

if TYPE_CHECKING:
    from eventsync.changes.change import Change
    from eventsync.cli.dead_letters import Found
    from eventsync.engine.store import Store

__all__ = ["explanation", "letter_json", "print_letter", "print_letters"]

_EXCERPT = 120


def print_letters(found: Sequence[Found]) -> None:
    """A row for each letter."""
    now = time.time()
    print_table(
        ["id", "age", "reason", "type", "key", "op", "tries", "error"],
        [
            [
                one.short_id,
                ago(max(0.0, now - one.letter.last_time)),
                one.letter.reason,
                one.letter.type or "–",
                one.letter.key or "–",
                one.letter.op or "–",
                str(one.letter.attempts),
                shown(one.letter.message),
            ]
            for one in found
        ],
        right=[6],
    )


def letter_json(one: Found) -> dict[str, Any]:
    """What a letter says of itself."""
    said = one.letter.to_json()
    del said["raw"]
    return said | {
        "id": one.id,
        "bytes": len(one.letter.raw),
        "first_time": _moment(one.letter.first_time),
        "last_time": _moment(one.letter.last_time),
    }


def explanation(one: Found, store: Store) -> dict[str, Any]:
    """All there is to say about a letter: itself, its change, and what ``store`` holds now."""
    said = letter_json(one) | {"raw": base64.b64encode(one.letter.raw).decode("ascii")}
    change = one.change
    if change is None:
        envelopes = len(envelopes_of(one.letter.raw))
        said["changes"] = envelopes
        said["excerpt"] = excerpt(one.letter.raw)
        return said
    said["changes"] = 1
    said["source"] = change.source
    said["id_of_change"] = change.id.hex()
    said["hops"] = change.hops
    said["made"] = change.version.time.isoformat(timespec="milliseconds")
    secret: set[str] = set()
    try:
        described = store.accessor(change.type).type
        secret = {name for name, field in described.fields.items() if field.secret}
        data = data_of(change, store)
        held, version = now_held(store, change.type, change.key)
    except ConfigError:
        data, held, version = dict(change.data or {}), None, None
    except EventSyncError as error:
        data, held, version = dict(change.data or {}), None, None
        said["store_error"] = str(error)
    hidden = dict.fromkeys(secret, "***")
    said["data"] = (
        {**data, **{n: h for n, h in hidden.items() if n in data}} if change.data else None
    )
    said["now"] = (
        None if held is None else {**held, **{n: h for n, h in hidden.items() if n in held}}
    )
    said["now_version"] = version.hex() if version else None
    said["differs"] = [
        name
        for name in data
        if held is None or name not in held or not same(held[name], data[name])
    ]
    said["replay"] = _prospect(change, version)
    return said


def _prospect(change: Change, version: bytes | None) -> str:
    """What the version gate would say to it now, as far as versions tell."""
    if version is None:
        return "the store has seen no change of this record: it would be tried"
    if version > change.version:
        return "the store has seen a later change of this record, which it would lose to"
    if version == change.version:
        return "the store has seen this version: it would change nothing"
    return "it is later than what the store has seen: it would be tried"


def print_letter(said: dict[str, Any]) -> None:
    """An explanation, for people."""
    typer.secho(f"letter {said['id'][-8:]}: {said['reason']}", bold=True)
    say(f"  {said['message']}", indent=2)
    say(
        f"  from queue {said['queue']}, {plural(said['attempts'], 'try', 'tries')}, "
        f"first {said['first_time']}, last {said['last_time']}",
        indent=2,
    )
    if "excerpt" in said:
        many = f", a message of {said['changes']} changes" if said["changes"] else ", no change"
        typer.echo(f"  {said['bytes']} bytes{many}:")
        for name, text in said["excerpt"].items():
            say(f"    {name:5} {text}", indent=10)
        typer.echo()
        return
    say(
        f"  {said['op']} of {said['type']} {said['key']}, made {said['made']} by {said['source']}",
        indent=2,
    )
    if "store_error" in said:
        say(f"  {said['store']} cannot be read: {said['store_error']}", indent=2)
    now = said["now"]
    rows = [
        [
            f"{'!' if name in said['differs'] else ' '} {name}",
            shown(held),
            "–" if now is None else shown(now[name]) if name in now else "·",
        ]
        for name, held in (said["data"] or {}).items()
    ]
    if rows:
        typer.echo()
        print_table(["  field", "letter", f"{said['store']} now"], rows)
        typer.echo()
    say(f"  Replayed: {said['replay']}.", indent=2)
    typer.echo()


def excerpt(raw: bytes) -> dict[str, str]:
    """The beginning of bytes of unknown meaning, as hexadecimal digits and, if it is such, text."""
    start = raw[:_EXCERPT]
    more = "…" if len(raw) > _EXCERPT else ""
    said = {"hex": start[: _EXCERPT // 2].hex(" ") + ("…" if len(raw) > _EXCERPT // 2 else "")}
    text = start.decode("utf-8", "ignore" if more else "replace")
    if text and "�" not in text:
        said["text"] = (text if text.isprintable() else ascii(text)[1:-1]) + more
    return said


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")
