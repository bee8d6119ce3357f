"""GitLab as a store: the issues, comments, milestones and labels of a project, and more.

Written against the documentation of GitLab's REST API, version 4.

There are also accessors of the groups, their members and projects, and the users.

GitLab assigns the ids of issues, comments and milestones. When eventsync creates such an object, it
puts a marker with the key of the record at the end of the text, by which it finds the object again.
GitLab has no conditional writes: if somebody edits a field after eventsync has read the object and
before it writes the same field, that edit is lost. GitLab executes commands in texts (for example
``/close`` on a line of its own), so eventsync escapes these commands.
"""

from __future__ import annotations

from eventsync.stores.trackers.gitlab.attachment import GitLabAttachments
from eventsync.stores.trackers.gitlab.group import (
    GitLabAccounts,
    GitLabGroupAccounts,
    GitLabGroups,
    GitLabMembers,
    GitLabProjects,
)
from eventsync.stores.trackers.gitlab.project import (
    GitLabComments,
    GitLabIssues,
    GitLabLabels,
    GitLabMilestones,
)
from eventsync.stores.trackers.gitlab.service import GitLabService

__all__ = [
    "GitLabAccounts",
    "GitLabAttachments",
    "GitLabComments",
    "GitLabGroupAccounts",
    "GitLabGroups",
    "GitLabIssues",
    "GitLabLabels",
    "GitLabMembers",
    "GitLabMilestones",
    "GitLabProjects",
    "GitLabService",
]
