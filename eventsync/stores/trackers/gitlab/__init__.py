"""GitLab as a store: what is in a project, and the groups, projects and users around it.

Written against the documentation of GitLab's REST API, version 4.

GitLab assigns the ids of issues, comments and milestones. Each one that eventsync creates has a
marker with the key of the record at the end of its text, so that it is found again. GitLab has no
conditional writes: if somebody edits a field between our read and our write of the same field, that
edit is overwritten. GitLab executes commands in texts (``/close`` on a line of its own), so
eventsync escapes them.
"""

from __future__ import annotations

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
