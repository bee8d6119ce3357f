"""Records in the issues of a GitLab project, and in the groups and users beside.

It owns what GitLab calls things. It knows no other tracker. Written against the documentation of
GitLab's REST API, version 4.

Issues, comments and milestones get their ids from GitLab; each that eventsync creates carries the
record's key in an HTML comment at the end of its text, by which it is found again. GitLab takes no
conditional writes, so an edit that somebody makes between the read and the write of the same field
is overwritten. It carries out commands in texts (``/close`` on a line of its own): those of records
are written so that it does not.
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
from eventsync.stores.trackers.gitlab.service import (
    GitLabService,
)

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
