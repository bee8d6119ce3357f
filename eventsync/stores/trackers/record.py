"""The records of issue trackers: what they have in common, under one name each.

It knows no tracker. A tracker holds a part of these fields; a record type of your own will do as
well, if a view renames its fields to these.
"""

from __future__ import annotations

import datetime as dt

from eventsync.records.record import Field, Record

__all__ = ["Account", "Comment", "Group", "Issue", "Label", "Member", "Milestone", "Project"]


class Account(Record, rule="field"):
    """Somebody who uses the tracker. The id is the name to log in with."""

    id: str = Field(key=True)
    name: str = ""
    address: str | None = None


class Group(Record, rule="field"):
    """A group of accounts."""

    id: str = Field(key=True)
    name: str = ""
    description: str = ""


class Member(Record, rule="field"):
    """That an account is in a group."""

    group: str = Field(key=True)
    account: str = Field(key=True)
    role: str = ""


class Project(Record, rule="field"):
    """What issues are about: a repository, a project."""

    id: str = Field(key=True)
    name: str = ""
    description: str = ""


class Label(Record, rule="field"):
    """A word that issues are sorted by. The id is the word."""

    id: str = Field(key=True)
    color: str = ""
    description: str = ""


class Milestone(Record, rule="field"):
    """What is to be reached, and by when."""

    id: str = Field(key=True)
    title: str = ""
    description: str = ""
    status: str = Field(default="open", description="open or closed")
    due: dt.date | None = None


class Issue(Record, rule="field"):
    """Something to be done."""

    id: str = Field(key=True)
    title: str = ""
    description: str = ""
    status: str = Field(default="open", description="open or closed")
    priority: str | None = None
    assignee: Account | None = None
    milestone: Milestone | None = None
    labels: list[str] = Field(default_factory=list, description="keys of labels, sorted")


class Comment(Record, rule="field"):
    """What somebody said about an issue."""

    id: str = Field(key=True)
    issue: Issue | None = None
    author: Account | None = None
    body: str = ""
