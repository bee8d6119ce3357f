"""``eventsync sync``: copies the records of some stores into others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsync.cli.command import (
    FOUND_WRONG,
    OK,
    JsonOption,
    command,
    complete_store,
    complete_type,
    json_option,
    split_names,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import plural, print_json, print_table, progress, warn

if TYPE_CHECKING:
    from eventsync.engine.synchronize import SyncReport

__all__ = ["sync"]

_MAX_LISTED = 100


@command
def sync(
    deployment: Deployment,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="STORES",
            help="Copy from these stores. Default: all.",
            autocompletion=complete_store,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="STORES",
            help="Copy into these stores. Default: all.",
            autocompletion=complete_store,
        ),
    ] = None,
    records: Annotated[
        list[str] | None,
        typer.Option(
            "--records",
            metavar="TYPES",
            help="Only these record types. Default: all.",
            autocompletion=complete_type,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Only records that match this filter."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would change; write nothing.")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start over instead of continuing an interrupted sync."),
    ] = False,
    allow_deletes: Annotated[
        bool,
        typer.Option(
            "--allow-deletes", help="Accept deletes even if most records of a source are gone."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Copy the records of stores into other stores, deletes included.

    Foreign writes in the sources are captured first. If a target holds a later version of a record
    than the source, the target keeps its version. Therefore you can run sync while workers run, in
    both directions, and repeatedly. An interrupted sync continues where it stopped.

    Separate several names with commas, or repeat the option. A filter is a JSON object, for example
    {"city": "Oslo", "balance": {"$gt": 5}}. The exit code is 1 if a target refused a record.

    Examples:
      eventsync sync --from crm --to cache,report
      eventsync sync --from crm --to report --records Customer --dry-run
      eventsync sync --from crm --to report --filter '{"city": "Oslo"}'
    """
    filter = json_option(where, "--filter")
    names = split_names(records)
    types = None if names is None else [deployment.record_type(name) for name in names]
    sources, targets = split_names(source), split_names(target)
    registry = deployment.registry.open()
    with progress("Reading", total=1) as advance:
        report = registry.synchronize(
            types,
            filter,
            sources=sources,
            targets=targets,
            dry_run=dry_run,
            restart=restart,
            deletes=1.0 if allow_deletes else 0.5,
            limits=deployment.settings.limits(),
            progress=lambda at: advance(
                at.done,
                total=at.total,
                count=f"{at.done:,} of {at.total:,}",
                description=f"{at.source}: {at.type}",
            ),
        )
    _print(report, dry_run, as_json)
    return FOUND_WRONG if report.rejected or report.unreadable else OK


def _print(report: SyncReport, dry_run: bool, as_json: bool) -> None:
    from eventsync.engine.gate import Outcome

    if as_json:
        print_json(
            {
                "captured": report.captured,
                "outcomes": {
                    name: {str(outcome): count for outcome, count in outcomes.items()}
                    for name, outcomes in report.outcomes.items()
                },
                "rejected": [_rejected(name, settled) for name, settled in report.rejected],
                "unreadable": [
                    {
                        "store": name,
                        "key": error.key,
                        "reason": error.reason,
                        "error": str(error),
                    }
                    for name, error in report.unreadable
                ],
            }
        )
        return
    if report.captured:
        typer.echo(f"{plural(report.captured, 'foreign write')} captured.")
    for name, error in report.unreadable[:_MAX_LISTED]:
        warn(f"{name} holds a record that cannot be read: {error}")
    if len(report.unreadable) > _MAX_LISTED:
        warn(f"{len(report.unreadable) - _MAX_LISTED:,} more unreadable records are not shown")
    used = [o for o in Outcome if any(o in counts for counts in report.outcomes.values())]
    headings = {Outcome.APPLIED: "would change"} if dry_run else {}
    headings[Outcome.DUPLICATE] = "the same"
    if not used:
        typer.echo("Nothing to copy.")
        return
    print_table(
        ["target", *(headings.get(outcome, str(outcome)) for outcome in used)],
        [
            [name, *(f"{counts.get(outcome, 0):,}" for outcome in used)]
            for name, counts in report.outcomes.items()
        ],
        right=range(1, len(used) + 1),
    )
    for name, settled in report.rejected[:_MAX_LISTED]:
        warn(f"{name} refused {settled.change.type} {settled.change.key}: {settled.error}")
    if len(report.rejected) > _MAX_LISTED:
        warn(f"{len(report.rejected) - _MAX_LISTED:,} more refusals are not shown")


def _rejected(name: str, settled: Any) -> dict[str, str]:
    return {
        "store": name,
        "type": settled.change.type,
        "key": settled.change.key,
        "reason": settled.error.reason if settled.error else "",
        "error": str(settled.error or ""),
    }
