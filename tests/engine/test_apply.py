"""Applying a batch: coalescing, the checks before the gate, isolation, and waiting records."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.apply import Limits, apply
from eventsync.engine.completion import complete
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import (
    ConfigError,
    DependencyError,
    RejectedError,
    StoreError,
    StoreUnavailableError,
)
from eventsync.index import Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor

NOW = 1_000_000.0
APPLIED, SUPERSEDED, STALE = Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.STALE
DUPLICATE, HELD, REJECTED = Outcome.DUPLICATE, Outcome.HELD, Outcome.REJECTED


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class Note(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    text: str = ""


class Accessor(MemoryAccessor):
    """Records in memory, in a store that refuses what ``refuse`` raises an error for."""

    def __init__(self, record_type, refuse=lambda write: None, **options):
        super().__init__(record_type, **options)
        self.refuse = refuse
        self.calls = []

    def write_rows(self, writes, removals, transaction):
        self.calls.append([*(write.key for write in writes), *removals])
        for write in writes:
            self.refuse(write)
        super().write_rows(writes, removals, transaction)


class Patient(Accessor):
    """A store that can tell which records have to wait for another."""

    def waiting(self, rows, removals, transaction):
        return {
            key: DependencyError("waits") for key, row in rows.items() if row["name"] == "waits"
        }


def refuse_names(error, *names):
    """Raise ``error`` for records of these names."""

    def refuse(write):
        if write.values.get("name") in names:
            raise error

    return refuse


def store_of(*accessors):
    return Store("here", *accessors)


def clock():
    return Clock(now=lambda: NOW)


def change(op, key, age, data, type="Item", **more):
    """A change made ``age`` milliseconds before now."""
    return Change(
        type=type,
        key=str(key),
        op=op,
        version=Version.of(int(NOW * 1000) - age),
        data=data,
        **more,
    )


def put(key, age=0, type="Item", **data):
    return change(PUT, key, age, {"id": int(key), **data}, type)


def patch(key, age=0, **data):
    return change(PATCH, key, age, data, "Note")


def delete(key, age=0, type="Item"):
    return change(DELETE, key, age, None, type)


def outcomes(settled):
    return [item.outcome for item in settled]


def names(accessor):
    return {int(key): row["name"] for key, row in accessor.data.items()}


# -- coalescing -----------------------------------------------------------------------------------

SEVERAL = [put(1, 30, name="old"), put(1, 10, name="new"), put(1, 20, name="mid"), put(2, name="x")]
SEVERAL.append(SEVERAL[1])


@given(st.permutations(range(5)))
def test_greatest_change_of_a_record_supersedes_the_others(order):
    """One write a record, and an exact outcome for every change, in every order."""
    accessor = Accessor(Item)
    changes = [SEVERAL[number] for number in order]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert [item.change for item in settled] == changes
    assert sorted(outcomes(settled)) == [APPLIED, APPLIED, DUPLICATE, SUPERSEDED, SUPERSEDED]
    assert {item.change.data["name"] for item in settled if item.outcome is APPLIED} == {"new", "x"}
    assert names(accessor) == {1: "new", 2: "x"}
    assert [sorted(call) for call in accessor.calls] == [["1", "2"]]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from("abc"))))
def test_every_change_is_accounted_for(drawn):
    """Each record has one applied change; each other one is superseded or a duplicate."""
    accessor = Accessor(Item)
    changes = [put(key, age, name=name) for key, age, name in drawn]
    settled = apply(store_of(accessor), changes, clock=clock())
    applied = Counter(item.change.key for item in settled if item.outcome is APPLIED)
    assert applied == Counter({change.key for change in changes})
    for key, in_order in itertools.groupby(
        sorted(settled, key=lambda item: (item.change.key, item.change.stamp)),
        key=lambda item: item.change.key,
    ):
        stamps = [item.change.stamp for item in in_order]
        same = sum(stamp == stamps[-1] for stamp in stamps)
        found = Counter(item.outcome for item in settled if item.change.key == key)
        assert found == Counter(
            {APPLIED: 1, DUPLICATE: same - 1, SUPERSEDED: len(stamps) - same}
        ) - Counter({DUPLICATE: 0})


def test_all_patches_of_a_record_are_merged():
    """Under the per-field rule no change of a batch supersedes another."""
    accessor = Accessor(Note)
    changes = [
        patch(1, 10, name="b"),
        put(1, 20, "Note", name="a", text="a"),
        patch(1, 5, text="c"),
    ]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [APPLIED] * 3
    assert accessor.data["1"] == {"id": 1, "name": "b", "text": "c"}
    assert accessor.calls == [["1"]]


def test_values_of_superseded_changes_are_not_read():
    """A value that does not fit rejects only a change that could win."""
    accessor = Accessor(Item)
    changes = [put(1, 10, name=["not a text"]), put(1, 5, name="new")]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [SUPERSEDED, APPLIED]


def test_change_whose_values_do_not_fit_supersedes_nothing():
    """The greatest change that fits is applied; greater ones are rejected, one by one."""
    accessor = Accessor(Item)
    bad = [put(1, age, name=["not a text"]) for age in (1, 2)]
    changes = [put(1, 30, name="old"), bad[1], put(1, 20, name="good"), bad[0]]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [SUPERSEDED, REJECTED, APPLIED, REJECTED]
    assert [item.error.reason for item in settled if item.outcome is REJECTED] == ["field"] * 2
    assert names(accessor) == {1: "good"}


def test_collision_is_reported():
    """A change that meets another one at its version is marked."""
    store = store_of(Accessor(Item))
    apply(store, [put(1, 10, name="a")], clock=clock())
    (other,) = apply(store, [put(1, 10, name="b")], clock=clock())
    assert other.collision


def test_applying_again_changes_nothing():
    """The same batch again: what was applied is a duplicate, the rest is stale."""
    accessor = Accessor(Item)
    store = store_of(accessor)
    apply(store, SEVERAL, clock=clock())
    accessor.calls.clear()
    again = apply(store, SEVERAL, clock=clock())
    assert APPLIED not in outcomes(again)
    assert outcomes(apply(store, [SEVERAL[0]], clock=clock())) == [STALE]
    assert outcomes(apply(store, [SEVERAL[1]], clock=clock())) == [DUPLICATE]
    assert not any(accessor.calls)


# -- checks before the gate -----------------------------------------------------------------------

DAY = 86_400_000


@pytest.mark.parametrize(
    ("bad", "outcome", "reason"),
    [
        (put(1, -6000, name="x"), HELD, "clock-drift"),
        (put(1, 10 * DAY, name="x"), REJECTED, "too-old"),
        (change(PUT, 1, 0, {"id": 1}, hops=9), REJECTED, "hops"),
        (put(1, type="Other"), REJECTED, "unknown-type"),
        (change(PUT, 1, 0, {"id": 2}), REJECTED, "key-mismatch"),
        (change(DELETE, "x", 0, None), REJECTED, "field"),
        (change(PATCH, 1, 0, {"name": "x"}), REJECTED, "patch-refused"),
        (change(PUT, 1, 0, {"id": 1, "name": float("nan")}), REJECTED, "value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inadmissible_change_is_set_aside(bad, outcome, reason):
    """The change never reaches the record, the others of the batch do, the clock ignores it."""
    accessor = Accessor(Item)
    ticking = clock()
    store = store_of(accessor)
    apply(store, [put(1, 10, name="before")], clock=clock())
    settled = apply(store, [put(2, 20, name="good"), bad], clock=ticking)
    assert outcomes(settled) == [APPLIED, outcome]
    assert settled[1].error.reason == reason
    assert names(accessor) == {1: "before", 2: "good"}
    assert ticking.tick() < bad.version or bad.version.millis <= NOW * 1000


@pytest.mark.parametrize(
    ("age", "outcome"),
    [(-6000, HELD), (-4000, APPLIED), (10 * DAY, REJECTED), (10 * DAY - 10_000, APPLIED)],
)
def test_change_with_a_body_obeys_the_same_limits(age, outcome):
    """The short check of changes that came as bytes agrees with the long one."""
    change = put(1, age, name="x")
    assert change.body
    assert change.packed
    assert outcomes(apply(store_of(Accessor(Item)), [change], clock=clock())) == [outcome]


@pytest.mark.parametrize(
    "good",
    [put(1, -4000, name="x"), put(1, 10 * DAY - 10_000, name="x"), change(PUT, 1, 0, {}, hops=8)],
    ids=["near future", "old", "eight hops"],
)
def test_change_within_the_limits_is_applied(good):
    """The limits themselves do not set a change aside."""
    assert outcomes(apply(store_of(Accessor(Item)), [good], clock=clock())) == [APPLIED]


def test_limits_can_be_set():
    """The caller chooses how old, how far ahead and how far travelled a change may be."""
    limits = Limits(retention=100.0, drift=1.0, hops=0)
    changes = [put(1, 98_000), put(2, 100_000), put(3, -2000), change(PUT, 4, 0, {}, hops=1)]
    settled = apply(store_of(Accessor(Item)), changes, clock=clock(), limits=limits)
    assert outcomes(settled) == [APPLIED, REJECTED, HELD, REJECTED]


def test_clock_follows_what_was_applied():
    """An edit that is made after a change was applied has a later version."""
    ticking = clock()
    ahead = put(1, -4000, name="x")
    apply(store_of(Accessor(Item)), [ahead], clock=ticking)
    assert ticking.tick() > ahead.version


# -- isolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"), [(RejectedError("no"), "rejected"), (ZeroDivisionError("fault"), "store")]
)
def test_one_failing_record_among_many_is_isolated(error, reason):
    """Whatever one record raises, it alone is rejected, and few calls find it."""
    accessor = Accessor(Item, refuse_names(error, "poison"))
    changes = [put(key, name="poison" if key == 77 else "good") for key in range(256)]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert [item.change.key for item in settled if item.outcome is REJECTED] == ["77"]
    assert Counter(outcomes(settled)) == {APPLIED: 255, REJECTED: 1}
    assert settled[77].error.reason == reason
    assert isinstance(settled[77].error, StoreError)
    assert len(accessor.data) == 255
    assert len(accessor.calls) <= 17


def test_rejected_change_leaves_room_for_the_next():
    """If the store refuses the greatest change, the next greatest is applied."""
    accessor = Accessor(Item, refuse_names(RejectedError("no"), "bad", "worse"))
    changes = [
        put(1, 30, name="old"), put(1, 10, name="worse"), put(1, 20, name="good"),
        put(1, 15, name="bad"), put(2, name="other"),
    ]  # fmt: skip
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [SUPERSEDED, REJECTED, APPLIED, REJECTED, APPLIED]
    assert names(accessor) == {1: "good", 2: "other"}


def test_all_changes_of_a_record_may_be_rejected():
    """Each of them is then rejected with its own error."""
    accessor = Accessor(Item, refuse_names(RejectedError("no"), "bad", "worse"))
    changes = [put(1, 20, name="bad"), put(1, 10, name="worse"), put(2, name="other")]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [REJECTED, REJECTED, APPLIED]
    assert all(item.error for item in settled[:2])


def test_rejected_patch_does_not_take_others_with_it():
    """Of several changes of one record only the one that the store refuses is rejected."""
    accessor = Accessor(Note, refuse_names(RejectedError("no"), "bad"))
    changes = [
        put(1, 30, "Note", name="a", text="a"), patch(1, 20, name="bad"), patch(1, 10, text="c"),
        put(2, 5, "Note", name="b"),
    ]  # fmt: skip
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [APPLIED, REJECTED, APPLIED, APPLIED]
    assert accessor.data["1"] == {"id": 1, "name": "a", "text": "c"}


@pytest.mark.parametrize("record_type", [Item, Note])
@pytest.mark.parametrize(
    "error", [StoreUnavailableError("away"), OSError("disk full"), ConfigError("no such table")]
)
def test_shared_failure_is_raised_at_once(record_type, error):
    """A failure of the whole store rejects no change, and the batch can be applied again."""
    accessor = Accessor(record_type, refuse_names(error, "good"))
    store = store_of(accessor)
    changes = [put(key, 10, record_type.__name__, name="good") for key in range(64)]
    with pytest.raises(type(error), match=str(error)):
        apply(store, changes, clock=clock())
    assert len(accessor.calls) == 1
    accessor.refuse = lambda write: None
    assert set(outcomes(apply(store, changes, clock=clock()))) == {APPLIED}


# -- records that wait for others -----------------------------------------------------------------


@pytest.mark.parametrize("record_type", [Item, Note])
@pytest.mark.parametrize("kind", [Accessor, Patient])
def test_waiting_record_is_held(record_type, kind):
    """A record that depends on another is held with the error, and the others are applied."""
    accessor = kind(record_type, refuse_names(DependencyError("no parent"), "waits"))
    changes = [
        put(key, 10, record_type.__name__, name="waits" if key == 7 else "good")
        for key in range(32)
    ]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert Counter(outcomes(settled)) == {APPLIED: 31, HELD: 1}
    assert settled[7].outcome is HELD
    assert isinstance(settled[7].error, DependencyError)
    assert len(accessor.data) == 31
    if kind is Patient:
        assert len(accessor.calls) == 2  # the store itself says which one waits


@pytest.mark.parametrize("kind", [Accessor, Patient])
def test_superseded_changes_wait_with_the_greatest(kind):
    """All changes of a held record are held: the greatest may yet be rejected."""
    accessor = kind(Item, refuse_names(DependencyError("no parent"), "waits"))
    changes = [put(1, 20, name="old"), put(1, 10, name="waits"), put(2, name="good")]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [HELD, HELD, APPLIED]
    assert all(isinstance(item.error, DependencyError) for item in settled[:2])
    accessor.refuse = lambda write: None
    if kind is Accessor:
        again = apply(store_of(accessor), changes[:2], clock=clock())
        assert outcomes(again) == [SUPERSEDED, APPLIED]


def test_all_changes_of_a_waiting_record_are_held():
    """Under the per-field rule none of them is applied without the others."""
    accessor = Accessor(Note, refuse_names(DependencyError("no parent"), "waits"))
    changes = [put(1, 20, "Note", name="waits"), patch(1, 10, text="c"), put(2, 5, "Note")]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [HELD, HELD, APPLIED]


def test_store_without_transactions_is_not_asked_who_waits():
    """It may have written some of the records, so each is tried again alone."""

    class Plain(Patient):
        atomic = False

        def waiting(self, rows, removals, transaction):
            pytest.fail("asked")

    accessor = Plain(Item, refuse_names(DependencyError("no parent"), "waits"))
    changes = [put(1, name="good"), put(2, name="waits")]
    settled = apply(store_of(accessor), changes, clock=clock())
    assert outcomes(settled) == [APPLIED, HELD]


def test_rejected_and_waiting_records_in_one_batch():
    """The two failures are told apart."""

    def refuse(write):
        refuse_names(RejectedError("no"), "bad")(write)
        refuse_names(DependencyError("no parent"), "waits")(write)

    for kind in (Accessor, Patient):
        accessor = kind(Item, refuse)
        kinds = {3: "bad", 9: "waits", 12: "bad"}
        changes = [put(key, 10, name=kinds.get(key, "good")) for key in range(16)]
        settled = apply(store_of(accessor), changes, clock=clock())
        assert [int(i.change.key) for i in settled if i.outcome is REJECTED] == [3, 12]
        assert [int(i.change.key) for i in settled if i.outcome is HELD] == [9]
        assert len(accessor.data) == 13


class Child(Accessor):
    """Records that depend on those of type ``Item``."""

    def depends_on(self, other):
        return other.type.name == "Item"


def test_parents_are_written_first_and_removed_last():
    """Types are applied in the order of their dependencies, deletes in the reverse order."""
    order = []
    child = Child(Note, lambda write: order.append(("Note", write.key)))
    parent = Accessor(Item, lambda write: order.append(("Item", write.key)))
    store = store_of(child, parent)
    apply(store, [put(1, 10, "Note"), put(1, 10)], clock=clock())
    assert order == [("Item", "1"), ("Note", "1")]
    removed = []
    child.remove = lambda key: removed.append("Note")
    parent.remove = lambda key: removed.append("Item")
    apply(store, [delete(1), delete(1, type="Note")], clock=clock())
    assert removed == ["Note", "Item"]


# -- completion -----------------------------------------------------------------------------------


def test_pending_record_is_completed_from_a_peer():
    """Missing fields come from the stores that hold them, and the record is then written."""
    origin = Store("origin", MemoryAccessor(Note, view=View(omit=["text"])))
    peer, late = Store("peer", MemoryAccessor(Note)), Store("late", MemoryAccessor(Note))
    whole = put(1, 20, "Note", name="a", text="held by the peer")
    apply(peer, [whole], clock=clock())
    edit = patch(1, 10, name="b").replace(known=BaseState(whole.stamp, {}, {}))
    assert outcomes(apply(late, [edit], clock=clock())) == [Outcome.PENDING]
    assert late.index.counts("Note")[Presence.PENDING] == 1
    assert complete(late, [origin, peer, late]) == {"Note": 1}
    assert late.get(Note, 1).text == "held by the peer"
    assert complete(late, [origin, peer, late]) == {}


def test_record_stays_pending_while_a_peer_cannot_be_read():
    """The peer that fails may be the one that holds the missing value."""

    held = MemoryAccessor(Note)
    peer, late = Store("peer", held), Store("late", MemoryAccessor(Note))
    whole = put(1, 20, "Note", name="a", text="t")
    apply(peer, [whole], clock=clock())
    apply(
        late, [patch(1, 10, name="b").replace(known=BaseState(whole.stamp, {}, {}))], clock=clock()
    )

    def away(key):
        raise StoreUnavailableError("away")

    held.get = away
    with pytest.raises(StoreUnavailableError):
        complete(late, [peer])
    assert late.index.counts("Note")[Presence.PENDING] == 1
