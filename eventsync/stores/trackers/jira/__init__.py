"""Jira as a store: the issues, comments and versions of a project, and more.

There are also accessors of the projects, users, groups and labels of a site.

Written against the published description of Jira Cloud's REST API, version 2. In version 2 texts
are plain texts. In version 3 texts are structured documents, which a text field cannot represent.

Jira assigns the ids of issues, comments and versions. When eventsync creates such an object, it
adds a marker with the key of the record, by which it finds the object again. The marker of an issue
or comment is a property, which Jira does not show. The marker of a version is an HTML comment at
the end of the description, which Jira shows. Jira has no conditional writes: if somebody edits a
field after eventsync has read the object and before it writes the same field, that edit is lost.
"""

from __future__ import annotations

from eventsync.stores.trackers.jira.attachment import JiraAttachments
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
    "JiraAttachments",
    "JiraComments",
    "JiraGroups",
    "JiraIssues",
    "JiraLabels",
    "JiraMembers",
    "JiraMilestones",
    "JiraProjects",
    "JiraService",
]
