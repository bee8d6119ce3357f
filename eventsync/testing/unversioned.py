"""The part of the conformance suite about values that others wrote and nobody has versioned yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.engine.gate import Outcome
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Harness, Item, changed, put

__all__ = ["UnversionedContract"]

_RULES = pytest.mark.parametrize("record_type", [Item, Contact], ids=["per record", "per field"])


class UnversionedContract(Harness):
    """Tests that no default and no absence replaces a value that nobody has versioned."""

    def test_base_state_beside_a_foreign_edit(self, tmp_path: Path) -> None:
        """A patch writes no field back that its origin only knows, and that somebody edited."""
        store = self.store(tmp_path, Contact)
        ada = put(Contact(id=1, name="Ada", score=1, email="a@b"), self.version(1))
        self.send(store, [ada])
        self._edit_outside(tmp_path, Contact, score=2, email="c@d")
        self.send(store, [_patch(ada, self.version(2), {"name": "Ada L."})])
        self.send(store, [_patch(ada, self.version(3), {"email": "e@f"})])
        assert self.rows(store, Contact)["1"] == {
            "id": 1,
            "name": "Ada L.",
            "email": "e@f",
            "city": "Paris",
            "score": 2,
            "active": True,
        }
        (captured,) = self.captured(store)
        assert captured.data == {"score": 2}
        self.assert_no_edits(store)

    @_RULES
    def test_value_of_a_new_field(self, tmp_path: Path, record_type: type[Record]) -> None:
        """A value that others wrote into a field before the view had it is captured and kept."""
        bus = FakeBus()
        name, before = self._written_before(tmp_path, record_type)
        self._edit_outside(tmp_path, record_type, **{name: "own"})
        store = self.store(tmp_path, record_type, bus=bus)
        if record_type is Contact:
            self.send(store, [_patch(before, self.version(5), {"name": "Ada L."})])
        assert self.rows(store, record_type)["1"][name] == "own"
        captured = {change.key: change for change in self.captured(store)}
        assert captured.keys() == {"1"}
        assert captured["1"].data is not None
        assert captured["1"].data[name] == "own"
        assert record_type is Item or captured["1"].data == {name: "own"}
        assert self.rows(store, record_type)["2"][name] in (None, "")
        self.assert_no_edits(store)
        self.assert_no_edits(self.store(tmp_path, record_type))

    @_RULES
    def test_new_field_without_a_value(self, tmp_path: Path, record_type: type[Record]) -> None:
        """A new field that nobody has filled is neither published nor kept against a value."""
        name, before = self._written_before(tmp_path, record_type)
        store = self.store(tmp_path, record_type)
        self.assert_no_edits(store)
        (state, _) = store.replicas[record_type.__record__.name].states(["1", "2"])
        assert name not in {**(state.known.values if state.known else {}), **(state.data or {})}
        (again,) = self.send(store, [state])
        assert again.outcome is Outcome.DUPLICATE
        if record_type is Contact:
            patch = _patch(before, self.version(5), {"name": "Ada L."}, email="value")
            self.send(store, [patch])
            assert self.rows(store, Contact)["1"][name] == "value"
            self.assert_no_edits(store)
        self._edit_outside(tmp_path, record_type, **{name: "later"})
        (captured,) = self.captured(store)
        assert captured.data is not None
        assert captured.data[name] == "later"
        self.assert_no_edits(store)

    @_RULES
    def test_new_field_set_to_none(self, tmp_path: Path, record_type: type[Record]) -> None:
        """Once a value of a new field was captured, its removal is captured, too."""
        name, _ = self._written_before(tmp_path, record_type)
        self._edit_outside(tmp_path, record_type, **{name: "own"})
        store = self.store(tmp_path, record_type)
        assert len(self.captured(store)) == 1
        self._edit_outside(tmp_path, record_type, **{name: None})
        (captured,) = self.captured(store)
        assert captured.data is not None
        assert captured.data[name] is None

    def test_put_of_an_older_producer(self, tmp_path: Path) -> None:
        """A put of a producer whose record type lacks a field leaves the field as it is."""
        store = self.store(tmp_path, Item)
        record = Item(id=1, name="Lamp", amount=3, note="x")
        self.send(store, [put(record, self.version(1))])
        older = changed(Item, "1", "put", self.version(2), {"id": 1, "name": "Desk", "amount": 4})
        self.send(store, [older.replace(schema=Item.__record__.schema - 1)])
        assert self.rows(store, Item)["1"] == {"id": 1, "name": "Desk", "amount": 4, "note": "x"}
        # The other stores learn the value that the put lacks.
        (captured,) = self.captured(store)
        assert captured.data == {"id": 1, "name": "Desk", "amount": 4, "note": "x"}
        self.assert_no_edits(store)

    @_RULES
    def test_filter_that_cannot_be_judged(self, tmp_path: Path, record_type: type[Record]) -> None:
        """A record that others made stays if the filter reads a field that the store lacks."""
        name, value, other = (
            ("city", "Rome", "Oslo") if record_type is Contact else ("note", "x", "y")
        )
        view = View(omit=(name,), where={name: value})
        store = self.store(tmp_path, record_type, view=view)
        foreign = self.accessor(record_type, tmp_path, view)
        for number in range(1, 5):
            foreign.add(foreign.make(_values(record_type, number, name)))
        assert len(self.captured(store)) == 4
        assert self.rows(store, record_type).keys() == {"1", "2", "3", "4"}
        self.assert_no_edits(store)
        edited = foreign.get("1")
        assert edited is not None, "get() does not find a record that add() wrote"
        edited["name"] = "Edited"
        foreign.update(edited)
        foreign.close()
        (captured,) = self.captured(store)
        assert captured.op == ("patch" if record_type is Contact else "put")
        self.assert_no_edits(store)
        assert self.rows(store, record_type).keys() == {"1", "2", "3", "4"}
        self.time.advance(1)
        if record_type is Contact:
            later = [
                changed(Contact, "1", "patch", self.version(100_000), {name: value}),
                changed(Contact, "2", "patch", self.version(100_000), {name: other}),
                changed(Contact, "3", "patch", self.version(100_000), {"name": "New"}),
            ]
        else:
            later = [
                put(Item(id=1, name="New", note=value), self.version(100_000)),
                put(Item(id=2, name="New", note=other), self.version(100_000)),
                changed(Item, "3", "put", self.version(100_000), {"id": 3, "name": "New"}),
            ]
        self.send(store, later)
        # Now the filter can be judged of two records: one matches, the other does not.
        assert self.rows(store, record_type).keys() == {"1", "3", "4"}
        self.assert_no_edits(store)

    # -- helpers -----------------------------------------------------------------------------------

    def _written_before(self, folder: Path, record_type: type[Record]) -> tuple[str, Change]:
        """Write two records by a view without one field. Return its name and the first put."""
        name = "email" if record_type is Contact else "note"
        # This record makes the store create what the whole view needs, such as a header.
        store = self.store(folder, record_type)
        store.add(record_type(id=3, name="Whole"))
        store.remove(store[record_type, 3])
        self.release()
        store = self.store(folder, record_type, view=View(omit=(name,)))
        puts = [
            changed(record_type, str(n), "put", self.version(n), _values(record_type, n, name))
            for n in (1, 2)
        ]
        self.send(store, puts)
        self.assert_no_edits(store)
        self.release()
        return name, puts[0]

    def _edit_outside(self, folder: Path, record_type: type[Record], **values: object) -> None:
        """Edit the record 1 as another program."""
        foreign = self.accessor(record_type, folder)
        record = foreign.get("1")
        assert record is not None, "get() does not find a record that apply() wrote"
        for name, value in values.items():
            record[name] = value
        foreign.update(record)
        foreign.close()


def _values(record_type: type[Record], number: int, without: str) -> dict[str, object]:
    record = record_type(id=number, name=f"Ada {number}")
    return {name: value for name, value in record.raw().items() if name != without}


def _patch(origin: Change, version: Version, values: dict[str, object], **known: object) -> Change:
    """Return a patch of a store that knows the put ``origin``, and has ``known`` beside it."""
    held = {"email": None, **(origin.data or {}), **known}
    others = {name: value for name, value in held.items() if name not in ("id", *values)}
    return changed(Contact, "1", "patch", version, values).replace(
        known=BaseState(origin.stamp, others, {})
    )
