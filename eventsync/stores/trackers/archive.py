"""Projects in an archive: what can be done with them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from eventsync.errors import RejectedError
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["check_archive", "check_removal"]


def check_archive(
    accessor: TrackerAccessor[Any], key: str, archived: bool, members: Collection[str]
) -> None:
    """Raise ``RejectedError`` if members of a project would change that stays in the archive."""
    if archived and members:
        raise RejectedError(
            f"{accessor.type.name} {key!r} is archived in {accessor.tracker}, so nothing else of "
            "it can change",
            hint="set archived to false, with the other fields or before them",
        )


def check_removal(accessor: TrackerAccessor[Any], key: str) -> None:
    """Raise ``RejectedError`` if archived projects are records, so that archiving removes none."""
    if "archived" in accessor.view_slots:
        raise RejectedError(
            f"{accessor.tracker} archives {accessor.type.name} {key!r} instead of deleting it, and "
            "archived ones are records of this store",
            hint="set archived to true, or omit the field from the view",
        )
