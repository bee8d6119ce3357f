"""Issue trackers as stores, and the record types that all of them share.

Each tracker has a package here that builds on the REST store (``eventsync.stores.rest``). These
packages need the extra ``rest``.
"""

from __future__ import annotations

from eventsync.stores.trackers.record import (
    Account,
    Attachment,
    Comment,
    Group,
    Issue,
    Label,
    Member,
    Milestone,
    Project,
)

__all__ = [
    "Account",
    "Attachment",
    "Comment",
    "Group",
    "Issue",
    "Label",
    "Member",
    "Milestone",
    "Project",
]
