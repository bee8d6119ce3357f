"""The base of the suite for issue trackers: what authors define, and the records of the tests."""

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

# By record type: the fields of a record, and then the fields that each later step changes.
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
# By record type: the types whose records must exist before.
_NEEDS: Final[Mapping[Kind, Sequence[Kind]]] = {
    Member: (Account, Group),
    Project: (Group,),
    Issue: (Account, Milestone),
    Comment: (Account, Issue),
}


class TrackerHarness:
    """What the author of a tracker store defines; see ``TrackerContract``."""

    name: ClassVar[str]
    """The name of the identity map. The keys of records that others create begin with it."""
    creates: ClassVar[tuple[Kind, ...]]
    """The record types that can be created. A type comes after the types that it refers to."""
    odd: ClassVar[Mapping[Kind, Sequence[Mapping[str, Any]]]] = {}
    """By type, field values that replace those of the suite: for the record, then for each step."""
    refuses: ClassVar[Mapping[Kind, Mapping[str, str]]] = {}
    """By type, the operations that the tracker does not offer, each with a pattern of the reason.

    The operations are ``create``, ``modify`` and ``destroy``."""
    unique: ClassVar[tuple[Kind, ...]] = ()
    """The types whose records cannot be created again after they were removed."""
    nobody: ClassVar[str | None] = None
    """The key of an account that does not exist, if an issue is held until its assignee exists."""
    refused: ClassVar[Sequence[tuple[Record, str]]] = ()
    """Records that the tracker refuses, each with a pattern of its reason.

    Include an issue without a title."""
    rejects: ClassVar[Sequence[tuple[Record, str]]] = ()
    """Records that are rejected before a request is sent, each with a pattern of the reason."""
    keeps_due: ClassVar[str] = ""
    """A pattern of the reason why the date of a milestone cannot be removed, if it cannot."""
    since: ClassVar[str] = ""
    """The part of a URL by which a request for recently changed issues can be recognised.

    Empty if the tracker cannot select them."""
    tags: ClassVar[bool] = False
    """Whether the tracker refuses a write to an object that has changed since it was read."""
    hint: ClassVar[str] = "correct the credentials"
    """A pattern of the hint in the error for refused credentials."""
    ways: ClassVar[Sequence[Failure]] = FAILURES
    """The failures that the suite tries. Choose fewer if requests are slow."""

    # -- the tracker -------------------------------------------------------------------------------

    def store(self, folder: Path, secret: str | None = None) -> Store:
        """Return a new store with its version index and identity map in ``folder``.

        ``secret``: a wrong token or password to use instead of the right one.
        """
        raise NotImplementedError

    def opens(self, **fields: Any) -> str:
        """Create an issue as a person would, and return its id.

        ``fields``: ``title``, ``description`` and ``labels``, as far as issues have them.
        """
        raise NotImplementedError

    def edits(self, issue: str, **fields: Any) -> None:
        """Edit the ``title`` or ``status`` of an issue as a person would."""
        raise NotImplementedError

    def says(self, issue: str, body: str) -> str:
        """Comment on an issue as a person would, and return the id of the comment as in its key.

        Not called if the store does not hold comments.
        """
        raise NotImplementedError

    def deletes(self, issue: str) -> None:
        """Delete an issue, or move it out of sight of the store."""
        raise NotImplementedError

    def text(self, issue: str) -> str:
        """Return the description of an issue as the tracker holds it."""
        raise NotImplementedError

    def count(self) -> Mapping[Kind, int]:
        """Return how many issues, milestones and comments the tracker holds, by type."""
        raise NotImplementedError

    def brought(self, change: Change) -> bool:
        """Return whether another record brought about this change, as an issue creates labels."""
        return change.type == "Label" and Label not in self.creates

    def holds(self, store: Store, kind: Kind, field: str = "") -> bool:
        """Return whether the store holds a record type or, if given, a field of it."""
        accessor = store.accessors.get(kind.__record__.name)
        if accessor is None or not field:
            return accessor is not None
        return field in accessor.view.names

    def fields(self, store: Store, **values: Any) -> dict[str, Any]:
        """Return those of the values that are of fields of issues in the store."""
        return {name: value for name, value in values.items() if self.holds(store, Issue, name)}

    # -- stores and records ------------------------------------------------------------------------

    def setup_method(self) -> None:
        self.line = Line()
        self.clock = Clock()

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Store]:
        """Open the store in ``folder`` as a new process would, with its requests over ``line``."""
        with self.line.over(self.store(folder)) as store:
            yield store

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Iterator[Store]:
        """Yield an open store that has captured what the tracker held at the beginning."""
        with self.opened(tmp_path) as store:
            captured(store)
            self.line.clear()
            yield store

    def made(self, store: Store, kind: Kind) -> tuple[Record, list[dict[str, Any]]]:
        """Return the test record of a type, and the fields that each later step changes."""
        accessor = store.accessor(kind)
        assert isinstance(accessor, TrackerAccessor)
        usual, odd = _RECORDS[kind], self.odd.get(kind, ())
        steps = [{**(one or {}), **(two or {})} for one, two in zip_longest(usual, odd)]
        fields = {*accessor.view_slots, *kind.__record__.keys}
        first, *later = ({n: v for n, v in step.items() if n in fields} for step in steps)
        return kind(**first), [step for step in later if step]

    def prepare(self, store: Store, kind: Kind) -> None:
        """Add the records that the test record of a type refers to.

        An issue that gets a comment has a title and no other field.
        """
        values = self.made(store, kind)[0].raw()
        labels = values.get("labels", ())
        names = {str(value) for value in values.values()}
        for needed in _NEEDS.get(kind, ()):
            if needed not in self.creates:
                continue
            record, _ = self.made(store, needed)
            # The path of a project may begin with that of its group.
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
        """Add the test record of a type, make all its changes, and check the record after each.

        Check too that none of these writes is captured as an edit.
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
        """Return the captured changes, without those that other records brought about."""
        return [change for change in captured(store) if not self.brought(change)]

    def id_of(self, store: Store, key: str) -> str:
        """Return the id that the tracker assigned to an issue."""
        accessor = store.accessor(Issue)
        assert isinstance(accessor, TrackerAccessor)
        assert accessor.identity is not None
        id = accessor.identity.id_of("Issue", key)
        assert id is not None
        return id

    def outcomes(self, store: Store, changes: Sequence[Change]) -> list[Outcome]:
        """Apply changes of another store, and return their outcomes."""
        return [settled.outcome for settled in apply(store, changes, clock=self.clock)]


def captured(store: Store, kind: Kind | None = None, *, whole: bool = True) -> list[Change]:
    """Return the changes that ``capture`` finds, of one record type or of all."""
    return [change for found in store.capture(kind, whole=whole) for change in found]
