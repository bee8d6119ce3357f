"""GitHub as a store: what is in a repository, and in the organization around it.

Written against the published description of GitHub's REST API, version 2022-11-28.

GitHub assigns the ids of issues, comments and milestones. Each one that eventsync creates has a
marker with the key of the record at the end of its text, so that it is found again. GitHub cannot
delete an issue: eventsync closes it as not planned, locks it, and adds ``deleted`` to its marker. A
repository is archived instead of deleted. GitHub has no conditional writes: if somebody edits a
field between our read and our write of the same field, that edit is overwritten.
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
from eventsync.stores.trackers.github.service import GitHubService

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
