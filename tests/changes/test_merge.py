"""The merge: its result does not depend on order, duplication or grouping."""

from __future__ import annotations

import copy
import os
import random
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st
from support import strategies

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.changes.event_id import new_id
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, PUT


def fold(changes):
    """Join the states of all changes, one after another."""
    state = State()
    for change in changes:
        state = join(state, State.of(change))
        if change.known is not None:
            state = join(state, State.of_known(change.known))
    return state


states = strategies.per_field.map(fold)


@given(states, states)
def test_join_is_commutative(a, b):
    """The order of two states does not matter."""
    assert join(a, b) == join(b, a)


@given(states, states, states)
def test_join_is_associative(a, b, c):
    """The grouping of three states does not matter."""
    assert join(a, join(b, c)) == join(join(a, b), c)


@given(states)
def test_join_is_idempotent(a):
    """A state joined with itself is the same state."""
    assert join(a, a) == a


@given(states, states)
def test_join_alters_neither(a, b):
    """Both states stay as they were, and the result shares no dict with them."""
    before = copy.deepcopy((a, b))
    joined = join(a, b)
    joined.versions["new"] = joined.values["new"] = 0
    assert (a, b) == before


@given(states, states)
def test_nothing_falls(a, b):
    """No version falls in a join, unless it can never be visible again."""
    joined = join(a, b)
    for side in (a, b):
        assert joined.stamp >= side.stamp
        for name in side.versions:
            assert joined.version_of(name) >= side.versions[name]


@given(strategies.per_field, st.randoms(use_true_random=False))
def test_any_order_converges(changes, rng):
    """Shuffled and duplicated changes give the same state."""
    again = [*changes, *(rng.choice(changes) for _ in changes)]
    rng.shuffle(again)
    assert fold(again) == fold(changes)


@given(strategies.per_record)
def test_per_record_rule_is_the_greatest_stamp(changes):
    """Without patches the winner is the greatest (version, kind, digest), and it wins whole."""
    state = fold(changes)
    if not changes:
        assert not state.stamp
        return
    best = max(changes, key=lambda c: (c.version, {PUT: 1, DELETE: 2}[c.op], c.digest))
    assert state.stamp == best.stamp
    assert state.live == (best.op == PUT)
    assert state.visible() == dict(best.data or {})


@given(strategies.per_field)
def test_per_field_rule_is_registers(changes):
    """The visible fields are those that registers for put, delete and each field give.

    By the specification: C last put, D last delete, V_f version of a field; live iff C > D; a
    field is visible iff the record is live and V_f >= C. Versions are made distinct, since the
    normal form differs from plain registers where a patch carries the version of the put.
    """
    distinct = [
        Change(
            type="T",
            key="k",
            op=change.op,
            version=Version.of(change.version.millis, change.version.counter, number),
            data=change.data,
        )
        for number, change in enumerate(changes, start=2)
    ]
    put = max((c.version for c in distinct if c.op == PUT), default=b"")
    deleted = max((c.version for c in distinct if c.op == DELETE), default=b"")
    registers: dict[str, tuple[bytes, object]] = {}
    for change in distinct:
        for name, held in (change.data or {}).items():
            if change.version > registers.get(name, (b"",))[0]:
                registers[name] = (change.version, held)
    live = put > deleted
    visible = {n: held for n, (version, held) in registers.items() if live and version >= put}
    state = fold(distinct)
    assert state.live == live
    assert state.visible() == visible


@given(strategies.per_field, strategies.versions)
def test_no_resurrection(changes, version):
    """After a delete, nothing at or below its version brings the record back, in any order."""
    older = [c for c in changes if c.version <= version and c.known is None]
    delete = strategies.change(DELETE, version, None)
    rng = random.Random(len(older))
    for _ in range(3):
        mixed = [*older, delete]
        rng.shuffle(mixed)
        assert not fold(mixed).live


@given(strategies.per_field)
def test_patch_never_resurrects(changes):
    """Patches alone never create a record and never bring one back."""
    for state in (fold([]), fold([c for c in changes if c.op == DELETE])):
        for change in changes:
            if change.op == PATCH:
                state = join(state, State.of(change))
        assert not state.live


def test_delete_wins_a_tie():
    """A delete wins over a put of the same version, in any order."""
    version = Version.of(1)
    put = strategies.change(PUT, version, {"a": 1})
    delete = strategies.change(DELETE, version, None)
    assert not fold([put, delete]).live
    assert not fold([delete, put]).live


def test_recreation_after_a_delete_lives():
    """A put after a delete creates the record again."""
    delete = strategies.change(DELETE, Version.of(1), None)
    put = strategies.change(PUT, Version.of(2), {"a": 1})
    assert fold([put, delete]).visible() == {"a": 1}


def test_ids_are_of_one_event_each():
    """Ids are unique across threads and forks."""
    ids = [new_id() for _ in range(1000)]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"".join(new_id() for _ in range(50)))
        os._exit(0)
    ids += [new_id() for _ in range(1000)]
    os.waitpid(child, 0)
    raw = os.read(reader, 50 * 16)
    os.close(reader)
    os.close(writer)
    with ThreadPoolExecutor(4) as threads:
        ids += threads.map(lambda _: new_id(), range(1000))
    ids += [raw[at : at + 16] for at in range(0, len(raw), 16)]
    # Their random parts: the time may tell them apart by chance.
    assert len({one[6:] for one in ids}) == len(ids) == 3050
    assert all(one[6] >> 4 == 7 and one[8] >> 6 == 2 for one in ids)
