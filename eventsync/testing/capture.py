"""The part of the conformance suite about capture: foreign writes are found, and echoes are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from eventsync.engine.gate import Outcome
from eventsync.errors import EventSyncError, StoreUnavailableError, SuspiciousReadError
from eventsync.index import IndexTransaction
from eventsync.records.record import Record
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Harness, Item, changed, put

__all__ = ["CaptureContract"]

_RULES = pytest.mark.parametrize("record_type", [Item, Contact], ids=["per record", "per field"])


class CaptureContract(Harness):
    """Tests that edits by other programs are captured once, and writes by eventsync never."""

    @_RULES
    def test_no_echo(self, tmp_path: Path, record_type: type[Record]) -> None:
        """``capture`` does not report applied changes and edits through the store."""
        store = self.store(tmp_path, record_type, bus=FakeBus())
        sent = [
            put(record_type(id=1, name="Ada"), self.version(1)),
            changed(record_type, "2", "put", self.version(2), {"name": "Bob"}),
            changed(record_type, "3", "put", self.version(3), {"id": "3", "name": "Zoë"}),
            put(record_type(id=4, name="Gone"), self.version(4)),
            changed(record_type, "4", "delete", self.version(5), None),
        ]
        self.send(store, sent)
        if record_type is Contact:
            self.send(store, [changed(Contact, "1", "patch", self.version(6), {"email": None})])
            self.send(store, [changed(Contact, "1", "patch", self.version(7), {"score": "7"})])
        store.add(record_type(id=5, name="Eve"))
        eve = store[record_type, 5]
        eve["name"] = "Eva"
        store.update(eve)
        store.remove(store[record_type, 1])
        self.assert_no_edits(store)
        self.assert_no_edits(self.store(tmp_path, record_type))

    @_RULES
    def test_own_changes_come_back(self, tmp_path: Path, record_type: type[Record]) -> None:
        """A store that receives its own changes from its queue keeps its records and versions."""
        bus = FakeBus()
        store = self.store(tmp_path, record_type, bus=bus)
        store.add(record_type(id=1, name="Ada"))
        ada = store[record_type, 1]
        ada["name"] = "Ada L."
        store.update(ada)
        before = self.rows(store, record_type), self.entries(store, record_type)
        outcomes = {settled.outcome for settled in self.send(store, bus.changes())}
        assert Outcome.APPLIED not in outcomes
        assert (self.rows(store, record_type), self.entries(store, record_type)) == before

    @_RULES
    def test_foreign_edits(self, tmp_path: Path, record_type: type[Record]) -> None:
        """An edit, an addition and a delete by another program are each captured exactly once."""
        bus, other_bus = FakeBus(), FakeBus()
        store = self.store(tmp_path, record_type, bus=bus)
        self.send(store, [put(record_type(id=n, name="Ada"), self.version(n)) for n in (1, 2, 3)])
        foreign = self.accessor(record_type, tmp_path)
        edited = foreign.get("1")
        assert edited is not None, "get() does not find a record that apply() wrote"
        edited["name"] = "Edited"
        foreign.update(edited)
        foreign.remove("2")
        foreign.add(record_type(id=4, name="Added"))
        foreign.close()
        captured = {change.key: change for change in self.captured(store)}
        assert captured.keys() == {"1", "2", "4"}
        edit = "put" if record_type is Item else "patch"
        assert captured["1"].op == edit
        assert captured["2"].op == "delete"
        assert all(change.version > self.version(3) for change in captured.values())
        if record_type is Contact:
            assert captured["1"].data == {"name": "Edited"}
        # The edits are not captured again: not by this process, not by another one, and not when
        # the store receives the captured changes from its queue.
        self.assert_no_edits(store)
        self.assert_no_edits(self.store(tmp_path, record_type, bus=other_bus))
        assert len(bus.changes()) == 3
        assert other_bus.changes() == []
        self.send(store, bus.changes())
        self.assert_no_edits(store)
        target = self.store(self.fresh(tmp_path), record_type)
        self.send(target, [put(record_type(id=n, name="Ada"), self.version(n)) for n in (1, 2, 3)])
        self.send(target, bus.changes())
        assert self.rows(target, record_type) == self.rows(store, record_type)

    @_RULES
    def test_writes_between_slices(self, tmp_path: Path, record_type: type[Record]) -> None:
        """While a capture pauses between two slices, changes may be applied: none is an edit."""
        store = self.store(tmp_path, record_type)
        self.send(store, [put(record_type(id=n, name="Ada"), self.version(n)) for n in range(1, 8)])
        foreign = self.accessor(record_type, tmp_path)
        edited = foreign.get("1")
        assert edited is not None, "get() does not find a record that apply() wrote"
        edited["name"] = "Edited"
        foreign.update(edited)
        foreign.remove("2")
        foreign.close()
        # A service may have listed an object that is deleted before it is converted.
        slices = store.capture(count=2, unreadable=lambda error: None)
        found = list(next(slices))
        applied = [
            put(record_type(id=5, name="Eve"), self.version(20)),
            changed(record_type, "6", "delete", self.version(21), None),
            changed(record_type, "7", "delete", self.version(22), None),
            put(record_type(id=8, name="New"), self.version(23)),
        ]
        self.send(store, applied)
        found += next(slices)
        self.send(store, [put(record_type(id=7, name="Back"), self.version(24))])
        found += [change for changes in slices for change in changes]
        assert sorted((change.key, change.op == "delete") for change in found) == [
            ("1", False),
            ("2", True),
        ]
        self.assert_no_edits(store)
        assert self.rows(store, record_type).keys() == {"1", "3", "4", "5", "7", "8"}

    def test_foreign_edit_beside_a_change(self, tmp_path: Path) -> None:
        """A foreign edit of one field is captured even after a change of another field arrives."""
        store = self.store(tmp_path, Contact)
        self.send(store, [put(Contact(id=1, name="Ada", score=1), self.version(1))])
        foreign = self.accessor(Contact, tmp_path)
        ada = foreign.get("1")
        assert ada is not None, "get() does not find a record that apply() wrote"
        ada["score"] = 2
        foreign.update(ada)
        foreign.close()
        self.send(store, [changed(Contact, "1", "patch", self.version(2), {"name": "Ada L."})])
        ada = store[Contact, 1]
        ada["email"] = "a@b"
        store.update(ada)
        (captured,) = self.captured(store)
        assert captured.data == {"score": 2}
        self.assert_no_edits(store)

    @_RULES
    def test_before_eventsync(self, tmp_path: Path, record_type: type[Record]) -> None:
        """A record that is older than eventsync is captured once, and then merges as any other."""
        foreign = self.store(tmp_path, record_type).accessor(record_type)
        foreign.add(record_type(id=1, name="Old"))
        store = self.store(tmp_path, record_type)
        (captured,) = self.captured(store)
        assert captured.key == "1"
        self.assert_no_edits(store)
        target = self.store(self.fresh(tmp_path), record_type)
        self.send(target, [captured])
        assert self.rows(target, record_type) == self.rows(store, record_type)
        self.time.advance(1)
        later = put(record_type(id=1, name="New"), self.version(101_000))
        for each in (store, target):
            self.send(each, [later])
            assert self.rows(each, record_type)["1"]["name"] == "New"

    @pytest.mark.parametrize("failure", ["raises", "empty"])
    def test_failed_read_deletes_nothing(self, tmp_path: Path, failure: str) -> None:
        """A read that fails or returns no records at all is not captured as deletes."""
        bus = FakeBus()
        store = self.store(tmp_path, Item, bus=bus)
        self.send(store, [put(Item(id=n, name="Ada"), self.version(n)) for n in range(30)])
        accessor = store.accessor(Item)
        before = self.entries(store, Item)
        error = StoreUnavailableError("the disk is gone")
        find = Mock(return_value=[], side_effect=error if failure == "raises" else None)

        def entries_alone(keys: Sequence[str], transaction: IndexTransaction) -> Any:
            return transaction.read("Item", keys), {}

        with (
            patch.object(accessor, "find", find),
            patch.object(accessor, "get", return_value=None),
            patch.object(accessor, "read_rows", return_value={}),
            patch.object(accessor, "read_with_entries", entries_alone),
            pytest.raises(EventSyncError) as caught,
        ):
            self.captured(store)
        assert isinstance(caught.value, SuspiciousReadError | StoreUnavailableError)
        assert self.entries(store, Item) == before
        assert bus.changes() == []
        self.assert_no_edits(store)

    def test_deletes_by_agreement(self, tmp_path: Path) -> None:
        """Deletes of most records at once are captured only if the caller allows it."""
        store = self.store(tmp_path, Item)
        self.send(store, [put(Item(id=n, name="Ada"), self.version(n)) for n in range(12)])
        foreign = self.accessor(Item, tmp_path)
        for number in range(11):
            foreign.remove(str(number))
        foreign.close()
        with pytest.raises(SuspiciousReadError):
            self.captured(store)
        deletes = [change for changes in store.capture(deletes=1.0) for change in changes]
        assert [change.op for change in deletes] == ["delete"] * 11
        assert self.rows(store, Item).keys() == {"11"}

    def test_broker_away(self, tmp_path: Path) -> None:
        """While the broker is down, an edit waits in the outbox, even after a restart."""
        bus = FakeBus(away=True)
        store = self.store(tmp_path, Item, bus=bus)
        store.add(Item(id=1, name="Lamp"))
        assert store.publish_error is not None
        assert store[Item, 1].name == "Lamp"
        again = self.store(tmp_path, Item, bus=bus)
        bus.away = False
        assert again.flush() == 1
        assert again.flush() == 0
        assert [change.key for change in bus.changes()] == ["1"]
