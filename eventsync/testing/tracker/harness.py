"""The base class of the suite for issue trackers, and the records of its tests."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.records.record import Record
from eventsync.stores.trackers import (
    Account,
    Comment,
    Group,
    Issue,
    Label,
    Member,
    Milestone,
    Project,
)
from eventsync.stores.trackers.tracker import TrackerAccessor
from eventsync.testing.tracker.line import FAILURES, Failure, Line

__all__ = ["Kind", "TrackerHarness", "captured"]

Kind = type[Record]

# By record type: the field values of the test record, then the values that each later step changes.
_RECORDS: Final[Mapping[Kind, Sequence[Mapping[str, Any]]]] = {
    Account: (
        {"id": "zoe", "name": "Zoe", "address": "zoe@example.org"},
        {"name": "Zoe Z.", "address": "z@example.org"},
    ),
    Group: ({"id": "core", "name": "core", "description": "d"}, {"description": ""}),
    Member: ({"group": "core", "account": "zoe"},),
    Project: ({"id": "site", "name": "Site", "description": "x"}, {"description": ""}),
    Label: (
        {"id": "a/b c", "color": "ff0000", "description": "what one sees"},
        {"color": ""},
        {"color": "00ff00", "description": ""},
    ),
    Milestone: (
        {"id": "M1", "title": "Spring", "description": "soon", "due": dt.date(2026, 3, 1)},
        {"status": "closed", "due": dt.date(2026, 4, 1), "description": ""},
        {"title": "Summer", "status": "open", "description": "late"},
    ),
    Issue: (
        {
            "id": "K1",
            "title": "Lamp",
            "description": "It is\ndark",
            "status": "closed",
            "milestone": "M1",
            "labels": ["bug", "ui"],
        },
        {
            "title": "Lamp!",
            "description": "",
            "status": "open",
            "assignee": None,
            "milestone": None,
            "labels": [],
        },
        {"description": "Light", "status": "closed", "labels": ["ui"]},
    ),
    Comment: ({"id": "C1", "issue": "K1", "body": "Indeed"}, {"body": "No"}),
}
# By record type: the types to which its test record refers, whose records must exist first.
_NEEDS: Final[Mapping[Kind, Sequence[Kind]]] = {
    Member: (Account, Group),
    Project: (Group,),
    Issue: (Account, Milestone),
    Comment: (Account, Issue),
}


class TrackerHarness:
    """The base class of ``TrackerContract``: attributes and methods for the author to define.

    The public methods that are defined below ``brought`` are helpers for the tests.
    """

    name: ClassVar[str]
    """The name of the identity map. The keys of records that people create begin with this name."""
    creates: ClassVar[tuple[Kind, ...]]
    """The record types whose records can be created. A type comes after the types it refers to."""
    odd: ClassVar[Mapping[Kind, Sequence[Mapping[str, Any]]]] = {}
    """By type, field values that replace those of the test record, then those of each later step.

    Set them where the tracker does not take the values of the suite."""
    refuses: ClassVar[Mapping[Kind, Mapping[str, str]]] = {}
    """By type, the operations that the tracker does not offer: ``create``, ``modify``, ``destroy``.

    The value of an operation is a regular expression for the reason in the error."""
    unique: ClassVar[tuple[Kind, ...]] = ()
    """The types whose records cannot be created again after a removal."""
    nobody: ClassVar[str | None] = None
    """The key of an account that does not exist, or ``None``.

    Set it if the store must hold an issue until its assignee exists."""
    refused: ClassVar[Sequence[tuple[Record, str]]] = ()
    """Records that the tracker itself refuses, each with a regular expression for the reason.

    Include an issue without a title."""
    rejects: ClassVar[Sequence[tuple[Record, str]]] = ()
    """Records that the store rejects without a write request, each with a regular expression for
    the reason."""
    keeps_due: ClassVar[str] = ""
    """A regular expression for the reason why the date of a milestone cannot be removed.

    Empty if the date can be removed."""
    since: ClassVar[str] = ""
    """A text that is in the URL of a request for recently changed issues, and in no other URL.

    Empty if the tracker cannot list only recent changes."""
    tags: ClassVar[bool] = False
    """Whether the tracker refuses a write if the object has changed since the store read it."""
    hint: ClassVar[str] = "correct the credentials"
    """A regular expression for the hint in the error for refused credentials."""
    ways: ClassVar[Sequence[Failure]] = FAILURES
    """The failures of a write that the suite simulates. Choose fewer if requests are slow."""

    # -- the tracker -------------------------------------------------------------------------------

    def store(self, folder: Path, secret: str | None = None) -> Store:
        """Return a new store of the tracker, with its version index and identity map in ``folder``.

        ``secret``: a wrong token or password that the store must use; ``None``: use the right one.
        """
        raise NotImplementedError

    def opens(self, **fields: Any) -> str:
        """Create an issue without eventsync, as a person would, and return the id of the issue.

        ``fields``: ``title``, ``description`` and ``labels``, as far as issues have them.
        """
        raise NotImplementedError

    def edits(self, issue: str, **fields: Any) -> None:
        """Edit the ``title`` or ``status`` of an issue without eventsync, as a person would."""
        raise NotImplementedError

    def says(self, issue: str, body: str) -> str:
        """Comment on an issue without eventsync, as a person would.

        Return the id of the comment, in the form that the key of the comment has. This
        method is not called if the store holds no comments.
        """
        raise NotImplementedError

    def deletes(self, issue: str) -> None:
        """Delete an issue without eventsync, or move it where the store does not read."""
        raise NotImplementedError

    def text(self, issue: str) -> str:
        """Return the description of an issue as the tracker holds it, with the marker if any."""
        raise NotImplementedError

    def count(self) -> Mapping[Kind, int]:
        """Return the numbers of issues, milestones and comments in the tracker, by record type."""
        raise NotImplementedError

    def brought(self, change: Change) -> bool:
        """Return whether this captured change is a side effect of a write of another record.

        For example, some trackers create the labels of an issue with the issue.
        """
        return change.type == "Label" and Label not in self.creates

    def holds(self, store: Store, kind: Kind, field: str = "") -> bool:
        """Return whether the store holds a record type and, if given, this field of the type."""
        accessor = store.accessors.get(kind.__record__.name)
        if accessor is None or not field:
            return accessor is not None
        return field in accessor.view.names

    def fields(self, store: Store, **values: Any) -> dict[str, Any]:
        """Return the given values without fields of issues that the store does not hold."""
        return {name: value for name, value in values.items() if self.holds(store, Issue, name)}

    # -- stores and records ------------------------------------------------------------------------

    def setup_method(self) -> None:
        self.line = Line()
        self.clock = Clock()

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Store]:
        """Yield the store in ``folder``, newly opened, and close it after the ``with`` block.

        The requests of the store go through ``line``.
        """
        with self.line.over(self.store(folder)) as store:
            yield store

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Iterator[Store]:
        """Yield an open store that has captured the objects already in the tracker."""
        with self.opened(tmp_path) as store:
            captured(store)
            self.line.clear()
            yield store

    def made(self, store: Store, kind: Kind) -> tuple[Record, list[dict[str, Any]]]:
        """Return the test record of a type, and the new field values of each later step."""
        accessor = store.accessor(kind)
        assert isinstance(accessor, TrackerAccessor)
        usual, odd = _RECORDS[kind], self.odd.get(kind, ())
        steps = [{**(one or {}), **(two or {})} for one, two in zip_longest(usual, odd)]
        fields = {*accessor.view_slots, *kind.__record__.keys}
        first, *later = ({n: v for n, v in step.items() if n in fields} for step in steps)
        return kind(**first), [step for step in later if step]

    def prepare(self, store: Store, kind: Kind) -> None:
        """Add the records to which the test record of a type refers.

        If the test record is a comment, its issue gets a title and no other field.
        """
        values = self.made(store, kind)[0].raw()
        labels = values.get("labels", ())
        names = {str(value) for value in values.values()}
        for needed in _NEEDS.get(kind, ()):
            if needed not in self.creates:
                continue
            record, _ = self.made(store, needed)
            # Skip a record to which no value refers. The path of a project may begin with the path
            # of its group.
            if not any(f"{name}/".startswith(f"{record['id']}/") for name in names):
                continue
            if needed is Issue:
                record = Issue(id=record["id"], title="Lamp")
            else:
                self.prepare(store, needed)
            if store.get(record) is None:
                store.add(record)
        if Label in self.creates:
            store.add([label for word in labels if not store.get(label := Label(id=word))])

    def tour(self, store: Store, kind: Kind) -> None:
        """Add the test record of a type, change it step by step, and check it after each step.

        Check also that none of these writes is captured as an edit.
        """
        self.prepare(store, kind)
        record, steps = self.made(store, kind)
        store.add(record)
        held = store.get(record)
        assert held is not None, "get() does not find the record that add() created"
        assert held.raw() == {name: record[name] for name in held.raw()}
        assert self.seen(store) == []
        for step in steps:
            held = store[record]
            for name, value in step.items():
                held[name] = value
            expected = held.raw()
            store.update(held)
            assert store[record].raw() == expected
            assert self.seen(store) == []
        assert [found.key for found in store.find(kind)].count(record.key) == 1

    def seen(self, store: Store) -> list[Change]:
        """Capture foreign writes, and return the changes.

        Changes that are side effects of other writes are left out (see ``brought``).
        """
        return [change for change in captured(store) if not self.brought(change)]

    def id_of(self, store: Store, key: str) -> str:
        """Return the id that the tracker has assigned to the issue with this key."""
        accessor = store.accessor(Issue)
        assert isinstance(accessor, TrackerAccessor)
        assert accessor.identity is not None
        id = accessor.identity.id_of("Issue", key)
        assert id is not None
        return id

    def outcomes(self, store: Store, changes: Sequence[Change]) -> list[Outcome]:
        """Apply the changes to the store as a worker would, and return the outcome of each."""
        return [settled.outcome for settled in apply(store, changes, clock=self.clock)]


def captured(store: Store, kind: Kind | None = None, *, whole: bool = True) -> list[Change]:
    """Call ``capture`` on a store, and return the changes.

    ``kind``: the record type to capture; ``None``: all types. ``whole``: read all records; if
    false, ask the tracker only for recent changes.
    """
    return [change for found in store.capture(kind, whole=whole) for change in found]
