"""The record types that issue trackers share.

No tracker holds all of these fields. Some of them the tracker alone decides, such as the author,
the URL and the times of an issue: these are read if the view names them, and never written. Instead
of these record types you can use your own, with a view that renames your fields to the names here.
"""

from __future__ import annotations

import datetime as dt

from eventsync.records.record import Field, Record

__all__ = [
    "Account",
    "Attachment",
    "Comment",
    "Group",
    "Issue",
    "Label",
    "Member",
    "Milestone",
    "Project",
]


class Account(Record, rule="field"):
    """A user of the tracker. The id is the login name; in Jira, the account id."""

    id: str = Field(key=True)
    name: str = ""
    address: str | None = None
    avatar: str | None = Field(default=None, description="the URL of a picture")


class Group(Record, rule="field"):
    """A group of accounts."""

    id: str = Field(key=True)
    name: str = ""
    description: str = ""


class Member(Record, rule="field"):
    """The membership of an account in a group."""

    group: str = Field(key=True)
    account: str = Field(key=True)
    role: str = ""


class Project(Record, rule="field"):
    """A project or repository that has issues."""

    id: str = Field(key=True)
    name: str = ""
    description: str = ""
    avatar: str | None = Field(default=None, description="the URL of a picture")
    public: bool | None = None
    url: str | None = None
    archived: bool | None = None
    tags: list[str] | None = Field(default=None, description="sorted")
    owner: Account | None = None


class Label(Record, rule="field"):
    """A label of issues. The id is the text of the label."""

    id: str = Field(key=True)
    color: str = ""
    description: str = ""
    project: Project | None = None


class Milestone(Record, rule="field"):
    """A milestone: a goal with a date, to which issues belong."""

    id: str = Field(key=True)
    title: str = ""
    description: str = ""
    status: str = Field(default="open", description="open or closed")
    due: dt.date | None = None
    project: Project | None = None


class Issue(Record, rule="field"):
    """An issue: a task, a bug or a request."""

    id: str = Field(key=True)
    title: str = ""
    description: str = ""
    status: str = Field(default="open", description="open or closed")
    priority: str | None = None
    assignee: Account | None = None
    milestone: Milestone | None = None
    labels: list[str] = Field(default_factory=list, description="keys of labels, sorted")
    project: Project | None = None
    author: Account | None = None
    url: str | None = None
    archived: bool | None = None
    tags: list[str] | None = Field(default=None, description="sorted")
    created: dt.datetime | None = Field(default=None, zoned=True)
    updated: dt.datetime | None = Field(default=None, zoned=True)
    parent: Issue | None = None


class Comment(Record, rule="field"):
    """A comment on an issue."""

    id: str = Field(key=True)
    issue: Issue | None = None
    author: Account | None = None
    body: str = ""
    url: str | None = None
    created: dt.datetime | None = Field(default=None, zoned=True)
    updated: dt.datetime | None = Field(default=None, zoned=True)


class Attachment(Record, rule="field"):
    """A file of an issue. Its content may have as many bytes as an envelope holds."""

    id: str = Field(key=True)
    issue: Issue | None = None
    name: str = ""
    type: str = Field(default="", description="the media type, such as image/png")
    content: bytes = b""
    author: Account | None = None
    created: dt.datetime | None = Field(default=None, zoned=True)
