"""Roundup as a store: its issues, messages, users and keywords.

Written against Roundup 2.6 with its classic schema.

The description of an issue is the content of the first message of the issue. The other messages are
the comments. eventsync puts the key of the record into the ``messageid`` of each message that it
writes, and finds the message by this id again.
"""

from __future__ import annotations

from eventsync.stores.trackers.roundup.account import RoundupAccounts, RoundupMembers
from eventsync.stores.trackers.roundup.attachment import RoundupAttachments
from eventsync.stores.trackers.roundup.comment import RoundupComments
from eventsync.stores.trackers.roundup.issue import RoundupIssues
from eventsync.stores.trackers.roundup.item import RoundupService
from eventsync.stores.trackers.roundup.label import RoundupLabels

__all__ = [
    "RoundupAccounts",
    "RoundupAttachments",
    "RoundupComments",
    "RoundupIssues",
    "RoundupLabels",
    "RoundupMembers",
    "RoundupService",
]
