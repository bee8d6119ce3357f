"""The part of the conformance suite about convergence: all stores end with the same records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from eventsync.changes.change import Change
from eventsync.engine.apply import Limits, apply
from eventsync.engine.completion import complete
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.index import Presence
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Harness, Item, changed, put
from eventsync.testing.model import expected

__all__ = ["ConvergenceContract"]

_RULES = pytest.mark.parametrize("record_type", [Item, Contact], ids=["per record", "per field"])
_VIEWS = {
    "whole": View(),
    "part": View(only=("id", "name", "city", "active")),
    "filtered": View(omit=("city",), where={"active": True}),
}


class ConvergenceContract(Harness):
    """Tests that the order and the repetition of changes do not alter the resulting records."""

    @_RULES
    def test_convergence(self, tmp_path: Path, record_type: type[Record]) -> None:
        """Changes in random order, some repeated, give the records that the model computes.

        No entry gets a smaller version in between.
        """

        def check(rng: random.Random) -> None:
            history = self._history(rng, record_type)
            store = self.store(self.fresh(tmp_path), record_type)
            wanted = expected(history, store.accessor(record_type).view)
            sent = [*history, *rng.sample(history, k=len(history) // 2)]
            rng.shuffle(sent)
            while sent:
                before = self.entries(store, record_type)
                size = rng.randint(1, 4)
                self.send(store, sent[:size])
                del sent[:size]
                after = self.entries(store, record_type)
                assert all(after[key].version >= entry.version for key, entry in before.items())
            assert self.rows(store, record_type) == wanted
            entries = self.entries(store, record_type)
            here = {key for key, entry in entries.items() if entry.presence is Presence.PRESENT}
            assert here == set(wanted)
            again = self.send(store, history)
            assert not [settled for settled in again if settled.outcome is Outcome.APPLIED]
            assert self.rows(store, record_type) == wanted
            assert self.entries(store, record_type) == entries
            self.assert_no_edits(store)
            self.release()

        self.try_histories(check)

    def test_unlike_stores_converge(self, tmp_path: Path) -> None:
        """Stores with different views converge after random edits in all of them."""

        def check(rng: random.Random) -> None:
            folder = self.fresh(tmp_path)
            stores, buses = [], []
            for name, view in _VIEWS.items():
                (folder / name).mkdir()
                buses.append(FakeBus())
                stores.append(
                    self.store(folder / name, Contact, view=view, name=name, bus=buses[-1])
                )
            for _ in range(rng.randint(4, 10)):
                self.time.advance(0.01)
                self._edit(rng, rng.choice(stores))
                if rng.random() < 0.5:
                    published = [change for bus in buses for change in bus.changes()]
                    some = rng.sample(published, k=rng.randint(0, len(published)))
                    self.scatter(rng.choice(stores), some, rng)
            published = [change for bus in buses for change in bus.changes()]
            for store in stores:
                self.scatter(store, published, rng)
            for store in stores:
                complete(store, stores)
            for store in stores:
                wanted = expected(published, store.accessor(Contact).view)
                assert self.rows(store, Contact) == wanted, store.name
                self.assert_no_edits(store)
            self.release()

        self.try_histories(check)

    @_RULES
    def test_no_resurrection(self, tmp_path: Path, record_type: type[Record]) -> None:
        """After a delete, only a put with a later version makes the record exist again.

        Older puts, and patches of any version, do not.
        """
        store = self.store(tmp_path, record_type)
        record = record_type(id=1, name="Ada")
        delete = changed(record_type, "1", "delete", self.version(5), None)
        self.send(store, [put(record, self.version(1)), delete])
        assert self.rows(store, record_type) == {}
        late = [put(record, self.version(2)), put(record, self.version(1)), delete]
        if record_type is Contact:
            late.append(changed(record_type, "1", "patch", self.version(9), {"score": 1}))
        outcomes = [settled.outcome for settled in self.send(store, late)]
        assert outcomes[:3] != [Outcome.APPLIED] * 3
        assert self.rows(store, record_type) == {}
        assert self.entries(store, record_type)["1"].stamp == delete.stamp
        self.send(store, [put(record, self.version(6))])
        assert set(self.rows(store, record_type)) == {"1"}

    def test_tombstones(self, tmp_path: Path) -> None:
        """A tombstone stays until ``collect`` removes it. Then changes of that age are rejected."""
        store = self.store(tmp_path, Item)
        self.send(store, [changed(Item, "1", "delete", self.version(5), None)])
        assert self.entries(store, Item)["1"].presence is Presence.DELETED
        deleted = self.version(5).millis / 1000
        assert store.collect(deleted - 1) == 0
        assert store.collect(deleted + 1) == 1
        assert self.entries(store, Item) == {}
        limits = Limits(retention=3600)
        old = put(Item(id=1, name="Lamp"), self.version(1))
        self.time.advance(3600)
        (settled,) = apply(store, [old], clock=store.clock, limits=limits)
        assert settled.outcome is Outcome.REJECTED
        assert settled.error is not None
        assert settled.error.reason == "too-old"
        assert self.rows(store, Item) == {}

    @_RULES
    def test_one_version_twice(self, tmp_path: Path, record_type: type[Record]) -> None:
        """Two different changes with the same version give the same record in either order.

        Only a bug or a forged change can have the version of another change.
        """
        version = self.version(1)
        one = put(record_type(id=1, name="One"), version)
        other = put(record_type(id=1, name="Other"), version)
        delete = changed(record_type, "1", "delete", version, None)
        for pair in ([one, other], [one, delete]):
            held = []
            for order in (pair, pair[::-1]):
                store = self.store(self.fresh(tmp_path), record_type)
                collisions = [self.send(store, [change])[0].collision for change in order]
                assert collisions == [False, True]
                held.append(self.rows(store, record_type))
            assert held[0] == held[1]

    def test_edits_beat_what_they_saw(self, tmp_path: Path) -> None:
        """An edit gets a greater version than the record has, even if the local clock is slow."""
        bus = FakeBus()
        store = self.store(tmp_path, Contact, bus=bus)
        ahead = self.version(104_000)  # four seconds in the future
        self.send(store, [put(Contact(id=1, name="Ada"), ahead)])
        ada = store[Contact, 1]
        ada.name = "Ada L."
        store.update(ada)
        store.remove(ada)
        versions = [change.version for change in bus.changes()]
        assert [ahead, *versions] == sorted([ahead, *versions])

    def test_future_is_held(self, tmp_path: Path) -> None:
        """A change that is too far in the future is held, and applied when its time has come.

        While the change is held, it does not advance the clock.
        """
        store = self.store(tmp_path, Item)
        future = put(Item(id=1, name="Lamp"), self.version(110_000))
        (settled,) = self.send(store, [future])
        assert settled.outcome is Outcome.HELD
        assert self.rows(store, Item) == {}
        assert self.entries(store, Item) == {}
        assert store.clock.tick() < future.version
        self.time.advance(6)
        (settled,) = self.send(store, [future])
        assert settled.outcome is Outcome.APPLIED
        assert set(self.rows(store, Item)) == {"1"}

    def test_refusal_changes_nothing(self, tmp_path: Path) -> None:
        """A rejected change does not alter the data, the versions or the clock.

        Other changes in the same batch are applied.
        """
        store = self.store(tmp_path, Item, Contact)
        self.send(store, [put(Item(id=1, name="Lamp"), self.version(1))])
        soon = self.version(103_000)
        refused = [
            changed(Item, "1", "patch", soon, {"name": "Patched"}),
            changed(Item, "1", "put", soon, {"id": 2, "name": "Other key"}),
            changed(Item, "1", "put", soon, {"id": 1, "name": "Lamp", "amount": "many"}),
            changed(Item, "no number", "put", soon, {"name": "Lamp"}),
            changed(Item, "2", "put", soon, {"id": 2, "amount": 1}),
            changed(Item, "1", "delete", self.version(-20 * 86_400_000), None),
            Change(type="Unknown", key="1", op="delete", version=soon, data=None),
            Change(type="Item", key="1", op="delete", version=soon, data=None, hops=99),
            changed(Contact, "1", "patch", soon, {"score": "many"}),
        ]
        before = self._all(store)
        for change in refused:
            (settled,) = self.send(store, [change])
            assert settled.outcome is Outcome.REJECTED, change
            assert settled.error is not None
            assert settled.error.reason
            assert not settled.error.retryable
        assert self._all(store) == before
        assert store.clock.tick() < soon
        good = put(Item(id=3, name="Good"), self.version(3))
        outcomes = [settled.outcome for settled in self.send(store, [*refused, good])]
        assert outcomes == [Outcome.REJECTED] * len(refused) + [Outcome.APPLIED]
        assert self.rows(store, Item).keys() == {"1", "3"}

    def test_copied_state(self, tmp_path: Path) -> None:
        """An empty store that applies the result of ``states`` gets the records of the source."""

        def check(rng: random.Random) -> None:
            for record_type in (Item, Contact):
                source = self.store(self.fresh(tmp_path), record_type)
                self.scatter(source, self._history(rng, record_type), rng)
                target = self.store(self.fresh(tmp_path), record_type)
                keys = list(self.entries(source, record_type))
                self.send(target, source.replicas.of(record_type).states(keys))
                assert self.rows(target, record_type) == self.rows(source, record_type)
                self.assert_no_edits(target)
            self.release()

        self.try_histories(check)

    # -- histories ---------------------------------------------------------------------------------

    def _history(self, rng: random.Random, record_type: type[Record]) -> list[Change]:
        """Return random changes of up to three records. No two changes have the same version."""
        steps = rng.sample(range(1000), k=rng.randint(2, 10))
        history = [self._change(rng, record_type, step) for step in steps]
        if record_type is Contact:
            # A patch without a put makes no record. So add a put to each record that has none, with
            # a version before or after all others.
            keys = {change.key for change in history}
            for key in sorted(keys - {c.key for c in history if c.op == "put"}):
                step = 1000 + int(key) if rng.random() < 0.5 else -1 - int(key)
                history.append(put(Contact(id=int(key)), self.version(step)))
        return history

    def _change(self, rng: random.Random, record_type: type[Record], step: int) -> Change:
        key = str(rng.randint(1, 3))
        version = self.version(step)
        roll = rng.random()
        if roll < 0.2:
            return changed(record_type, key, "delete", version, None)
        data: dict[str, Any] = {"name": rng.choice(["Ada", "Bob", "Zoë"])}
        if record_type is Item:
            data |= {"amount": rng.randrange(9)} if rng.random() < 0.7 else {}
            data |= {"note": rng.choice([None, "", "x"])} if rng.random() < 0.7 else {}
        else:
            data |= {"email": rng.choice([None, "", "a@b"]), "score": rng.randrange(9)}
            data |= {"city": rng.choice(["Rome", "Oslo"])} if rng.random() < 0.5 else {}
            data |= {"active": rng.random() < 0.5}
            if roll < 0.6:
                names = rng.sample(sorted(data), k=rng.randint(1, 3))
                return changed(record_type, key, "patch", version, {n: data[n] for n in names})
        return changed(record_type, key, "put", version, {"id": int(key), **data})

    def _edit(self, rng: random.Random, store: Store) -> None:
        """Edit a random record, through the store or directly in its data.

        A direct edit is what another program would do.
        """
        accessor = store.accessor(Contact)
        key = rng.randint(1, 2)
        directly = rng.random() < 0.25
        held = accessor.get(str(key)) if directly else store.get(Contact, key)
        if held is None:
            values = {"id": key, "name": "New", "email": f"{key}@{store.name}", "city": "Bern"}
            record = accessor.make({n: v for n, v in values.items() if n in accessor.view.names})
            if directly:
                defaults = {"score": 1, "active": True}
                for name, value in defaults.items():
                    if name in accessor.view.names:
                        record[name] = value
                accessor.add(record)
            else:
                store.add(record)
        elif rng.random() < 0.15:
            accessor.remove(str(key)) if directly else store.remove(held)
        else:
            values = {
                "name": rng.choice(["Ada", "Bob"]),
                "email": rng.choice([None, "x@y"]),
                "city": rng.choice(["Rome", "Oslo"]),
                "score": rng.randrange(5),
                "active": rng.random() < 0.6,
            }
            names = [name for name in values if name in accessor.view.names]
            for name in rng.sample(names, k=rng.randint(1, 2)):
                held[name] = values[name]
            if not directly:
                store.update(held)
            elif held.is_dirty:
                accessor.update(held)
        if directly:
            self.captured(store)

    def _all(self, store: Store) -> list[Any]:
        """Return the records, index entries and outbox of the store, for each record type."""
        return [
            (
                sorted((r.key, r.raw()) for r in accessor.find(Query.parse(accessor.type))),
                store.index.scan(name),
                store.index.outgoing(),
            )
            for name, accessor in store.accessors.items()
        ]
