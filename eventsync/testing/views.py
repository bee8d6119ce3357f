"""The part of the conformance suite about views: renames, conversions, omissions, filters."""

from __future__ import annotations

from pathlib import Path

from eventsync.engine.completion import complete
from eventsync.engine.gate import Outcome
from eventsync.index import Presence
from eventsync.records.view import Convert, View
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Harness, Item, changed, put

__all__ = ["ViewContract"]

_PARTIAL = View(only=("id", "name", "active"))
_ACTIVE = View(omit=("city",), where={"active": True})


def _loud(text: str) -> str:
    return f"{text.upper()}!"


def _quiet(text: str) -> str:
    return text[:-1].lower()


class ViewContract(Harness):
    """Tests of views that rename, omit or convert fields, add constants, or filter records."""

    def test_renamed_and_constant(self, tmp_path: Path) -> None:
        """Records are the same if the store uses other field names and adds a constant."""
        view = View(rename={"id": "number", "name": "title"}, constant={"origin": "crm"})
        store = self.store(tmp_path, Item, view=view)
        item = Item(id=1, name="Lamp", amount=2)
        data = store.record_to_data(item)
        assert store.data_to_record(Item, data).raw()["name"] == "Lamp"
        store.add([item, Item(id=2, name="Chair", note="red")])
        chair = store[Item, 2]
        chair.amount = 9
        store.update(chair)
        other = self.store(tmp_path, Item, view=view)
        assert self.rows(other, Item) == {
            "1": {"id": 1, "name": "Lamp", "amount": 2, "note": None},
            "2": {"id": 2, "name": "Chair", "amount": 9, "note": "red"},
        }
        assert [record.id for record in other.find(Item, {"name": "Chair"})] == [2]
        other.remove(other[Item, 1])
        assert store.get(Item, 1) is None
        self.assert_no_edits(store)

    def test_converted(self, tmp_path: Path) -> None:
        """A conversion of the view is applied when a field is written and when it is read."""
        view = View(convert={"name": Convert(_loud, _quiet)})
        store = self.store(tmp_path, Item, view=view)
        store.add(Item(id=1, name="lamp"))
        # The conversion does not give back this name unchanged. That does not count as an edit.
        self.send(store, [put(Item(id=2, name="Chair"), self.version(1))])
        assert store[Item, 1].name == "lamp"
        assert [record.id for record in store.find(Item, {"name": "lamp"})] == [1]
        assert store[Item, 2].name == "chair"
        self.assert_no_edits(store)
        plain = self.store(tmp_path, Item)
        assert plain[Item, 1].name == "LAMP!"

    def test_partial_update_leaves_the_rest(self, tmp_path: Path) -> None:
        """Fields that a view omits are neither read nor written."""
        whole = self.store(tmp_path, Contact)
        whole.add(Contact(id=1, name="Ada", email="a@b", city="Rome"))
        partial = self.store(tmp_path, Contact, view=_PARTIAL)
        ada = partial[Contact, 1]
        assert set(ada.raw()) == {"id", "name", "active"}
        ada.name = "Ada L."
        partial.update(ada)
        self.send(
            partial, [changed(Contact, "1", "patch", self.version(101_000), {"active": False})]
        )
        assert self.rows(whole, Contact)["1"] == {
            "id": 1,
            "name": "Ada L.",
            "email": "a@b",
            "city": "Rome",
            "score": 0,
            "active": False,
        }

    def test_absent_is_not_nil(self, tmp_path: Path) -> None:
        """A store with a partial view publishes no field that it does not hold."""
        bus = FakeBus()
        store = self.store(tmp_path, Contact, view=_PARTIAL, bus=bus)
        store.add(Contact(id=1, name="Ada", email="a@b"))
        store.update(Contact(id=1, name="Ada L.", email="c@d"))
        for change in bus.changes():
            known = change.known.values if change.known else {}
            assert not {"email", "city", "score"} & {*(change.data or {}), *known}

    def test_filter_per_record(self, tmp_path: Path) -> None:
        """A put after which the record does not match the filter removes the record.

        A later put that matches adds the record again.
        """
        store = self.store(tmp_path, Item, view=View(where={"amount": {"$gt": 0}}))
        lamp = Item(id=1, name="Lamp", amount=1)
        empty = Item(id=1, name="Lamp", amount=0)
        self.send(store, [put(lamp, self.version(1))])
        assert self.rows(store, Item) == {"1": lamp.raw()}
        self.send(store, [put(empty, self.version(2))])
        assert self.rows(store, Item) == {}
        assert self.entries(store, Item)["1"].presence is Presence.FILTERED_OUT
        (late,) = self.send(store, [put(lamp, self.version(1))])
        assert late.outcome is Outcome.STALE
        self.assert_no_edits(store)
        self.send(store, [put(lamp, self.version(3))])
        assert self.rows(store, Item) == {"1": lamp.raw()}

    def test_filter_per_field(self, tmp_path: Path) -> None:
        """A patch after which the record does not match the filter removes the record.

        A later patch after which it matches adds the record again, with all fields.
        """
        bus = FakeBus()
        (tmp_path / "origin").mkdir()
        (tmp_path / "filtered").mkdir()
        origin = self.store(tmp_path / "origin", Contact, bus=bus, name="origin")
        store = self.store(tmp_path / "filtered", Contact, view=_ACTIVE)
        origin.add(Contact(id=1, name="Ada", email="a@b"))
        ada = origin[Contact, 1]
        for active in (False, True):
            ada.active = active
            origin.update(ada)
        created, left, returned = bus.changes()
        whole = {"id": 1, "name": "Ada", "email": "a@b", "score": 0, "active": True}
        self.send(store, [created])
        assert self.rows(store, Contact) == {"1": whole}
        self.send(store, [left])
        assert self.rows(store, Contact) == {}
        entry = self.entries(store, Contact)["1"]
        assert entry.presence is Presence.FILTERED_OUT
        assert entry.version == left.version
        assert not entry.stamp.deleted
        self.assert_no_edits(store)
        self.send(store, [returned])
        assert self.rows(store, Contact) == {"1": whole}
        self.send(store, [created, left])
        assert self.rows(store, Contact) == {"1": whole}

    def test_local_edit_leaves_the_filter(self, tmp_path: Path) -> None:
        """An edit after which a record does not match the filter is not published as a delete."""
        bus = FakeBus()
        store = self.store(tmp_path, Contact, view=_ACTIVE, bus=bus)
        store.add(Contact(id=1, name="Ada"))
        ada = store[Contact, 1]
        ada.active = False
        store.update(ada)
        assert self.rows(store, Contact) == {}
        assert [change.op for change in bus.changes()] == ["put", "patch"]
        self.assert_no_edits(store)

    def test_pending_until_whole(self, tmp_path: Path) -> None:
        """A record that is known only in part is pending until another store completes it."""
        for name in ("origin", "store"):
            (tmp_path / name).mkdir()
        bus = FakeBus()
        origin = self.store(tmp_path / "origin", Contact, name="origin", bus=bus)
        origin.add(Contact(id=1, name="Ada", email="a@b", score=3))
        store = self.store(tmp_path / "store", Contact, view=_ACTIVE)
        patch = changed(Contact, "1", "patch", self.version(101_000), {"score": 9})
        (settled,) = self.send(store, [patch])
        assert settled.outcome is Outcome.PENDING
        assert self.rows(store, Contact) == {}
        assert self.entries(store, Contact)["1"].presence is Presence.PENDING
        self.assert_no_edits(store)
        self.send(origin, [patch])
        assert complete(store, [origin]) == {"Contact": 1}
        whole = {"id": 1, "name": "Ada", "email": "a@b", "score": 9, "active": True}
        assert self.rows(store, Contact) == {"1": whole}
        self.send(store, bus.changes())
        assert self.rows(store, Contact) == {"1": whole}
