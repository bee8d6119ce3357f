"""The tests of the conformance suite for issue trackers."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import RejectedError, StoreUnavailableError
from eventsync.records.record import Record
from eventsync.stores.rest import AccessRefusedError, Answer, OvertakenError
from eventsync.stores.trackers import Account, Comment, Group, Issue, Member, Milestone
from eventsync.stores.trackers.tracker import TrackerAccessor
from eventsync.testing.fake import Crash
from eventsync.testing.harness import put
from eventsync.testing.tracker.harness import Kind, TrackerHarness, captured
from eventsync.testing.tracker.line import Failure

__all__ = ["TrackerContract"]

# The record types for which the tracker assigns ids.
_NUMBERED: Final = frozenset({Milestone, Issue, Comment})


class TrackerContract(TrackerHarness):
    """The tests that every store of an issue tracker must pass.

    Extend this class in a test module. The tests need a tracker, or a simulation of one, that is
    empty at the beginning of each test. Define how a store is made, and how people use the tracker
    without eventsync (``TrackerHarness`` describes each method)::

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

    The class attributes describe where the tracker differs from others. The tests leave out record
    types that the store does not hold, such as comments, and fields that an accessor does not hold,
    such as labels.
    """

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test with a parameter ``kind`` once for each record type in ``creates``.

        A test with a parameter ``failure`` also runs once for each failure in ``ways``.
        """
        if "failure" in metafunc.fixturenames:
            cases = [
                pytest.param(kind, failure, skip, id=f"{kind.__name__}-{failure}-{skip}")
                for kind in self.creates
                for failure in self.ways
                for skip in (0, 1)
                # A record that its name identifies cannot be created twice, so one failure is
                # enough.
                if kind in _NUMBERED or (failure == "unanswered" and not skip)
            ]
            metafunc.parametrize(("kind", "failure", "skip"), cases)
        elif "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.creates, ids=lambda kind: kind.__name__)

    # -- our writes --------------------------------------------------------------------------------

    def test_round_trip(self, tracker: Store, kind: Kind) -> None:
        """A record can be added, found, changed, removed and added again.

        None of these writes is captured as an edit.
        """
        self.tour(tracker, kind)
        record, _ = self.made(tracker, kind)
        if "destroy" in self.refuses.get(kind, ()):
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
        """A record is created only once, in spite of a lost request, lost answer or crash."""
        self.written_once(tmp_path, kind, failure, skip=skip)

    def written_once(self, folder: Path, kind: Kind, failure: Failure, *, skip: int) -> None:
        """Run ``test_written_once`` for one record type and one failure.

        ``skip``: the number of writes that succeed before the failure.
        """
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
            raise AssertionError(
                "the change was not applied in four attempts after a single failure: a retry must "
                "find what the failed attempt has written, and continue from there"
            )
        with self.opened(folder) as store:
            held = store[record]
            assert held.raw() == {name: record[name] for name in held.raw()}
            assert self.seen(store) == []
        if kind in before:
            before[kind] += 1
        assert self.count() == before

    def test_somebody_edits_meanwhile(self, tracker: Store) -> None:
        """An edit that somebody makes between our read and our write is kept, and captured."""
        if not self.holds(tracker, Issue, "status"):
            pytest.skip("issues have no status, and no other field than the title and a text")
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
        """A record is held while a record to which it refers does not exist.

        It is applied if the other record is in the same batch.
        """
        issue = Issue(id="K", title="t")
        late: list[Record] = []
        if Milestone in self.creates:
            issue["milestone"] = "M"
            late.append(Milestone(id="M", title="m"))
        elif self.nobody is not None:
            issue["assignee"] = self.nobody
            late.append(Account(id=self.nobody))
        comments = [put(_comment(), self.clock.tick())] if self.holds(tracker, Comment) else []
        early = list(comments)
        if late:
            early.append(put(issue, self.clock.tick()))
        before = self.count()
        for _ in range(2):
            assert self.outcomes(tracker, early) == [Outcome.HELD] * len(early)
        assert self.count() == before
        batch = [*comments, *(put(one, self.clock.tick()) for one in (issue, *late))]
        assert self.outcomes(tracker, batch) == [Outcome.APPLIED] * len(batch)
        assert self.seen(tracker) == []

    def test_who_comes_too_early(self, tracker: Store) -> None:
        """An issue is held until its assignee exists, a member until group and account exist."""
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
        """A record that the tracker cannot hold is rejected, with the reason."""
        before = self.count()
        rejects = list(self.rejects)
        if self.holds(tracker, Issue, "status"):
            blocked = Issue(id="K", title="t", status="blocked")
            rejects.append((blocked, "no status 'blocked'"))
        for record, reason in rejects:
            with pytest.raises(RejectedError, match=reason):
                tracker.add(record)
        assert self.line.writes() == []
        for record, reason in self.refused:
            with pytest.raises(RejectedError, match=reason):
                tracker.add(record)
        assert self.count() == before
        if not self.holds(tracker, Comment):
            return
        tracker.add([Issue(id="K", title="t"), Issue(id="L", title="t")])
        tracker.add(_comment())
        comment = tracker[Comment, "C"]
        comment["issue"] = "L"
        with pytest.raises(RejectedError, match="cannot move"):
            tracker.update(comment)

    def test_dates_of_milestones(self, tracker: Store) -> None:
        """The date of a milestone can be removed, or the removal is rejected.

        It must be rejected if the tracker cannot remove the date.
        """
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
        """An operation that the tracker does not offer is rejected without a write request."""
        self.opens(**self.fields(tracker, title="t", labels=["ui"]))
        for kind, refused in self.refuses.items():
            for what, reason in refused.items():
                record, steps = self.made(tracker, kind)
                if what != "create":
                    record = next(iter(tracker.find(kind)))
                if what == "modify":
                    name = next(iter(steps[0]))
                    record[name] = f"not {record[name]}"
                does: dict[str, Callable[[Record], object]]
                does = {"create": tracker.add, "modify": tracker.update, "destroy": tracker.remove}
                self.line.clear()
                with pytest.raises(RejectedError, match=f"does not {what} .*{reason}"):
                    does[what](record)
                assert self.line.writes() == []

    # -- writes of others --------------------------------------------------------------------------

    def test_made_there(self, tracker: Store) -> None:
        """Issues and comments that people create and edit in the tracker are captured once.

        Their keys are made from the ids that the tracker has assigned.
        """
        given = self.fields(tracker, title="Theirs", description="Please", labels=["x"])
        issue = self.opens(**given)
        key = f"{self.name}:{issue}"
        expected = {("Issue", key): {**given, **self.fields(tracker, status="open")}}
        if self.holds(tracker, Comment):
            comment = f"{self.name}:{self.says(issue, 'Me too')}"
            expected["Comment", comment] = {"issue": key, "body": "Me too"}
        made = {
            (change.type, change.key): change.data or {}
            for change in captured(tracker, whole=False)
            if change.type != "Label"
        }
        assert made.keys() == expected.keys()
        for place, values in expected.items():
            assert made[place].items() >= values.items()
        name = "status" if self.holds(tracker, Issue, "status") else "title"
        for value in ("closed", "open"):
            self.edits(issue, **{name: value})
            self.line.clear()
            found = captured(tracker, Issue, whole=False)
            assert [(c.key, c.data) for c in found] == [(key, {name: value})]
            assert any(self.since in path for _, path in self.line.requests)
        assert captured(tracker, whole=False) == captured(tracker) == []
        assert self.line.writes() == []

    def test_edited_here(self, tracker: Store) -> None:
        """An issue that people created can be edited through the store, and gets no marker."""
        if not self.holds(tracker, Issue, "description"):
            pytest.skip("issues have no description")
        issue = self.opens(title="Theirs", description="Please")
        captured(tracker)
        record = tracker[Issue, f"{self.name}:{issue}"]
        record.description = "Thanks"
        tracker.update(record)
        assert self.text(issue) == "Thanks"
        assert self.seen(tracker) == []

    def test_deleted_there(self, tracker: Store) -> None:
        """An issue that was deleted in the tracker is captured as a delete."""
        issue = self.opens(title="Theirs")
        captured(tracker)
        self.deletes(issue)
        deleted = [(c.type, c.key, c.op) for c in captured(tracker)]
        assert ("Issue", f"{self.name}:{issue}", "delete") in deleted
        assert {op for _, _, op in deleted} == {"delete"}
        assert self.seen(tracker) == []

    def test_more_than_a_page(self, tracker: Store) -> None:
        """All issues are found, even if the tracker lists them in several pages."""
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

    # -- rights and quotas -------------------------------------------------------------------------

    @pytest.mark.parametrize("status", [429, 503])
    def test_quota(self, tracker: Store, status: int) -> None:
        """After an answer with ``Retry-After``, no request is sent until that time has passed."""
        self.line.answers.append(Answer(status, {"retry-after": "60"}, b"", "quota"))
        with pytest.raises(StoreUnavailableError) as caught:
            list(tracker.find(Issue))
        assert caught.value.retry_after == 60
        with pytest.raises(StoreUnavailableError, match="asked for a pause"):
            list(tracker.find(Issue))

    def test_secret(self, tmp_path: Path) -> None:
        """A refused secret raises a retryable error with a hint.

        Neither the error nor the ``repr`` of the accessor shows the secret.
        """
        with self.store(tmp_path, "hush-hush") as store:
            with pytest.raises(AccessRefusedError, match=self.hint) as caught:
                store.accessor(Issue).ping()
            assert "hush-hush" not in str(caught.value) + repr(store.accessor(Issue))


def _comment() -> Comment:
    comment = Comment(id="C", body="x")
    comment["issue"] = "K"
    return comment
