"""The output of ``eventsync dlq``: dead letters as a table, as JSON, and with an explanation."""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from eventsync.cli.dead_letters import envelopes_in, read_current, readable_data
from eventsync.cli.output import ago, plural, print_table, say, shown
from eventsync.errors import ConfigError, EventSyncError
from eventsync.records.record_type import same
from eventsync.values.printable import printable

if TYPE_CHECKING:
    from eventsync.changes.change import Change
    from eventsync.cli.dead_letters import FoundLetter
    from eventsync.engine.store import Store

__all__ = ["explanation", "letter_json", "print_change", "print_letter", "print_letters"]

_EXCERPT = 120


def print_letters(found: Sequence[FoundLetter]) -> None:
    """Print a table with a row for each dead letter."""
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


def letter_json(one: FoundLetter, store: Store) -> dict[str, Any]:
    """Return a dict for ``json.dumps`` that describes a dead letter, without its original bytes.

    The values of secret fields are hidden. ``store``: knows the record types.
    """
    found = one.letter.to_json()
    del found["raw"]
    event, accessor = found["event"], store.accessors.get(one.letter.type or "")
    if event is not None:
        # The base state of a patch is text within the event; it may contain secrets, too.
        event.pop("recordknown", None)
        values = event.get("data")
        if isinstance(values, dict):
            fields = {} if accessor is None else accessor.type.fields
            event["data"] = {
                name: "***" if name in fields and fields[name].secret else value
                for name, value in values.items()
            }
    return found | {
        "id": one.id,
        "bytes": len(one.letter.raw),
        "first_time": _moment(one.letter.first_time),
        "last_time": _moment(one.letter.last_time),
    }


def explanation(one: FoundLetter, store: Store) -> dict[str, Any]:
    """Return a dict for ``json.dumps`` that explains a dead letter.

    The dict has the original bytes, the change, the record as ``store`` holds it now, the fields
    that differ, and what a replay would do. Values of secret fields are hidden.
    """
    found = letter_json(one, store) | {"raw": base64.b64encode(one.letter.raw).decode("ascii")}
    change = one.change
    if change is None:
        envelopes = len(envelopes_in(one.letter.raw))
        found["changes"] = envelopes
        found["excerpt"] = excerpt(one.letter.raw)
        return found
    found["changes"] = 1
    found["source"] = change.source
    found["id_of_change"] = change.id.hex()
    found["hops"] = change.hops
    found["made"] = change.version.time.isoformat(timespec="milliseconds")
    secret: set[str] = set()
    try:
        described = store.accessor(change.type).type
        secret = {name for name, field in described.fields.items() if field.secret}
        data = readable_data(change, store)
        held, version = read_current(store, change.type, change.key)
    except ConfigError:
        data, held, version = dict(change.data or {}), None, None
    except EventSyncError as error:
        data, held, version = dict(change.data or {}), None, None
        found["store_error"] = str(error)
    hidden = dict.fromkeys(secret, "***")
    found["data"] = (
        {**data, **{n: h for n, h in hidden.items() if n in data}} if change.data else None
    )
    found["now"] = (
        None if held is None else {**held, **{n: h for n, h in hidden.items() if n in held}}
    )
    found["now_version"] = version.hex() if version else None
    found["differs"] = [
        name
        for name in data
        if held is None or name not in held or not same(held[name], data[name])
    ]
    found["replay"] = _prospect(change, version)
    return found


def _prospect(change: Change, version: bytes | None) -> str:
    """Return a sentence that says what a replay of ``change`` would do.

    ``version``: the version of the record in the store, or ``None`` if the store has none.
    """
    if version is None:
        return "the change would be tried again: the store has no version of this record"
    if version > change.version:
        return "nothing would change: the store has a later version of this record"
    if version == change.version:
        return "nothing would change: the store has this version already"
    return "the change would be tried again: its version is later than the version in the store"


def print_letter(found: dict[str, Any]) -> None:
    """Print the result of ``explanation`` as text and a table."""
    title = f"dead letter {found['id'][-8:]}: {found['reason']}"
    typer.secho(printable(title), bold=True)
    say(f"  {found['message']}", indent=2)
    say(
        f"  from queue {found['queue']}, {plural(found['attempts'], 'try', 'tries')}, "
        f"first {found['first_time']}, last {found['last_time']}",
        indent=2,
    )
    if "excerpt" in found:
        many = f", a message with {found['changes']} changes" if found["changes"] else ", no change"
        typer.echo(f"  {found['bytes']} bytes{many}:")
        for name, text in found["excerpt"].items():
            say(f"    {name:5} {text}", indent=10)
        typer.echo()
        return
    say(
        f"  {found['op']} of {found['type']} {found['key']}, "
        f"made {found['made']} by {found['source']}",
        indent=2,
    )
    if "store_error" in found:
        say(f"  {found['store']} cannot be read: {found['store_error']}", indent=2)
    now = found["now"]
    rows = [
        [
            f"{'!' if name in found['differs'] else ' '} {name}",
            shown(held),
            "–" if now is None else shown(now[name]) if name in now else "·",
        ]
        for name, held in (found["data"] or {}).items()
    ]
    if rows:
        typer.echo()
        print_table(["  field", "dead letter", f"{found['store']} now"], rows)
        typer.echo()
    say(f"  If replayed: {found['replay']}.", indent=2)
    typer.echo()


def print_change(change: Change, store: Store) -> None:
    """Print all that an edited change says on standard error, one field a line.

    The values of secret fields are hidden. ``store``: knows the record type.
    """
    fields = store.accessor(change.type).type.fields

    def line(name: str, value: Any, suffix: str = "") -> None:
        hidden = name in fields and fields[name].secret
        say(f"  {name}: {'***' if hidden else shown(value)}{suffix}", indent=4, err=True)

    say(f"  {change.op} of {change.type} {change.key}, made by {change.source!r}", err=True)
    for name, value in (change.data or {}).items():
        line(name, value)
    if change.known is not None:
        for name, value in change.known.values.items():
            version = change.known.versions.get(name, change.known.stamp.version)
            line(name, value, f" (with its old version, of {version.time.isoformat()})")


def excerpt(raw: bytes) -> dict[str, str]:
    """Return the beginning of unknown bytes, as hexadecimal digits (``hex``) and text (``text``).

    ``text`` is missing if the bytes are not UTF-8.
    """
    start = raw[:_EXCERPT]
    more = "…" if len(raw) > _EXCERPT else ""
    found = {"hex": start[: _EXCERPT // 2].hex(" ") + ("…" if len(raw) > _EXCERPT // 2 else "")}
    text = start.decode("utf-8", "ignore" if more else "replace")
    if text and "�" not in text:
        found["text"] = (text if text.isprintable() else ascii(text)[1:-1]) + more
    return found


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")
