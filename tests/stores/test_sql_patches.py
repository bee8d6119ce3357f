"""The fast path for patches in an SQL store has the same result as the slow path."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome, decide, decide_patches
from eventsync.engine.store import Store
from eventsync.index import Entry
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.harness import decoded

NOW = 1_700_000_000.0


class Item(Record, rule="field"):
    """Of few values, so that histories meet."""

    id: int = Field(key=True)
    name: str = Field(length=30)
    amount: int = 0
    note: str | None = None


FIELDS = ("name", "amount", "note")
ODD = [{"amount": "7"}, {"name": None}, {"id": 1}, {"unknown": 1}]


def held_at(version, odd=0):
    """What every field holds that has that version, if nobody forged one."""
    number = version.millis % 1000 + odd
    return {"name": f"n{number}", "amount": number, "note": None if number % 2 else f"{number}"}


@st.composite
def histories(draw, odd):
    """Batches of changes of a few records: either some collide, or patches say what was known.

    ``odd``: what spoils a patch.
    """
    forged = draw(st.booleans())
    states: dict[str, list[State]] = {}
    batches, time = [], int(NOW * 1000)
    for size in draw(st.lists(st.integers(1, 4), min_size=2, max_size=6)):
        batch = []
        for _ in range(size):
            # Mostly later than what came before, now and then at the same time or earlier.
            time += draw(st.sampled_from([1, 1, 1, 0, -1]))
            version = Version.of(time)
            key, sound, known = draw(st.sampled_from("01")), True, None
            data = held_at(version, draw(st.integers(0, 1)) if forged else 0)
            op = draw(st.sampled_from([PATCH] * 6 + [PUT, DELETE])) if key in states else PUT
            if op == PUT:
                data = {"id": int(key)} | data
                if forged and draw(st.booleans()):
                    del data["amount"]
            elif op == PATCH:
                names = draw(st.sets(st.sampled_from(FIELDS), min_size=draw(st.integers(0, 1))))
                data = {name: data[name] for name in sorted(names)}
                spoilt = draw(odd)
                sound = not spoilt
                data |= spoilt
                seen = State()
                for state in draw(st.lists(st.sampled_from(states.get(key) or [seen]), max_size=3)):
                    seen = join(seen, state)
                newest = max([seen.stamp[:16], *seen.versions.values()])
                # Nothing in a patch is later than the patch itself.
                if seen.live and not forged and newest <= version:
                    beside = {n: v for n, v in seen.values.items() if n in FIELDS and n not in data}
                    versions = {n: v for n, v in seen.versions.items() if n in beside}
                    known = BaseState(seen.stamp, beside, versions)
            change = Change(
                type="Item",
                key=key,
                op=op,
                version=version,
                data=None if op == DELETE else data,
                known=known,
            )
            if sound:
                states.setdefault(key, []).append(State.of(change))
            # One that is lost may yet be known to the origin of a later one.
            if draw(st.sampled_from([True, True, True, False])):
                batch.append(change)
        batches.append(batch)
    return batches


def change(op, number, data, known=None):
    """A change of one record."""
    version = Version.of(int(NOW * 1000) + number)
    return Change(type="Item", key="0", op=op, version=version, data=data, known=known)


PUT_ONE = change(PUT, 1, {"id": 0} | held_at(Version.of(1)))
# The origin of the last patch knew of one that was lost.
LOST = BaseState(PUT_ONE.stamp, {"name": "n2"}, {"name": Version.of(int(NOW * 1000) + 2)})
HEALED = [[PUT_ONE], [change(PATCH, 3, {"amount": 3}, LOST)]]


def held(store):
    """All that a store holds: entries and records."""
    return (
        store.index.scan("Item"),
        sorted((record.key, record.raw()) for record in store.find(Item)),
    )


@settings(max_examples=200)
@given(histories(odd=st.just({})))
@example(HEALED)
def test_it_decides_nothing_otherwise(batches):
    """Where the fast path decides, its verdicts, entry and row equal those of ``decide``."""
    view = View().bind(Item.__record__)
    entries: dict[str, Entry] = {}
    rows: dict[str, dict] = {}
    for batch in batches:
        for key in sorted({change.key for change in batch}):
            changes = [change for change in batch if change.key == key]
            entry, row = entries.get(key), rows.get(key)
            short = decide_patches(entry, changes, view)
            decision = decide(entry, row, changes, view, key)
            written = {**(row or {}), **(decision.write or {})}
            if short is not None:
                assert short.verdicts == decision.verdicts
                assert short.entry == decision.entry
                assert {**row, **short.write} == written
            if decision.entry is not None:
                entries[key] = decision.entry
            if decision.write is not None:
                rows[key] = written
            elif decision.remove:
                del rows[key]


@settings(max_examples=25)
@given(histories(odd=st.sampled_from([{}] * 12 + ODD)))
def test_both_ways_lead_to_the_same_place(batches):
    """Outcomes, collisions, entries with echoes, and rows equal those of the slow path."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for patchable in (True, False):
            url = f"sqlite:///{Path(folder) / str(patchable)}.db"
            accessor = SqlAccessor(Item, url, create=True)
            clock = Clock(now=lambda: NOW)
            with Store("store", accessor, clock=clock) as store:
                assert accessor.patchable
                vars(accessor)["patchable"] = patchable
                told = [
                    [(s.outcome, s.collision, s.error is None) for s in settled]
                    for batch in batches
                    for settled in [apply(store, decoded(batch), clock=clock)]
                ]
                found.append((told, held(store)))
        assert found[0] == found[1]


def test_what_others_made_of_a_row_is_not_undone(tmp_path):
    """A foreign write to a field that a patch does not name is still captured."""
    accessor = SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    clock = Clock(now=lambda: NOW)
    with Store("store", accessor, clock=clock) as store:
        apply(store, [PUT_ONE], clock=clock)
        with accessor.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE Item SET name = 'theirs', note = 'theirs'")
        beside = BaseState(PUT_ONE.stamp, {"name": "n1"}, {})
        [settled] = apply(store, [change(PATCH, 2, {"note": "ours"}, beside)], clock=clock)
        assert settled.outcome is Outcome.APPLIED
        [found] = store.find(Item)
        assert (found.name, found.note) == ("theirs", "ours")
        [captured] = store.replicas["Item"].capture(["0"], None)
        assert captured.data == {"name": "theirs"}


def test_a_patch_of_a_row_that_others_removed_is_kept(tmp_path):
    """A patch of an unknown record waits for its other fields; other patches are written."""
    accessor = SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    clock = Clock(now=lambda: NOW)
    with Store("store", accessor, clock=clock) as store:
        keys = [str(number) for number in range(3)]
        puts = [PUT_ONE.replace(key=key, data={"id": int(key), "name": "a"}) for key in keys]
        apply(store, puts, clock=clock)
        with accessor.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM Item WHERE id = 1")
        patches = [change(PATCH, 2, {"amount": 5}).replace(key=key) for key in keys]
        outcomes = [settled.outcome for settled in apply(store, patches, clock=clock)]
        assert outcomes == [Outcome.APPLIED, Outcome.PENDING, Outcome.APPLIED]
        assert [(record.key, record.amount) for record in store.find(Item)] == [("0", 5), ("2", 5)]


class Watched(SqlAccessor):
    """Means to see all that is written."""

    seen: ClassVar[list] = []

    def write_rows(self, writes, removals, transaction):
        self.seen.extend((write.key, dict(write.values)) for write in writes)
        super().write_rows(writes, removals, transaction)


def test_who_overrides_the_writing_sees_every_patch(tmp_path):
    """A subclass that overrides ``write_rows`` sees every patch."""
    clock = Clock(now=lambda: NOW)
    accessor = Watched(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    with Store("store", accessor, clock=clock) as store:
        apply(store, [PUT_ONE], clock=clock)
        apply(store, [change(PATCH, 2, {"note": "ours"})], clock=clock)
    assert accessor.seen[-1] == ("0", {"note": "ours"})
