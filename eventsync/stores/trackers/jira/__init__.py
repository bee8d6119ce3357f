"""Jira as a store: what is in a project, and the projects, users and groups of the site.

Written against the published description of Jira Cloud's REST API, version 2. In that version texts
are plain texts; in version 3 they are structured documents, which a text field cannot represent.

Jira assigns the ids of issues, comments and versions. Each one that eventsync creates has a marker
with the key of its record, so that it is found again. Issues and comments have it in a property,
which nobody sees; versions have it in an HTML comment at the end of the description, which people
do see. Jira has no conditional writes: if somebody edits a field between our read and our write of
the same field, that edit is overwritten.
"""

from __future__ import annotations

from eventsync.stores.trackers.jira.project import JiraComments, JiraIssues, JiraMilestones
from eventsync.stores.trackers.jira.service import JiraService
from eventsync.stores.trackers.jira.site import (
    JiraAccounts,
    JiraGroups,
    JiraLabels,
    JiraMembers,
    JiraProjects,
)

__all__ = [
    "JiraAccounts",
    "JiraComments",
    "JiraGroups",
    "JiraIssues",
    "JiraLabels",
    "JiraMembers",
    "JiraMilestones",
    "JiraProjects",
    "JiraService",
]
