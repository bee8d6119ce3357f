"""``eventsync get``, ``find`` and ``verify``: compare the records of several stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventsync.cli.command import (
    FOUND_WRONG,
    OK,
    JsonOption,
    TypeArgument,
    command,
    complete_type,
    json_option,
    split_names,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import print_json, progress
from eventsync.cli.side_by_side import (
    comparison_json,
    print_comparison,
    print_record,
    print_records,
    row_json,
    unreadable_json,
    warn_unreadable,
)

if TYPE_CHECKING:
    from eventsync.engine.registry import StoreRegistry
    from eventsync.errors import RecordError

__all__ = ["find", "get", "verify"]

_ExitCodeOption = Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if stores differ.")]


@command
def get(
    deployment: Deployment,
    type: TypeArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The key; join several parts with '/'.")
    ],
    as_json: JsonOption = False,
    exit_code: _ExitCodeOption = False,
) -> int:
    """Show one record as every store holds it, field by field.

    Marks:
      !   the value differs from the winning value
      –   the store does not hold the record
      ·   the store does not hold the field

    The line "version" shows the version of the record in each store. The exit code is 1 if no store
    holds the record.

    Examples:
      eventsync get Customer 7
      eventsync get OrderLine 1001/3 --json
    """
    from eventsync.verify import look

    record_type = deployment.record_type(type)
    described = record_type.__record__
    # A key may be typed in another form than the canonical one, for example 007 or 1.50.
    canonical = described.key_of(dict(zip(described.keys, key.split("/"), strict=False)))
    (row,) = look(deployment.registry.open(), record_type, [canonical])
    if as_json:
        print_json(row_json(row))
    else:
        print_record(row, record_type)
    if exit_code and row.differences:
        return FOUND_WRONG
    exists = any(state.values is not None for state in row.stores.values())
    return OK if exists else FOUND_WRONG


@command
def find(
    deployment: Deployment,
    type: TypeArgument,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Only records that match this filter."),
    ] = None,
    sort: Annotated[
        list[str] | None,
        typer.Option(
            "--sort", metavar="FIELDS", help="Sort by these fields; -FIELD sorts descending."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="The largest number of records from each store.")
    ] = 20,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--fields", metavar="FIELDS", help="Show these fields. Default: those that fit."
        ),
    ] = None,
    as_json: JsonOption = False,
    exit_code: _ExitCodeOption = False,
) -> int:
    """Find records in all stores and show where the stores differ.

    Each row is a record that matches in at least one store. A row shows the winning values of the
    record, then a mark for each store.

    Marks:
      =   the store holds the same values
      –   the store does not hold the record, perhaps because of its filter
      !   the store differs, as shown

    A copy that cannot be read is marked "! unreadable" if its record matches in another store.
    Standard error says how many copies cannot be read, and --json has the difference "unreadable"
    for each, in a row of its own if no other store has the record. They count as differing for
    --exit-code.

    Examples:
      eventsync find Customer --filter '{"city": "Oslo"}' --sort -balance
      eventsync find Customer --filter '{"name": {"$like": "A%"}}' --fields name,city
      eventsync find Customer --limit 1000 --json | jq '.[].merged'
    """
    from eventsync.verify import look

    record_type = deployment.record_type(type)
    names = split_names(fields)
    for name in names or ():
        record_type.__record__.field(name)
    registry: StoreRegistry = deployment.registry.open()
    unreadable: list[tuple[str, RecordError]] = []
    found = registry.find(
        record_type,
        json_option(where, "--filter"),
        sort=split_names(sort) or (),
        limit=limit,
        unreadable=lambda store, error: unreadable.append((store, error)),
    )
    # The keys in the order of the first store, then the further keys of the second, and so on.
    keys = list(dict.fromkeys(record.key for records in found.values() for record in records))
    rows = look(registry, record_type, keys)
    if as_json:
        shown = set(keys)
        others = [
            unreadable_json(store, type, error)
            for store, error in unreadable
            if error.key not in shown  # else the row of its key says so
        ]
        print_json([*map(row_json, rows), *others])
    else:
        print_records(rows, record_type, names)
    warn_unreadable(unreadable, type)
    differs = bool(unreadable) or any(row.differences for row in rows)
    return FOUND_WRONG if exit_code and differs else OK


@command
def verify(
    deployment: Deployment,
    records: Annotated[
        list[str] | None,
        typer.Option(
            "--records",
            metavar="TYPES",
            help="Only these record types. Default: all.",
            autocompletion=complete_type,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare all stores field by field.

    The winning values of each record are computed from all stores. Each store should hold these
    values, for the fields of its view, if the record matches the filter of the store. Records that
    cannot be read count as differences; eventsync unreadable lists them. The exit code is 1 if a
    store differs. Changes that workers have not applied yet are reported as differences.

    Examples:
      eventsync verify
      eventsync verify --records Customer --json
    """
    from eventsync.verify import compare

    names = split_names(records)
    types = None if names is None else [deployment.record_type(name) for name in names]
    with progress("Comparing", total=1) as advance:
        comparison = compare(
            deployment.registry.open(),
            types,
            progress=lambda name, done, total: advance(
                done, total=total, description=name, count=f"{done:,} of {total:,}"
            ),
        )
    if as_json:
        print_json(comparison_json(comparison))
    else:
        print_comparison(comparison)
    return OK if comparison else FOUND_WRONG
