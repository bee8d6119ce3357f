"""Issue trackers as stores, built on the REST store; one module a tracker.

It names the records they have in common. It needs the extra ``rest``.
"""

from __future__ import annotations

from eventsync.stores.trackers.record import (
    Account,
    Comment,
    Group,
    Issue,
    Label,
    Member,
    Milestone,
    Project,
)

__all__ = ["Account", "Comment", "Group", "Issue", "Label", "Member", "Milestone", "Project"]
