"""The gate: each rule of the consistency model, decided for one record of one store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.fingerprint import fingerprint_of
from eventsync.engine.gate import (
    UNVERSIONED,
    Decision,
    Outcome,
    decide,
    decide_one,
    decide_patches,
    decide_put_or_delete,
)
from eventsync.errors import ChangeRefusedError
from eventsync.index import Entry, Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View

APPLIED, STALE, DUPLICATE = Outcome.APPLIED, Outcome.STALE, Outcome.DUPLICATE
PRESENT, DELETED = Presence.PRESENT, Presence.DELETED
FILTERED_OUT, PENDING = Presence.FILTERED_OUT, Presence.PENDING


class Whole(Record):
    id: str = Field(key=True)
    a: int
    b: int = 7
    c: int | None = None


class Fields(Record, rule="field"):
    id: str = Field(key=True)
    a: int
    b: int = 7
    c: int | None = None


ALL = View()
WITHOUT_A = View(omit=["a"])
POSITIVE = View(where={"a": {"$gt": 0}})
POSITIVE_WITHOUT_A = View(omit=["a"], where={"a": {"$gt": 0}})


def put(version: int, **data: Any) -> Change:
    return change(PUT, version, data)


def patch(version: int, known: BaseState | None = None, **data: Any) -> Change:
    return change(PATCH, version, data, known)


def delete(version: int) -> Change:
    return change(DELETE, version, None)


def change(op, version, data, known=None) -> Change:
    return Change(type="T", key="k", op=op, version=Version.of(version), data=data, known=known)


def base(origin: Change, **versions: int) -> BaseState:
    """The base state of a patch whose origin holds the values of ``origin``."""
    return BaseState(
        origin.stamp, dict(origin.data), {name: Version.of(v) for name, v in versions.items()}
    )


@dataclass
class Copy:
    """One record in one store: what the gate decides is written here as a store would."""

    view: View = ALL
    rule: type[Record] = Fields
    entry: Entry | None = None
    row: dict[str, Any] | None = None

    @property
    def bound(self):
        return self.view.bind(self.rule.__record__)

    def decide(self, *changes: Change, final: bool = False) -> Decision:
        if self.rule is Whole:
            stamp = None if self.entry is None else self.entry.stamp
            return decide_put_or_delete(stamp, changes[0], self.bound)
        return decide(self.entry, self.row, changes, self.bound, "k", final=final)

    def apply(self, *changes: Change, final: bool = False) -> list[Outcome]:
        if self.rule is Whole and len(changes) != 1:
            return [outcome for one in changes for outcome in self.apply(one)]
        decision = self.decide(*changes, final=final)
        if decision.entry is not None:
            self.entry = decision.entry
            if decision.remove:
                self.row = None
            elif decision.write is not None:
                row = {} if self.rule is Whole else self.row or {}
                written = {n: v for n, v in decision.write.items() if n in self.bound.names}
                self.row = {**row, **written}
        return [verdict.outcome for verdict in decision.verdicts]

    @property
    def presence(self) -> Presence | None:
        return None if self.entry is None else self.entry.presence

    @property
    def values(self) -> dict[str, Any] | None:
        """The values of the row, without the key."""
        return None if self.row is None else {n: v for n, v in self.row.items() if n != "id"}


# -- puts and deletes, under both rules -----------------------------------------------------------

BEFORE = {
    "nothing": [],
    "present": [put(5, a=1, b=2, c=3)],
    "deleted": [delete(5)],
    "filtered out": [put(5, a=-1, b=2, c=3)],
}
OLD, NEW, OUT = {"a": 1, "b": 2, "c": 3}, {"a": 4, "b": 5, "c": 6}, {"a": -4, "b": 5, "c": 6}


@pytest.mark.parametrize("rule", [Whole, Fields])
@pytest.mark.parametrize(
    ("before", "arriving", "outcome", "presence", "values"),
    [
        ("nothing", put(6, **NEW), APPLIED, PRESENT, NEW),
        ("nothing", put(6, **OUT), APPLIED, FILTERED_OUT, None),
        ("nothing", delete(6), APPLIED, DELETED, None),
        ("present", put(6, **NEW), APPLIED, PRESENT, NEW),
        ("present", put(6, **OUT), APPLIED, FILTERED_OUT, None),
        ("present", put(4, **NEW), STALE, PRESENT, OLD),
        ("present", put(4, **OUT), STALE, PRESENT, OLD),
        ("present", put(5, **OLD), DUPLICATE, PRESENT, OLD),
        ("present", delete(6), APPLIED, DELETED, None),
        ("present", delete(4), STALE, PRESENT, OLD),
        ("deleted", put(6, **NEW), APPLIED, PRESENT, NEW),
        ("deleted", put(4, **NEW), STALE, DELETED, None),
        ("deleted", delete(6), APPLIED, DELETED, None),
        ("deleted", delete(4), STALE, DELETED, None),
        ("deleted", delete(5), DUPLICATE, DELETED, None),
        ("filtered out", put(6, **NEW), APPLIED, PRESENT, NEW),
        ("filtered out", put(6, **OUT), APPLIED, FILTERED_OUT, None),
        ("filtered out", put(4, **NEW), STALE, FILTERED_OUT, None),
        ("filtered out", put(5, a=-1, b=2, c=3), DUPLICATE, FILTERED_OUT, None),
        ("filtered out", delete(6), APPLIED, DELETED, None),
        ("filtered out", delete(4), STALE, FILTERED_OUT, None),
    ],
)
def test_put_or_delete(rule, before, arriving, outcome, presence, values):
    """The later of two puts or deletes wins, and the filter decides where a put goes."""
    copy = Copy(POSITIVE, rule)
    copy.apply(*BEFORE[before])
    stamps = [change.stamp for change in BEFORE[before]]
    assert copy.apply(arriving) == [outcome]
    assert (copy.presence, copy.values) == (presence, values)
    assert copy.entry.stamp == max([*stamps, arriving.stamp])


@pytest.mark.parametrize("rule", [Whole, Fields])
@pytest.mark.parametrize("before", BEFORE)
def test_lost_change_writes_nothing(rule, before):
    """A stale or duplicate change leaves the entry and the record alone."""
    copy = Copy(POSITIVE, rule)
    copy.apply(*BEFORE[before])
    for lost in [put(4, **NEW), delete(4), *BEFORE[before]]:
        if before != "nothing":
            decision = copy.decide(lost)
            assert (decision.entry, decision.write, decision.remove) == (None, None, False)


@pytest.mark.parametrize("rule", [Whole, Fields])
@pytest.mark.parametrize(
    ("one", "other"),
    [(put(5, **OLD), delete(5)), (put(5, **OLD), put(5, **NEW))],
    ids=["put and delete", "two puts"],
)
def test_collision(rule, one, other):
    """Of two changes at one version every store picks the greater stamp, and reports it."""
    winner = max(one, other, key=lambda change: change.stamp)
    if other.op == DELETE:
        assert winner is other
    for order in [(one, other), (other, one)]:
        copy = Copy(rule=rule)
        copy.apply(order[0])
        (verdict,) = copy.decide(order[1]).verdicts
        assert verdict.collision
        assert verdict.outcome is (APPLIED if order[1] is winner else STALE)
        copy.apply(order[1])
        assert copy.entry.stamp == winner.stamp
        assert copy.values == (None if winner.op == DELETE else winner.data)


def test_no_collision_between_different_versions():
    """A change that wins or loses by its version is no collision."""
    copy = Copy()
    copy.apply(put(5, **OLD))
    for arriving in [put(4, **NEW), put(5, **OLD), put(6, **NEW), patch(6, b=3), patch(4, b=3)]:
        assert not copy.decide(arriving).verdicts[0].collision


@pytest.mark.parametrize("rule", [Whole, Fields])
def test_absent_fields_take_their_defaults(rule):
    """A put that lacks a field gives it its default; without a default the put is refused."""
    copy = Copy(rule=rule)
    copy.apply(put(5, a=1))
    assert copy.row == {"id": "k", "a": 1, "b": 7, "c": None}
    with pytest.raises(ChangeRefusedError, match="'a'") as caught:
        Copy(rule=rule).decide(put(5, b=1))
    assert caught.value.reason == "incomplete"


def test_per_record_rule_refuses_a_patch():
    """A patch could not converge under the per-record rule."""
    with pytest.raises(ChangeRefusedError) as caught:
        Copy(rule=Whole).decide(patch(5, a=1))
    assert caught.value.reason == "patch-refused"


@pytest.mark.parametrize(
    ("data", "view", "altered"),
    [
        ({"id": "k", **OLD}, ALL, False),
        ({"id": "k", "a": 1}, ALL, True),
        ({"id": "k", **OLD}, WITHOUT_A, True),
    ],
)
def test_altered_says_whether_the_body_was_written(data, view, altered):
    """What is written is the body of the put, unless a default or the view changes it."""
    assert Copy(view, Whole).decide(put(5, **data)).altered is altered


# -- patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "arriving", "outcome", "presence", "values"),
    [
        ([put(5, **OLD)], patch(6, b=9), APPLIED, PRESENT, {**OLD, "b": 9}),
        ([put(5, **OLD)], patch(4, b=9), STALE, PRESENT, OLD),
        ([put(5, **OLD), patch(6, b=9)], patch(7, c=8), APPLIED, PRESENT, {"a": 1, "b": 9, "c": 8}),
        ([put(5, **OLD), patch(7, b=9)], patch(6, b=8), STALE, PRESENT, {**OLD, "b": 9}),
        ([put(5, **OLD), patch(7, b=9)], patch(6, b=8, c=8), APPLIED, PRESENT,
         {"a": 1, "b": 9, "c": 8}),
        ([put(5, **OLD), patch(7, b=9)], patch(7, b=9), DUPLICATE, PRESENT, {**OLD, "b": 9}),
        ([put(5, **OLD), patch(7, b=9)], put(6, **NEW), APPLIED, PRESENT, {**NEW, "b": 9}),
        ([put(5, **OLD), patch(7, b=9)], put(8, **NEW), APPLIED, PRESENT, NEW),
        ([put(5, **OLD), patch(7, b=9)], delete(6), APPLIED, DELETED, None),
        ([delete(5)], patch(6, b=9), APPLIED, DELETED, None),
        ([delete(5)], patch(4, b=9), STALE, DELETED, None),
        ([delete(5), patch(7, b=9)], put(6, **NEW), APPLIED, PRESENT, {**NEW, "b": 9}),
        ([put(5, **OLD)], patch(6, a=-1), APPLIED, FILTERED_OUT, None),
        ([put(5, a=-1, b=2, c=3)], patch(6, b=9), APPLIED, FILTERED_OUT, None),
        ([put(5, a=-1, b=2, c=3)], patch(4, b=9), STALE, FILTERED_OUT, None),
        ([], patch(6, b=9), Outcome.PENDING, PENDING, None),
        ([patch(6, b=9)], put(5, **OLD), APPLIED, PRESENT, {**OLD, "b": 9}),
        ([patch(6, b=9)], put(7, **NEW), APPLIED, PRESENT, NEW),
        ([patch(6, b=9)], delete(7), APPLIED, DELETED, None),
        ([patch(6, b=9)], patch(7, a=1), Outcome.PENDING, PENDING, None),
    ],
)  # fmt: skip
def test_patch(before, arriving, outcome, presence, values):
    """Each field keeps its latest value, and a patch creates or revives no record."""
    copy = Copy(POSITIVE)
    copy.apply(*before)
    assert copy.apply(arriving) == [outcome]
    assert (copy.presence, copy.values) == (presence, values)


def test_patch_writes_only_what_it_changes():
    """The other fields of the row, foreign writes included, are not written again."""
    copy = Copy()
    copy.apply(put(5, **OLD))
    copy.row["c"] = 33
    decision = copy.decide(patch(6, b=9))
    assert decision.write == {"b": 9}
    assert decision.entry.versions == {"b": Version.of(6)}
    copy.apply(patch(6, b=9))
    assert copy.values == {"a": 1, "b": 9, "c": 33}


def test_patch_collision():
    """Two patches of a field at one version converge to one value, and one of them reports it."""
    ends = []
    for order in [(patch(6, b=8), patch(6, b=9)), (patch(6, b=9), patch(6, b=8))]:
        copy = Copy()
        copy.apply(put(5, **OLD), order[0])
        verdicts = copy.decide(order[1]).verdicts
        copy.apply(order[1])
        ends.append((copy.values, verdicts[0].collision))
    assert ends[0][0] == ends[1][0]
    assert sorted(collision for _, collision in ends) == [False, True]


def test_outcomes_of_several_changes_at_once():
    """Every change of a batch gets its own verdict, in the order of the batch."""
    copy = Copy()
    copy.apply(put(5, **OLD))
    batch = [patch(6, b=9), put(5, **OLD), patch(4, c=9), patch(6, b=9), patch(7, a=9)]
    assert copy.apply(*batch) == [APPLIED, DUPLICATE, STALE, DUPLICATE, APPLIED]
    assert copy.values == {"a": 9, "b": 9, "c": 3}


# -- the base state of a patch --------------------------------------------------------------------


@pytest.mark.parametrize("before", ["nothing", "present", "filtered out"])
def test_base_state_heals_a_lost_change(before):
    """A store that missed the put behind a patch takes the record from the base state."""
    copy = Copy(POSITIVE)
    copy.apply(*BEFORE[before])
    lost = put(6, a=4, b=5, c=6)
    assert copy.apply(patch(7, base(lost), c=8)) == [APPLIED]
    assert copy.values == {"a": 4, "b": 5, "c": 8}
    assert copy.entry.stamp == lost.stamp
    assert copy.apply(lost) == [DUPLICATE]


def test_base_state_does_not_replace_later_values():
    """Values of a base state have their own versions, not that of the patch."""
    copy = Copy()
    copy.apply(put(5, **OLD), patch(8, b=9))
    known = base(put(5, a=1, b=2), b=6)
    copy.apply(patch(10, replace(known, values={"a": 1, "b": 66}), c=8))
    assert copy.values == {"a": 1, "b": 9, "c": 8}


def test_partial_base_state_does_not_empty_a_whole_record():
    """An origin that holds fewer fields cannot make a complete record pending."""
    copy = Copy()
    copy.apply(put(5, **OLD))
    unseen = put(6, a=4, b=5, c=6)
    partial = BaseState(unseen.stamp, {"b": 5}, {})
    assert copy.apply(patch(7, partial, c=8)) == [APPLIED]
    assert (copy.presence, copy.values) == (PRESENT, {**OLD, "c": 8})
    assert copy.apply(unseen) == [APPLIED]
    assert copy.values == {"a": 4, "b": 5, "c": 8}


def test_partial_base_state_alone_is_pending():
    """Half a record is never written as if it were whole."""
    copy = Copy()
    unseen = put(6, a=4, b=5, c=6)
    assert copy.apply(patch(7, BaseState(unseen.stamp, {"b": 5}, {}), c=8)) == [Outcome.PENDING]
    assert (copy.presence, copy.row) == (PENDING, None)
    assert copy.entry.deferred == {"b": 5, "c": 8}
    copy.apply(unseen)
    assert copy.values == {"a": 4, "b": 5, "c": 8}


# -- partial views and filters --------------------------------------------------------------------


def test_partial_view_ignores_other_fields():
    """A change of a field that the store does not hold writes nothing there."""
    copy = Copy(WITHOUT_A)
    copy.apply(put(5, **OLD))
    assert copy.values == {"b": 2, "c": 3}
    decision = copy.decide(patch(6, a=9))
    assert [verdict.outcome for verdict in decision.verdicts] == [APPLIED]
    assert decision.write is None
    assert Copy(WITHOUT_A).decide(patch(6, a=9)).entry is None


def test_put_of_a_partial_origin_completes_by_default_only_where_it_may():
    """A field that the put lacks takes its default, unless it was patched somewhere."""
    copy = Copy()
    copy.apply(patch(6, base(put(5, a=1)), c=8))
    assert copy.presence is PENDING  # b may have a value that only another store holds
    copy = Copy()
    copy.apply(put(5, a=1), patch(6, c=8))
    assert copy.values == {"a": 1, "b": 7, "c": 8}


def test_filter_over_a_field_that_is_not_held():
    """The index keeps the values that the filter looks at, so that later patches are judged."""
    copy = Copy(POSITIVE_WITHOUT_A)
    copy.apply(put(5, **OLD))
    assert copy.values == {"b": 2, "c": 3}
    assert copy.entry.deferred == {"a": 1}
    copy.apply(patch(6, a=-1))
    assert (copy.presence, copy.row) == (FILTERED_OUT, None)
    assert copy.entry.deferred == {"a": -1}
    assert copy.entry.stamp == put(5, **OLD).stamp


def test_record_comes_back_into_the_filter():
    """A patch that makes a record match writes it whole, or leaves it pending if it cannot."""
    copy = Copy(POSITIVE)
    origin = put(5, a=-1, b=2, c=3)
    copy.apply(origin)
    lonely = replace(copy, entry=copy.entry)
    assert copy.apply(patch(6, base(origin), a=1)) == [APPLIED]
    assert copy.values == OLD
    assert lonely.apply(patch(6, a=1)) == [Outcome.PENDING]
    assert (lonely.presence, lonely.row) == (PENDING, None)


def test_value_of_a_known_version_completes_a_pending_record():
    """A pending record takes a missing value although its version is not new."""
    copy = Copy()
    copy.apply(patch(7, BaseState(put(5, **OLD).stamp, {"b": 2}, {}), c=8))
    assert copy.presence is PENDING
    assert copy.apply(patch(7, base(put(5, **OLD)), c=8)) == [APPLIED]
    assert (copy.presence, copy.values) == (PRESENT, {"a": 1, "b": 2, "c": 8})


def test_record_that_cannot_be_judged_is_pending():
    """While the value that the filter looks at is unknown, the record is not filtered out."""
    copy = Copy(POSITIVE)
    copy.apply(patch(7, BaseState(put(5, **OLD).stamp, {"b": 2}, {}), c=8))
    assert copy.presence is PENDING


def test_default_does_not_replace_a_patched_value():
    """A field that was patched has a value somewhere, so a later put without it gives no default.

    The index of this store has kept the version of that patch, but not its value.
    """
    copy = Copy(POSITIVE)
    copy.apply(put(4, a=-1, b=2, c=3), patch(7, b=9))
    assert copy.presence is FILTERED_OUT
    assert copy.apply(put(6, a=1)) == [Outcome.PENDING]
    assert (copy.presence, copy.row) == (PENDING, None)
    copy.apply(patch(7, b=9))
    assert copy.values == {"a": 1, "b": 9, "c": None}


def test_store_of_keys_alone_follows_the_record():
    """A store that holds nothing but the key takes the record from a base state, and its delete."""
    copy = Copy(View(only=["id"]))
    assert copy.apply(patch(6, BaseState(put(5, **OLD).stamp, {}, {}))) == [APPLIED]
    assert (copy.presence, copy.row) == (PRESENT, {"id": "k"})
    assert copy.apply(delete(7)) == [APPLIED]
    assert (copy.presence, copy.row) == (DELETED, None)


def test_final_fills_a_pending_record():
    """When no other store knows more, missing fields take their defaults."""
    copy = Copy()
    copy.apply(patch(7, BaseState(put(5, **OLD).stamp, {"a": 1}, {}), c=8))
    assert copy.presence is PENDING
    copy.apply(final=True)
    assert (copy.presence, copy.values) == (PRESENT, {"a": 1, "b": 7, "c": 8})


def test_final_refuses_a_missing_field_without_default():
    """A required field has no default that could replace a missing value."""
    copy = Copy()
    copy.apply(patch(7, BaseState(put(5, **OLD).stamp, {"b": 2}, {}), c=8))
    with pytest.raises(ChangeRefusedError) as caught:
        copy.decide(final=True)
    assert caught.value.reason == "incomplete"


# -- records that eventsync did not write ---------------------------------------------------------


def test_unversioned_row_is_older_than_every_change():
    """The first change of a foreign row changes what it names and keeps the rest."""
    copy = Copy(row={"id": "k", **OLD})
    assert copy.apply(patch(1, b=9)) == [APPLIED]
    assert copy.values == {**OLD, "b": 9}
    assert copy.entry.stamp == UNVERSIONED


def test_unversioned_row_without_a_value_takes_its_default():
    """The store itself is the origin of a foreign row: no other store knows more of it."""
    copy = Copy(row={"id": "k", "a": 1})
    assert copy.apply(patch(1, c=3)) == [APPLIED]
    assert copy.values == {"a": 1, "b": 7, "c": 3}


def test_first_change_of_a_row_may_name_no_value():
    """A foreign row with nothing but a key becomes a known record."""
    view = Copy(View(only=["id", "c"])).bound
    change = patch(1, BaseState(UNVERSIONED, {"c": None}, {}))
    decision = decide_one(None, {"id": "k", "c": None}, change, view)
    assert decision.entry.presence is PRESENT


def test_echo_stays_with_the_row():
    """The fingerprint is kept while the store has the row, and lost with it."""
    copy = Copy(POSITIVE)
    copy.apply(put(5, **OLD))
    echo = copy.entry.echo = fingerprint_of(copy.entry, copy.row, copy.bound)
    assert copy.decide(patch(6, b=9)).entry.echo == echo
    copy.apply(patch(6, a=-1))
    copy.row = None
    assert copy.decide(put(7, **NEW)).entry.echo is None


class Extended(Record, rule="field"):
    id: str = Field(key=True)
    a: int
    new: int | None = 5


@pytest.mark.parametrize("fill", [None, 7])
@pytest.mark.parametrize("known", [None, {}, {"new": None}, {"new": 5}])
def test_a_default_does_not_replace_what_fills_a_new_field(fill, known):
    """Neither a patch, nor what its origin fills in, nor a put without the field writes it."""
    view = View().bind(Extended.__record__)
    view.fills = {"new": 7}
    first = put(5, id="k", a=1)
    entry = Entry(first.stamp, PRESENT)
    entry.echo = fingerprint_of(entry, {"id": "k", "a": 1}, view)
    row = {"id": "k", "a": 1, "new": fill}
    base_state = None if known is None else BaseState(first.stamp, known, {})
    for change in (patch(6, base_state, a=2), put(6, id="k", a=2)):
        decision = decide(entry, row, [change], view, "k")
        expected = {"a": 2}
        if fill is None and change.op == PATCH and known == {"new": 5}:
            expected["new"] = 5  # the origin has a value, and this store has none
        assert decision.write == expected
    for change in (patch(6, new=5), put(6, id="k", a=1, new=5)):
        assert decide(entry, row, [change], view, "k").write == {"new": 5}


# -- properties -----------------------------------------------------------------------------------


@st.composite
def histories(draw):
    """Changes of one record, whose base states are what an origin can have held before a patch."""
    changes = [each.replace(known=None) for each in draw(strategies.per_field)]
    for number, each in enumerate(changes):
        if each.op == PATCH:
            earlier = [other for other in changes if other.version < each.version]
            seen = State()
            for other in draw(st.lists(st.sampled_from(earlier))) if earlier else []:
                seen = join(seen, State.of(other))
            if seen.live:
                rest = {n: v for n, v in seen.values.items() if n not in each.data}
                versions = {n: v for n, v in seen.versions.items() if n in rest}
                changes[number] = each.replace(known=BaseState(seen.stamp, rest, versions))
    return changes


def in_parts(changes, rng):
    """The changes in parts of one to three."""
    while changes:
        size = rng.randint(1, 3)
        yield changes[:size]
        changes = changes[size:]


@pytest.mark.parametrize("view", [ALL, WITHOUT_A])
@given(histories(), st.randoms(use_true_random=False))
def test_order_does_not_matter_per_field(view, changes, rng):
    """Shuffled, repeated and cut into other batches, changes leave the same entry and row."""
    again = [*changes, *(rng.choice(changes) for _ in changes)]
    rng.shuffle(again)
    ends = []
    for sequence in (changes, again):
        copy = Copy(view)
        for part in in_parts(sequence, rng):
            copy.apply(*part)
        entry = copy.entry
        known = entry and (entry.stamp, entry.presence, entry.versions, entry.deferred)
        ends.append((known, copy.row))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("view", [ALL, POSITIVE])
@given(strategies.per_record, st.randoms(use_true_random=False))
def test_order_does_not_matter_per_record(view, changes, rng):
    """Under the per-record rule the greatest stamp wins in every order."""
    again = [*changes, *(rng.choice(changes) for _ in changes)]
    rng.shuffle(again)
    one, other = Copy(view, Whole), Copy(view, Whole)
    one.apply(*changes)
    other.apply(*again)
    assert (one.entry, one.row) == (other.entry, other.row)
    if changes:
        assert one.entry.stamp == max(change.stamp for change in changes)


@given(strategies.per_field, strategies.per_field)
def test_fast_path_decides_the_same(before, changes):
    """``decide_patches`` gives the verdicts and the entry of ``decide``, and no value less."""
    copy = Copy()
    copy.apply(*before)
    fast = decide_patches(copy.entry, changes, copy.bound)
    if fast is None:
        return
    slow = copy.decide(*changes)
    assert fast.verdicts == slow.verdicts
    if not changes:
        return
    assert fast.entry == slow.entry
    assert {**copy.row, **fast.write} == {**copy.row, **(slow.write or {})}


@pytest.mark.parametrize(
    ("arriving", "taken"),
    [
        (patch(6, b=9), True),
        (patch(6, base(put(5, **OLD)), b=9), True),
        (patch(4, b=9), False),
        (patch(6, id="k"), False),
        (patch(6), False),
        (put(6, **NEW), False),
        (patch(7, base(put(6, **NEW)), b=9), False),
        (patch(7, base(put(5, **OLD), c=6), b=9), False),
    ],
)
def test_fast_path_takes_only_patches_that_win(arriving, taken):
    """The fast path leaves everything to ``decide`` that needs the row."""
    copy = Copy()
    copy.apply(put(5, **OLD))
    assert (decide_patches(copy.entry, [arriving], copy.bound) is not None) is taken


@pytest.mark.parametrize(
    "entry",
    [
        None,
        Entry(delete(5).stamp, DELETED),
        Entry(put(5, **OLD).stamp, PENDING),
        Entry(put(5, **OLD).stamp, PRESENT, deferred={"a": 1}),
        Entry(put(5, **OLD).stamp, PRESENT, whole=False),
    ],
)
def test_fast_path_needs_a_whole_present_record(entry):
    """A record that is deleted, pending, unknown or not whole is left to ``decide``."""
    assert decide_patches(entry, [patch(6, b=9)], Copy().bound) is None
