"""Records in the issues of a Jira project, and in the projects, users and groups beside.

It owns what Jira calls things. It knows no other tracker. Written against the published description
of Jira Cloud's REST API, in its version 2, whose texts are texts; in version 3 they are documents
of another form, of which a text would be a part only.

Issues, comments and versions get their ids from Jira. Each issue and comment that eventsync creates
carries the record's key in a property, which nobody sees, and each version in an HTML comment at
the end of its description, which people do see; by these they are found again. Jira takes no
conditional writes, so an edit that somebody makes between the read and the write of the same field
is overwritten.
"""

from __future__ import annotations

from eventsync.stores.trackers.jira.project import (
    JiraComments,
    JiraIssues,
    JiraMilestones,
)
from eventsync.stores.trackers.jira.service import (
    JiraService,
)
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
