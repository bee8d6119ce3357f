"""The conformance suite for issue trackers: what the store of each has to keep, said once.

It owns the expectations, and the records that they are tried with. It knows no tracker. It needs
the extras ``eventsync[testing,rest]``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from eventsync.apply import apply
from eventsync.change import Change
from eventsync.clock import Clock
from eventsync.errors import RejectedError, StoreUnavailableError
from eventsync.gate import Outcome
from eventsync.record import Record
from eventsync.store import Store
from eventsync.stores.rest import Answer, OvertakenError
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
from eventsync.testing.fake import Crash
from eventsync.testing.harness import put
from eventsync.testing.line import FAILURES, Failure, Line

__all__ = ["TrackerContract", "captured"]

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
# Which the tracker gives an id of its own.
_NUMBERED: Final = frozenset({Milestone, Issue, Comment})


class TrackerContract:
    """What every store of an issue tracker has to keep, as a class of tests.

    Extend it in a test module, on a tracker or a simulation of one, which is empty at the beginning
    of each test. Say how a store is made, and what people do there who know nothing of eventsync::

        class TestHelpdesk(TrackerContract):
            name = "helpdesk"
            creates = (Issue, Comment)

            def store(self, folder, secret=None): ...
            def opens(self, **fields): ...
            def edits(self, issue, **fields): ...
            def says(self, issue, body): ...
            def deletes(self, issue): ...
            def text(self, issue): ...
            def count(self): ...

    What the tracker does otherwise is said with the class attributes. Fields that an accessor does
    not hold are left out of the records by themselves.
    """

    name: ClassVar[str]
    """The name of the identity map, with which the keys of what others create begin."""
    creates: ClassVar[tuple[Kind, ...]]
    """The types of records that can be created, those first that others refer to."""
    odd: ClassVar[Mapping[Kind, Sequence[Mapping[str, Any]]]] = {}
    """By type, what the records here have instead: of the first, and of each change."""
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
        fields = {*accessor.held, *kind.__record__.keys}
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

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Try each type that can be created, and each way to fail that makes a difference to it."""
        if "failure" in metafunc.fixturenames:
            cases = [
                pytest.param(kind, failure, skip, id=f"{kind.__name__}-{failure}-{skip}")
                for kind in self.creates
                for failure in self.ways
                for skip in (0, 1)
                # What is known by a name cannot be there twice.
                if kind in _NUMBERED or (failure == "unanswered" and not skip)
            ]
            metafunc.parametrize(("kind", "failure", "skip"), cases)
        elif "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.creates, ids=lambda kind: kind.__name__)

    # -- what is written ---------------------------------------------------------------------------

    def test_round_trip(self, tracker: Store, kind: Kind) -> None:
        """A record goes in, is found, changed, removed, and put there again; none is an edit."""
        self.tour(tracker, kind)
        record, _ = self.made(tracker, kind)
        accessor = tracker.accessor(kind)
        assert isinstance(accessor, TrackerAccessor)
        if "destroy" in accessor.refuses:
            return
        tracker.remove(tracker[record])
        assert tracker.get(record) is None
        assert record.key not in [found.key for found in tracker.find(kind)]
        assert self.seen(tracker) == []
        if kind in self.unique:
            with pytest.raises(RejectedError):
                tracker.add(record)
        else:
            tracker.add(record)
            assert tracker.get(record) is not None
            assert self.seen(tracker) == []

    def test_written_once(self, tmp_path: Path, kind: Kind, failure: Failure, skip: int) -> None:
        """Whatever becomes of a write, of its answer and of the process, a record is there once."""
        self.written_once(tmp_path, kind, failure, skip=skip)

    def written_once(self, folder: Path, kind: Kind, failure: Failure, *, skip: int) -> None:
        """As ``test_written_once``, for one way to fail."""
        with self.opened(folder) as store:
            captured(store)
            self.prepare(store, kind)
            before = dict(self.count())
            record, _ = self.made(store, kind)
        change = put(record, self.clock.tick())
        self.line.clear()
        self.line.fail(failure, skip=skip)
        for _ in range(4):
            with self.opened(folder) as store, contextlib.suppress(Crash, StoreUnavailableError):
                (settled,) = apply(store, [change], clock=self.clock)
                assert settled.outcome in (Outcome.APPLIED, Outcome.DUPLICATE), settled.error
                break
        else:
            raise AssertionError("it never succeeded")
        with self.opened(folder) as store:
            held = store[record]
            assert held.raw() == {name: record[name] for name in held.raw()}
            assert self.seen(store) == []
        if kind in before:
            before[kind] += 1
        assert self.count() == before

    def test_somebody_edits_meanwhile(self, tracker: Store) -> None:
        """What somebody edits between reading and writing is kept, but in the fields written."""
        tracker.add(Issue(id="K", title="a"))
        issue = self.id_of(tracker, "K")
        self.line.meanwhile = lambda: self.edits(issue, status="closed")
        change = put(Issue(id="K", title="b"), self.clock.tick())
        change = change.replace(op="patch", data={"title": "b"})
        if self.tags:
            with pytest.raises(OvertakenError):
                apply(tracker, [change], clock=self.clock)
        apply(tracker, [change], clock=self.clock)
        held = tracker[Issue, "K"]
        assert (held.title, held.status) == ("b", "closed")
        assert [(c.key, c.data) for c in captured(tracker)] == [("K", {"status": "closed"})]

    def test_what_comes_too_early(self, tracker: Store) -> None:
        """A record waits for those that it refers to; in one batch with them it need not."""
        issue = Issue(id="K", title="t")
        late: list[Record] = []
        if Milestone in self.creates:
            issue["milestone"] = "M"
            late.append(Milestone(id="M", title="m"))
        elif self.nobody is not None:
            issue["assignee"] = self.nobody
            late.append(Account(id=self.nobody))
        comment = put(_comment(), self.clock.tick())
        early = [comment]
        if late:
            early.append(put(issue, self.clock.tick()))
        before = self.count()
        for _ in range(2):
            assert self.outcomes(tracker, early) == [Outcome.HELD] * len(early)
        assert self.count() == before
        batch = [comment, *(put(one, self.clock.tick()) for one in (issue, *late))]
        assert self.outcomes(tracker, batch) == [Outcome.APPLIED] * len(batch)
        assert self.seen(tracker) == []

    def test_who_comes_too_early(self, tracker: Store) -> None:
        """An issue waits for its assignee, and a member for the group and the account."""
        early: list[Record] = []
        if self.nobody is not None:
            issue = Issue(id="L", title="t")
            issue["assignee"] = self.nobody
            early.append(issue)
            if Member in self.creates:
                member, _ = self.made(tracker, Member)
                early.append(Member(group=member["group"], account=self.nobody))
        if Member in self.creates and Group in self.creates:
            early.append(self.made(tracker, Member)[0])
        changes = [put(record, self.clock.tick()) for record in early]
        for _ in range(2):
            assert self.outcomes(tracker, changes) == [Outcome.HELD] * len(changes)
        assert captured(tracker) == []

    def test_what_is_rejected(self, tracker: Store) -> None:
        """What is wrong with one record is a rejection, with the tracker's reason or ours."""
        before = self.count()
        blocked = Issue(id="K", title="t", status="blocked"), "no status 'blocked'"
        for record, reason in [blocked, *self.rejects]:
            with pytest.raises(RejectedError, match=reason):
                tracker.add(record)
        assert self.line.writes() == []
        for record, reason in self.refused:
            with pytest.raises(RejectedError, match=reason):
                tracker.add(record)
        assert self.count() == before
        tracker.add([Issue(id="K", title="t"), Issue(id="L", title="t")])
        tracker.add(_comment())
        comment = tracker[Comment, "C"]
        comment["issue"] = "L"
        with pytest.raises(RejectedError, match="cannot move"):
            tracker.update(comment)

    def test_dates_of_milestones(self, tracker: Store) -> None:
        """A milestone's date is taken away, or that is rejected."""
        if Milestone not in self.creates:
            pytest.skip("there are no milestones")
        tracker.add(Milestone(id="M", title="m", due=dt.date(2026, 1, 1)))
        milestone = tracker[Milestone, "M"]
        milestone.due = None
        if self.keeps_due:
            with pytest.raises(RejectedError, match=self.keeps_due):
                tracker.update(milestone)
        else:
            tracker.update(milestone)
            assert tracker[Milestone, "M"].due is None
            assert self.seen(tracker) == []

    def test_what_the_tracker_does_not_do(self, tracker: Store) -> None:
        """What it offers no way to do is rejected with the reason, and nothing is sent."""
        self.opens(title="t", labels=["ui"])
        for accessor in tracker.accessors.values():
            assert isinstance(accessor, TrackerAccessor)
            kind = accessor.record_class
            for what, reason in accessor.refuses.items():
                record, steps = self.made(tracker, kind)
                if what != "create":
                    record = next(iter(tracker.find(kind)))
                if what == "modify":
                    name = next(iter(steps[0]))
                    record[name] = f"not {record[name]}"
                does: dict[str, Callable[[Record], object]]
                does = {"create": tracker.add, "modify": tracker.update, "destroy": tracker.remove}
                self.line.clear()
                with pytest.raises(RejectedError, match=reason):
                    does[what](record)
                assert self.line.writes() == []

    # -- what others write -------------------------------------------------------------------------

    def test_made_there(self, tracker: Store) -> None:
        """What people make and edit there is captured once, under keys of its ids."""
        issue = self.opens(title="Theirs", description="Please", labels=["x"])
        comment = self.says(issue, "Me too")
        key, about = f"{self.name}:{issue}", f"{self.name}:{comment}"
        found = {
            (change.type, change.key): change.data or {}
            for change in captured(tracker, whole=False)
            if change.type != "Label"
        }
        assert found.keys() == {("Issue", key), ("Comment", about)}
        theirs = {"title": "Theirs", "description": "Please", "labels": ["x"], "status": "open"}
        assert found["Issue", key].items() >= theirs.items()
        assert found["Comment", about].items() >= {"issue": key, "body": "Me too"}.items()
        for status in ("closed", "open"):
            self.edits(issue, status=status)
            self.line.clear()
            assert [(c.key, c.data) for c in captured(tracker, whole=False)] == [
                (key, {"status": status})
            ]
            assert any(self.since in path for _, path in self.line.requests)
        assert captured(tracker, whole=False) == captured(tracker) == []
        assert self.line.writes() == []

    def test_edited_here(self, tracker: Store) -> None:
        """What was made there can be edited here, and no mark of ours comes into its text."""
        issue = self.opens(title="Theirs", description="Please")
        captured(tracker)
        record = tracker[Issue, f"{self.name}:{issue}"]
        record.description = "Thanks"
        tracker.update(record)
        assert self.text(issue) == "Thanks"
        assert self.seen(tracker) == []

    def test_deleted_there(self, tracker: Store) -> None:
        """What is not there any more is captured as deleted."""
        issue = self.opens(title="Theirs")
        captured(tracker)
        self.deletes(issue)
        deleted = [(c.type, c.key, c.op) for c in captured(tracker)]
        assert ("Issue", f"{self.name}:{issue}", "delete") in deleted
        assert {op for _, _, op in deleted} == {"delete"}
        assert self.seen(tracker) == []

    def test_more_than_a_page(self, tracker: Store) -> None:
        """All issues are found, however many pages they fill."""
        accessor = tracker.accessor(Issue)
        assert isinstance(accessor, TrackerAccessor)
        pages: Any = accessor.resource.pages
        accessor.resource = replace(accessor.resource, pages=replace(pages, size=3))
        issues = {f"{self.name}:{self.opens(title=f't{n}')}" for n in range(7)}
        self.line.clear()
        assert {record.key for record in tracker.find(Issue)} == issues
        assert len(self.line.requests) >= 3
        assert {change.key for change in captured(tracker)} == issues
        assert self.seen(tracker) == []

    # -- who may ask, and how often ----------------------------------------------------------------

    @pytest.mark.parametrize("status", [429, 503])
    def test_quota(self, tracker: Store, status: int) -> None:
        """A tracker that asks to be left alone is, for as long as it says."""
        self.line.answers.append(Answer(status, {"retry-after": "60"}, b"", "quota"))
        with pytest.raises(StoreUnavailableError) as caught:
            list(tracker.find(Issue))
        assert caught.value.retry_after == 60
        with pytest.raises(StoreUnavailableError, match="left alone"):
            list(tracker.find(Issue))

    def test_secret(self, tmp_path: Path) -> None:
        """A secret that is not taken stops the store with a hint at its rights; it is not shown."""
        with self.store(tmp_path, "hush-hush") as store:
            with pytest.raises(StoreUnavailableError, match=self.hint) as caught:
                store.accessor(Issue).ping()
            assert "hush-hush" not in str(caught.value) + repr(store.accessor(Issue))

    # ----------------------------------------------------------------------------------------------

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


def _comment() -> Comment:
    comment = Comment(id="C", body="x")
    comment["issue"] = "K"
    return comment


def captured(store: Store, *, whole: bool = True) -> list[Change]:
    """The changes that the store finds others to have made."""
    return [change for found in store.capture(whole=whole) for change in found]
