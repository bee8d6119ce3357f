"""``eventsync get``, ``find`` and ``verify``: records across stores, side by side.

It owns the options. It must not know how differences are found, nor how they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

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
)

if TYPE_CHECKING:
    from eventsync.engine.registry import StoreRegistry
    from eventsync.records.record import Record

__all__ = ["find", "get", "verify"]

_ExitCodeOption = Annotated[
    bool, typer.Option("--exit-code", help="Exit with 1 when stores differ.")
]


@command
def get(
    deployment: Deployment,
    type: TypeArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its key; parts joined by '/'.")],
    as_json: JsonOption = False,
    exit_code: _ExitCodeOption = False,
) -> int:
    """Show one record as every store holds it, field by field.

    A value marked with ! is not the winner's; – says that the record is not in that store, and ·
    that the store does not hold the field. version is the greatest that the store has seen. The
    exit code is 1 when no store holds the record.

    Examples:
      eventsync get Customer 7
      eventsync get OrderLine 1001/3 --json
    """
    from eventsync.verify import look

    record_type = deployment.record_type(type)
    described = record_type.__record__
    # As it is typed, a key need not be in its canonical form: 007, or 1.50.
    canonical = described.key_of(dict(zip(described.keys, key.split("/"), strict=False)))
    (row,) = look(deployment.registry.open(), record_type, [canonical])
    if as_json:
        print_json(row_json(row))
    else:
        print_record(row, record_type)
    if exit_code and row.differences:
        return FOUND_WRONG
    there = any(sight.values is not None for sight in row.stores.values())
    return OK if there else FOUND_WRONG


@command
def find(
    deployment: Deployment,
    type: TypeArgument,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Only the records that match."),
    ] = None,
    sort: Annotated[
        list[str] | None,
        typer.Option("--sort", metavar="FIELDS", help="By these fields; -field: descending."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each store.")] = 20,
    fields: Annotated[
        list[str] | None,
        typer.Option("--fields", metavar="FIELDS", help="Show these; default: what fits."),
    ] = None,
    as_json: JsonOption = False,
    exit_code: _ExitCodeOption = False,
) -> int:
    """Find records in all stores, and show where they differ.

    A row is a record: the winner's values, then store by store = for the same, – for not there (a
    filter may keep it out), and ! with what differs. A record is found when it matches in any
    store.

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
    keys = _keys(deployment, record_type, json_option(where, "--filter"), split_names(sort), limit)
    rows = look(deployment.registry, record_type, keys)
    if as_json:
        print_json([row_json(row) for row in rows])
    else:
        print_records(rows, record_type, names)
    differs = any(row.differences for row in rows)
    return FOUND_WRONG if exit_code and differs else OK


@command
def verify(
    deployment: Deployment,
    records: Annotated[
        list[str] | None,
        typer.Option(
            "--records",
            metavar="TYPES",
            help="These record types; default all.",
            autocompletion=complete_type,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare all stores field by field.

    Every store should hold its view of the winner of every record: its fields, converted, of the
    records that match its filter. The exit code is 1 when one does not. While workers still apply
    changes, what is under way shows as a difference.

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


def _keys(
    deployment: Deployment,
    record_type: type[Record],
    where: dict[str, Any] | None,
    sort: Sequence[str] | None,
    limit: int,
) -> list[str]:
    """The keys found in any store, in the order of the first that has them."""
    registry: StoreRegistry = deployment.registry.open()
    found = registry.find(record_type, where, sort=sort or (), limit=limit)
    return list(dict.fromkeys(record.key for records in found.values() for record in records))
