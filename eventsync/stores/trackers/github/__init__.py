"""GitHub as a store: the issues, comments, milestones and labels of a repository, and more.

Written against the published description of GitHub's REST API, version 2022-11-28.

There are also accessors of the repositories, teams and members of an organization.

GitHub assigns the ids of issues, comments and milestones. When eventsync creates such an object, it
puts a marker with the key of the record at the end of the text, by which it finds the object again.
GitHub cannot delete an issue. Instead eventsync closes the issue as not planned, locks it, and adds
``deleted`` to the marker. A repository is archived instead of deleted. GitHub has no conditional
writes: if somebody edits a field after eventsync has read the object and before it writes the same
field, that edit is lost.
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
