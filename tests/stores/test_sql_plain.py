"""The fast path for puts and deletes in an SQL store has the same result as the slow path."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strategies

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PUT, Stamp
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.index import Entry, MemoryIndex, Presence
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.harness import decoded

NOW = 1_700_000_000.0


class Item(Record):
    """Of few values, so that histories meet."""

    id: int = Field(key=True)
    name: str
    amount: int = 0


@st.composite
def changes(draw):
    """A put or delete of one of a few records, now and then one that is not plain or is refused."""
    version = Version.of(int(NOW * 1000) + draw(st.integers(0, 3)), 0, draw(st.integers(0, 1)))
    key = draw(st.integers(0, 3))
    if draw(st.integers(0, 3)) == 0:
        data = None
    else:
        data = {"id": key, "name": draw(st.sampled_from("ab")), "amount": draw(st.integers(0, 1))}
        match draw(st.integers(0, 7)):
            case 0:
                del data["amount"]
            case 1:
                data["amount"] = "1"
            case 2:
                data["name"] = None
    return Change(
        type="Item", key=str(key), op=DELETE if data is None else PUT, version=version, data=data
    )


def held(store):
    """All that a store holds: entries and records."""
    return (
        store.index.scan("Item"),
        sorted((record.key, record.raw()) for record in store.find(Item)),
    )


@settings(max_examples=60)
@given(st.lists(st.lists(changes(), max_size=6), max_size=4))
def test_both_ways_lead_to_the_same_place(batches):
    """Outcomes, collisions, entries and rows equal those of the slow path."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for plain in (True, False):
            accessor = SqlAccessor(Item, f"sqlite:///{Path(folder) / str(plain)}.db", create=True)
            clock = Clock(now=lambda: NOW)
            with Store("store", accessor, clock=clock) as store:
                assert accessor.plain
                vars(accessor)["plain"] = plain
                told = [
                    [(s.outcome, s.collision, s.error is None) for s in settled]
                    for batch in batches
                    for settled in [apply(store, decoded(batch), clock=clock)]
                ]
                found.append((told, held(store)))
        assert found[0] == found[1]


@pytest.fixture(params=["sql", "memory"])
def index(request, tmp_path):
    """An index that claims in one step, and one that reads before it writes."""
    if request.param == "memory":
        yield MemoryIndex()
        return
    accessor = SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    with Store("store", accessor) as store:
        yield store.index


def stamp(millis, op, digest=b"\x00"):
    """A stamp with a digest of choice."""
    change = strategies.change(op, Version.of(millis), None if op == DELETE else {})
    return Stamp(change.stamp[:17] + digest * 32)


def test_a_claim_takes_what_is_newer(index):
    """The upsert leaves an older, an equal, and another change of the same version alone."""
    with index.transaction() as transaction:
        entry = Entry(stamp(5, PUT), Presence.PENDING, {"a": Version.of(6)}, {"a": 1}, False, b"x")
        transaction.write("Item", dict.fromkeys("abcd", entry))
        keys, stamps = zip(
            ("a", stamp(4, PUT)),
            ("b", stamp(5, PUT)),
            ("c", stamp(5, DELETE, b"\xff")),
            ("d", stamp(6, PUT)),
            ("e", stamp(1, DELETE)),
            strict=True,
        )
        assert set(transaction.claim("Item", keys, stamps)) == {"d", "e"}
        assert transaction.read("Item", keys) == {
            **dict.fromkeys("abc", entry),
            "d": Entry(stamps[3], Presence.PRESENT),
            "e": Entry(stamps[4], Presence.DELETED),
        }


def test_a_claim_without_the_data_is_undone(tmp_path):
    """When a row is rejected, no version of it is stored."""
    accessor = SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    clock = Clock()
    with Store("store", accessor, clock=clock) as store:
        some = [
            Change(
                type="Item",
                key=str(number),
                op=PUT,
                version=clock.tick(),
                data={"id": number, "name": "a", "amount": 2**70 if number == 1 else 0},
            )
            for number in range(3)
        ]
        settled = apply(store, decoded(some), clock=clock)
        assert [s.outcome for s in settled] == [
            Outcome.APPLIED,
            Outcome.REJECTED,
            Outcome.APPLIED,
        ]
        assert [key for key, _ in store.index.scan("Item")] == ["0", "2"]
