"""Records in the issues of a GitHub repository, and in the organization that it belongs to.

It owns what GitHub calls things. It knows no other tracker. Written against the published
description of GitHub's REST API, version 2022-11-28.

Issues, comments and milestones get their ids from GitHub; each that eventsync creates carries the
record's key in an HTML comment at the end of its text, by which it is found again. An issue cannot
be deleted: it is closed as not planned and locked, and its mark says that it is deleted. A
repository is archived instead. GitHub takes no conditional writes, so an edit that somebody makes
between the read and the write of the same field is overwritten.
"""

from __future__ import annotations

from eventsync.stores.trackers.github.organization import (
    GitHubAccounts,
    GitHubGroups,
    GitHubMembers,
    GitHubProjects,
)
from eventsync.stores.trackers.github.repository import (
    GitHubComments,
    GitHubIssues,
    GitHubLabels,
    GitHubMilestones,
)
from eventsync.stores.trackers.github.service import (
    GitHubService,
)

__all__ = [
    "GitHubAccounts",
    "GitHubComments",
    "GitHubGroups",
    "GitHubIssues",
    "GitHubLabels",
    "GitHubMembers",
    "GitHubMilestones",
    "GitHubProjects",
    "GitHubService",
]
