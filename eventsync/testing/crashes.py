"""The part of the conformance suite about crashes, at each step of a write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventsync.engine.store import Store
from eventsync.records.record import Record
from eventsync.testing.fake import Crash, FakeBus, Fuse, crashing
from eventsync.testing.harness import Contact, Harness, Item, changed, put
from eventsync.testing.model import expected

__all__ = ["CrashContract"]

_RULES = pytest.mark.parametrize("record_type", [Item, Contact], ids=["per record", "per field"])


class CrashContract(Harness):
    """Tests that if a process dies in a write, the next process finishes or undoes it."""

    @_RULES
    def test_apply_survives(self, tmp_path: Path, record_type: type[Record]) -> None:
        """After a crash in ``apply``, data and versions agree. A retry applies the whole batch."""
        before = [put(record_type(id=n, name="Old"), self.version(n)) for n in (1, 2, 4)]
        after = [
            changed(record_type, "2", "delete", self.version(12), None),
            put(record_type(id=3, name="New"), self.version(13)),
            put(record_type(id=4, name="New"), self.version(14)),
        ]
        if record_type is Contact:
            after.append(changed(Contact, "1", "patch", self.version(11), {"score": 5}))
        else:
            after.append(put(Item(id=1, name="Old", amount=5), self.version(11)))

        def check(store: Store, crashed: bool) -> None:
            view = store.accessor(record_type).view
            self.assert_no_edits(store)
            rows = self.rows(store, record_type)
            entries = self.entries(store, record_type)
            for key in ("1", "2", "3", "4"):
                history = [change for change in [*before, *after] if change.key == key]
                seen = [c for c in history if key in entries and c.version <= entries[key].version]
                assert rows.get(key) == expected(seen, view).get(key), key
                assert crashed or seen == history
            self.send(store, [*after, *before])
            assert self.rows(store, record_type) == expected([*before, *after], view)
            self.assert_no_edits(store)
            assert store.index.outgoing() == []

        self._die_everywhere(
            tmp_path,
            record_type,
            prepare=lambda store: self.send(store, before),
            act=lambda store: self.send(store, after),
            check=check,
        )

    @pytest.mark.parametrize("op", ["add", "update", "remove"])
    @_RULES
    def test_edit_survives(self, tmp_path: Path, record_type: type[Record], op: str) -> None:
        """After a crash during an edit, the edit is both made and published, or it is undone."""
        bus = FakeBus()
        old, new = record_type(id=1, name="Old"), record_type(id=1, name="New")

        def prepare(store: Store) -> None:
            bus.envelopes.clear()
            if op != "add":
                self.send(store, [put(old, self.version(1))])

        def act(store: Store) -> None:
            store.publisher = bus
            getattr(store, op)(new)

        def check(store: Store, crashed: bool) -> None:
            self.assert_no_edits(store)
            store.flush(bus)
            changes = bus.changes()
            assert crashed or changes
            # A store also receives its own changes from its queue.
            self.send(store, changes)
            held = {} if op == "add" else {"1": old.raw()}
            if changes:
                held = {} if op == "remove" else {"1": new.raw()}
            assert self.rows(store, record_type) == held
            assert len({change.version for change in changes}) <= 1
            self.assert_no_edits(store)

        self._die_everywhere(tmp_path, record_type, prepare=prepare, act=act, check=check)

    def test_capture_survives(self, tmp_path: Path) -> None:
        """After a crash in ``capture``, the next capture publishes the edits that are missing."""
        bus = FakeBus()

        def prepare(store: Store) -> None:
            bus.envelopes.clear()
            self.send(store, [put(Contact(id=n, name="Old"), self.version(n)) for n in (1, 2)])
            accessor = store.accessor(Contact)
            edited = accessor.get("1")
            assert edited is not None, "get() does not find a record that apply() wrote"
            edited["name"] = "Edited"
            accessor.update(edited)
            accessor.remove("2")

        def act(store: Store) -> None:
            store.publisher = bus
            self.captured(store)

        def check(store: Store, crashed: bool) -> None:
            store.publisher = bus
            self.captured(store)
            store.flush()
            found = {(change.key, change.op, change.version) for change in bus.changes()}
            assert sorted(found)[0][:2] == ("1", "patch")
            assert sorted(found)[1][:2] == ("2", "delete")
            assert len(found) == 2
            self.assert_no_edits(store)

        self._die_everywhere(tmp_path, Contact, prepare=prepare, act=act, check=check)

    def test_foreign_edit_after_a_crash(self, tmp_path: Path) -> None:
        """An edit of a record whose last write was interrupted is captured alone.

        The values that eventsync wrote keep their versions, so a later patch replaces them.
        """
        old = put(Contact(id=1, name="Old"), self.version(1))
        patch = changed(Contact, "1", "patch", self.version(11), {"score": 5})
        later = changed(Contact, "1", "patch", self.version(12), {"score": 7})

        def check(store: Store, crashed: bool) -> None:
            accessor = store.accessor(Contact)
            edited = accessor.get("1")
            assert edited is not None, "get() does not find a record that apply() wrote"
            edited["name"] = "Edited"
            accessor.update(edited)
            assert [change.data for change in self.captured(store)] == [{"name": "Edited"}]
            self.send(store, [later, patch, old])
            assert self.rows(store, Contact)["1"] == Contact(id=1, name="Edited", score=7).raw()
            self.assert_no_edits(store)

        self._die_everywhere(
            tmp_path,
            Contact,
            prepare=lambda store: self.send(store, [old]),
            act=lambda store: self.send(store, [patch]),
            check=check,
        )

    def test_failed_write_publishes_nothing(self, tmp_path: Path) -> None:
        """An edit whose write fails is not published, and is not made later."""
        bus = FakeBus()
        store = self.store(tmp_path, Item, bus=bus)
        accessor = store.accessor(Item)
        written = accessor.write_rows

        def failing(*arguments: Any) -> None:
            raise OSError("the disk is full")

        vars(accessor)["write_rows"] = failing
        with pytest.raises(OSError, match="disk is full"):
            store.add(Item(id=1, name="Lamp"))
        vars(accessor)["write_rows"] = written
        assert store.flush() == 0
        assert self.rows(store, Item) == {}
        assert self.entries(store, Item) == {}
        store.add(Item(id=1, name="Lamp"))
        assert [change.key for change in bus.changes()] == ["1"]

    def _die_everywhere(
        self,
        tmp_path: Path,
        record_type: type[Record],
        *,
        prepare: Callable[[Store], object],
        act: Callable[[Store], object],
        check: Callable[[Store, bool], None],
    ) -> None:
        """Run ``act`` once for each step of its writes, and let the process die at that step.

        Each run has a new store, on which ``prepare`` is called first. After each crash, ``check``
        is called with the store as the next process opens it, and with ``True``. The last run does
        not crash: ``check`` gets ``False``.
        """
        at, crashed = 0, True
        while crashed:
            at += 1
            folder = self.fresh(tmp_path)
            store = self.store(folder, record_type)
            prepare(store)
            try:
                with crashing(store, Fuse(at), self.steps(store)):
                    act(store)
                crashed = False
            except Crash:
                self.release()
            check(self.store(folder, record_type), crashed)
            self.release()
        assert at > 3, (
            "the suite saw no writes of the accessor: write the data in write_rows(), or name in "
            "steps() the functions that write the data"
        )
