"""How the suite for issue trackers comes to its stores, and the records that it tries them with.

It knows nothing of what is expected of them.
"""

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

# Of each kind a record, and then what is changed of it, in steps.
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
# Which have to be there before which.
_NEEDS: Final[Mapping[Kind, Sequence[Kind]]] = {
    Member: (Account, Group),
    Project: (Group,),
    Issue: (Account, Milestone),
    Comment: (Account, Issue),
}


class TrackerHarness:
    """What is to be said of a tracker; see ``TrackerContract``."""

    name: ClassVar[str]
    """The name of the identity map, with which the keys of what others create begin."""
    creates: ClassVar[tuple[Kind, ...]]
    """The types of records that can be created, those first that others refer to."""
    odd: ClassVar[Mapping[Kind, Sequence[Mapping[str, Any]]]] = {}
    """By type, what the records here have instead: of the first, and of each change."""
    refuses: ClassVar[Mapping[Kind, Mapping[str, str]]] = {}
    """By type what the tracker offers no way to do, ``create``, ``modify`` or ``destroy``, and
    a pattern of why not."""
    unique: ClassVar[tuple[Kind, ...]] = ()
    """The types of which a record that was removed cannot be created again."""
    nobody: ClassVar[str | None] = None
    """An assignee who is not there and is waited for, if any is."""
    refused: ClassVar[Sequence[tuple[Record, str]]]
    """Records that the tracker refuses, each with a pattern of its reason: one is an issue without
    a title."""
    rejects: ClassVar[Sequence[tuple[Record, str]]] = ()
    """Records that are rejected before anything is sent, each with a pattern of the reason."""
    keeps_due: ClassVar[str] = ""
    """A pattern of why a milestone's date cannot be taken away, if it cannot."""
    since: ClassVar[str]
    """What is in a request for issues that changed, as it is in a URL."""
    tags: ClassVar[bool] = False
    """Whether a write of what somebody changed in between is refused, and judged again."""
    hint: ClassVar[str]
    """A pattern of the hint at the rights of who asks."""
    ways: ClassVar[Sequence[Failure]] = FAILURES
    """In which ways writes fail here; fewer will do where each request takes its time."""

    # -- the tracker -------------------------------------------------------------------------------

    def store(self, folder: Path, secret: str | None = None) -> Store:
        """The store whose versions and identities are in ``folder``, as a process would make it.

        ``secret``: a token or password that the tracker does not know, instead of the right one.
        """
        raise NotImplementedError

    def opens(self, **fields: Any) -> str:
        """Somebody opens an issue there: ``title``, ``description``, ``labels``. Its id."""
        raise NotImplementedError

    def edits(self, issue: str, **fields: Any) -> None:
        """Somebody edits an issue there: its ``title`` or ``status``."""
        raise NotImplementedError

    def says(self, issue: str, body: str) -> str:
        """Somebody comments on an issue there; the id of the comment, as it is in keys."""
        raise NotImplementedError

    def deletes(self, issue: str) -> None:
        """An issue is deleted there, or moved to where it is not seen."""
        raise NotImplementedError

    def text(self, issue: str) -> str:
        """The description of an issue as it stands there."""
        raise NotImplementedError

    def count(self) -> Mapping[Kind, int]:
        """How many issues, milestones and comments there are, by their types."""
        raise NotImplementedError

    def brought(self, change: Change) -> bool:
        """Whether it captures what comes by itself with another record, as labels with issues."""
        return change.type == "Label" and Label not in self.creates

    # -- stores and records ------------------------------------------------------------------------

    def setup_method(self) -> None:
        self.line = Line()
        self.clock = Clock()

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Store]:
        """The store in ``folder``, of a new process, over ``line``."""
        with self.line.over(self.store(folder)) as store:
            yield store

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Iterator[Store]:
        """A store that has seen what there is at the beginning."""
        with self.opened(tmp_path) as store:
            captured(store)
            self.line.clear()
            yield store

    def made(self, store: Store, kind: Kind) -> tuple[Record, list[dict[str, Any]]]:
        """The record of a kind with which things are tried, and the changes of it, in steps."""
        accessor = store.accessor(kind)
        assert isinstance(accessor, TrackerAccessor)
        usual, odd = _RECORDS[kind], self.odd.get(kind, ())
        steps = [{**(one or {}), **(two or {})} for one, two in zip_longest(usual, odd)]
        fields = {*accessor.view_slots, *kind.__record__.keys}
        first, *later = ({n: v for n, v in step.items() if n in fields} for step in steps)
        return kind(**first), [step for step in later if step]

    def prepare(self, store: Store, kind: Kind) -> None:
        """Add what a record of a kind refers to. An issue that is commented on is a plain one."""
        about = self.made(store, kind)[0].raw()
        labels = about.get("labels", ())
        names = {str(held) for held in about.values()}
        for needed in _NEEDS.get(kind, ()):
            if needed not in self.creates:
                continue
            record, _ = self.made(store, needed)
            # A project may be within a group.
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
        """A record of a kind is added and changed, step by step, and is each time as it was meant.

        None of it is taken for an edit of somebody else's.
        """
        self.prepare(store, kind)
        record, steps = self.made(store, kind)
        store.add(record)
        held = store.get(record)
        assert held is not None
        assert held.raw() == {name: record[name] for name in held.raw()}
        assert self.seen(store) == []
        for step in steps:
            held = store[record]
            for name, value in step.items():
                held[name] = value
            meant = held.raw()
            store.update(held)
            assert store[record].raw() == meant
            assert self.seen(store) == []
        assert [found.key for found in store.find(kind)].count(record.key) == 1

    def seen(self, store: Store) -> list[Change]:
        """What is captured, but for what comes by itself."""
        return [change for change in captured(store) if not self.brought(change)]

    def id_of(self, store: Store, key: str) -> str:
        """The id that the tracker gave to one of our issues."""
        accessor = store.accessor(Issue)
        assert isinstance(accessor, TrackerAccessor)
        assert accessor.identity is not None
        id = accessor.identity.id_of("Issue", key)
        assert id is not None
        return id

    def outcomes(self, store: Store, changes: Sequence[Change]) -> list[Outcome]:
        """What becomes of changes that come from elsewhere."""
        return [settled.outcome for settled in apply(store, changes, clock=self.clock)]


def captured(store: Store, kind: Kind | None = None, *, whole: bool = True) -> list[Change]:
    """The changes that the store finds others to have made, of one type of records or of all."""
    return [change for found in store.capture(kind, whole=whole) for change in found]
