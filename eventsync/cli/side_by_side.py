"""The output of ``eventsync get``, ``find`` and ``verify``: tables and JSON of compared records."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import typer

from eventsync.cli.output import plural, print_table, say, shown, warn

if TYPE_CHECKING:
    from eventsync.errors import RecordError
    from eventsync.records.record import Record
    from eventsync.records.record_type import RecordType
    from eventsync.verify import Comparison, Difference, SideBySide, StoreState

__all__ = [
    "comparison_json",
    "print_comparison",
    "print_record",
    "print_records",
    "row_json",
    "unreadable_json",
    "warn_unreadable",
]

_ABSENT: Final = "·"
_NOT_THERE: Final = "–"
_MAX_LISTED: Final = 50
_MAX_NAMED: Final = 10
_JSON_STATES: Final = {1: "here", 2: "deleted", 3: "filtered out", 4: "pending"}
"""The name of each ``Presence`` in JSON, by its number."""


# -- one record ------------------------------------------------------------------------------------


def print_record(row: SideBySide, record_type: type[Record]) -> None:
    """Print one record as a table with a row for each field and a column for each store."""
    wrong = {(found.field, found.store) for found in row.differences if found.field}
    lines = []
    for name, field in record_type.__record__.fields.items():
        cells = [name]
        for store, state in row.stores.items():
            cell = _NOT_THERE
            if state.values is not None:
                cell = _cell(state.values, name, secret=field.secret)
            cells.append(f"! {cell}" if (name, store) in wrong else cell)
        lines.append(cells)
    lines.append(["version", *(_version(state) for state in row.stores.values())])
    lines.append(["state", *(_state(state) for state in row.stores.values())])
    print_table(
        [f"{row.type} {row.key}", *row.stores],
        lines,
        marked=lambda line, column: _colour(lines[line][column]),
    )
    for found in row.differences:
        if found.detail:
            say(f"{found.store}: {found.detail}")


def _cell(values: Mapping[str, Any], name: str, *, secret: bool) -> str:
    if name not in values:
        return _ABSENT
    return _HIDDEN if secret else shown(values[name])


def _version(state: StoreState) -> str:
    if state.version is None:
        return _NOT_THERE
    if not state.version.millis:
        return "older than all"
    moment = f"{state.version.time:%Y-%m-%d %H:%M:%S.%f}"[:-3]
    return f"{moment}+{state.version.counter}" if state.version.counter else moment


def _state(state: StoreState) -> str:
    if state.differences:
        return f"! {state.differences[0].kind}"
    if state.presence is None:
        return "not captured yet" if state.values is not None else "not known"
    return state.presence.name.lower().replace("_", " ")


def _colour(cell: str) -> str | None:
    if cell.startswith("!"):
        return "bold red"
    return "dim" if cell in (_ABSENT, _NOT_THERE, "=") else None


# -- many records ----------------------------------------------------------------------------------


def print_records(
    rows: Sequence[SideBySide], record_type: type[Record], names: Sequence[str] | None
) -> None:
    """Print a table with a row for each record: the winning values, then a mark for each store.

    ``names``: the fields to show, or ``None`` for as many as fit the width of the terminal.
    """
    if not rows:
        typer.echo("No store holds a matching record.")
        return
    described = record_type.__record__
    stores = list(rows[0].stores)
    columns = {"/".join(described.keys): [row.key for row in rows]}
    fields = [name for name in described.fields if name not in described.keys]
    columns |= {name: _column(rows, described, name) for name in names or fields}
    columns |= {f"={store}": [_mark(row.stores[store]) for row in rows] for store in stores}
    kept = list(columns) if names else _fitting(columns, fields)
    lines = [list(line) for line in zip(*(columns[name] for name in kept), strict=True)]
    print_table(
        [name.removeprefix("=") for name in kept],
        lines,
        marked=lambda line, column: _colour(lines[line][column]),
    )
    left_out = [name for name in fields if name not in kept]
    if left_out and not names:
        typer.echo(err=True)
        say(f"Not shown: {', '.join(left_out)} (use --fields)", err=True)


def _column(rows: Sequence[SideBySide], described: RecordType, name: str) -> list[str]:
    secret = described.field(name).secret
    return [
        _NOT_THERE if row.merged is None else _cell(row.merged, name, secret=secret) for row in rows
    ]


def _fitting(columns: Mapping[str, Sequence[str]], fields: Sequence[str]) -> list[str]:
    """Return the names of the columns that fit the width of the terminal.

    If not all fit, the last of ``fields`` are left out. Without a terminal, all columns are kept.
    """
    kept = list(columns)
    if not sys.stdout.isatty():
        return kept
    width = {name: max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()}
    room = shutil.get_terminal_size().columns
    for name in reversed(fields):
        if sum(width[kept_name] for kept_name in kept) <= room:
            break
        kept.remove(name)
    return kept


def _mark(state: StoreState) -> str:
    if not state.differences:
        return "=" if state.values is not None else _NOT_THERE
    words = [
        f"{found.field}={shown(found.held)}" if found.field else str(found.kind)
        for found in state.differences
    ]
    return f"! {', '.join(words)}"


# -- whole stores ----------------------------------------------------------------------------------


def print_comparison(comparison: Comparison) -> None:
    """Print a table with the counts of each store, then the first 50 differences."""
    rows = [
        [store, type, *(f"{counts[name]:,}" for name in _COUNTS)]
        for store, types in comparison.stores.items()
        for type, counts in ((type, asdict(counts)) for type, counts in types.items())
    ]
    print_table(["store", "type", *_COUNTS], rows, right=range(2, 2 + len(_COUNTS)))
    for store, types in comparison.stores.items():
        for type, held in types.items():
            if held.error:
                warn(f"{store}: no record of type {type} could be read: {held.error}")
    for found in comparison.differences[:_MAX_LISTED]:
        say(_line(found))
    if comparison.total > _MAX_LISTED:
        typer.echo(f"... and {comparison.total - _MAX_LISTED:,} more")
    if comparison:
        typer.echo("\nThe stores agree.")
    else:
        typer.echo(f"\nThe stores differ: {plural(comparison.total, 'difference')}.")


_HIDDEN: Final = "***"
_COUNTS: Final = ("records", "fields", "differing", "missing", "extra", "unreadable")


def _line(found: Difference) -> str:
    about = f"{found.store}: {found.type} {found.key}"
    if found.field:
        if found.secret:
            return f"{about}.{found.field} differs; it is secret"
        return f"{about}.{found.field} is {shown(found.held)}, not {shown(found.expected)}"
    return f"{about} is {found.kind}" + (f" ({found.detail})" if found.detail else "")


# -- JSON ------------------------------------------------------------------------------------------


def row_json(row: SideBySide) -> dict[str, Any]:
    """Return a dict for ``json.dumps`` with one record as each store holds it.

    The values of secret fields are hidden, but not that a secret field has none.
    """

    def hidden(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if values is None:
            return None
        return {
            name: _HIDDEN if name in row.secret and value is not None else value
            for name, value in values.items()
        }

    return {
        "type": row.type,
        "key": row.key,
        "version": row.version.hex() if row.version else None,
        "merged": hidden(row.merged),
        "stores": {
            name: {
                "values": hidden(state.values),
                "state": _JSON_STATES[state.presence] if state.presence else None,
                "version": state.version.hex() if state.version else None,
                "field_versions": {n: v.hex() for n, v in state.versions.items()},
                "differences": [_difference_json(found) for found in state.differences],
            }
            for name, state in row.stores.items()
        },
    }


def unreadable_json(store: str, type: str, error: RecordError) -> dict[str, Any]:
    """Return a dict like that of ``row_json`` for a record that ``store`` cannot read.

    Its values in other stores are left out: whether they match a filter here is not known.
    """
    difference = {
        "store": store,
        "type": type,
        "key": error.key or "",
        "kind": "unreadable",
        "detail": str(error),
    }
    state: dict[str, Any] = {
        "values": None,
        "state": None,
        "version": None,
        "field_versions": {},
        "differences": [difference],
    }
    row = {"type": type, "key": error.key, "version": None, "merged": None}
    return {**row, "stores": {store: state}}


def warn_unreadable(unreadable: Sequence[tuple[str, RecordError]], type: str) -> None:
    """Say on standard error how many records of a type could not be read, and which.

    ``unreadable``: pairs of store and error.
    """
    for store, count in Counter(store for store, _ in unreadable).items():
        warn(f"{store}: {plural(count, 'record')} of type {type} cannot be read")
    for store, error in unreadable[:_MAX_NAMED]:
        say(f"  {store}: {error}", indent=4, err=True)
    if len(unreadable) > _MAX_NAMED:
        say(f"  ... and {len(unreadable) - _MAX_NAMED:,} more", err=True)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a dict for ``json.dumps`` with the result of a comparison of whole stores."""
    return {
        "agree": bool(comparison),
        "records": comparison.records,
        "stores": {
            store: {type: asdict(counts) for type, counts in types.items()}
            for store, types in comparison.stores.items()
        },
        "total": comparison.total,
        "differences": [_difference_json(found) for found in comparison.differences],
    }


def _difference_json(found: Difference) -> dict[str, Any]:
    members = asdict(found)
    if members.pop("secret"):
        members |= {"held": _HIDDEN, "expected": _HIDDEN}
    return {name: value for name, value in members.items() if value != "" or name == "key"}
