"""Records in a Roundup issue tracker.

It owns what Roundup calls things, and in how many steps they are written. It knows no other
tracker. Written against Roundup 2.6 with its classic schema.

An issue's description is the content of its first message; the others are its comments. Each
message that eventsync writes carries the record's key in its ``messageid``, as a mail would, by
which it is found again.
"""

from __future__ import annotations

from eventsync.stores.trackers.roundup.account import RoundupAccounts, RoundupMembers
from eventsync.stores.trackers.roundup.comment import RoundupComments
from eventsync.stores.trackers.roundup.issue import RoundupIssues
from eventsync.stores.trackers.roundup.item import RoundupService
from eventsync.stores.trackers.roundup.label import RoundupLabels

__all__ = [
    "RoundupAccounts",
    "RoundupComments",
    "RoundupIssues",
    "RoundupLabels",
    "RoundupMembers",
    "RoundupService",
]
