"""The store in memory."""

from __future__ import annotations

import pytest

from eventsync.engine.store import Store
from eventsync.index import MemoryIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing import StoreContract


class Note(Record, rule="field"):
    id: int = Field(key=True)
    a: str = ""
    b: str | None = None


class TestMemoryAccessor(StoreContract):
    """The conformance suite; a second accessor on the same dict stands for another process."""

    def setup_method(self):
        super().setup_method()
        self.memory = {}

    def accessor(self, record_type, folder, view=None):
        accessor = MemoryAccessor(record_type, view=view)
        key = folder, record_type.__record__.name
        accessor.data = self.memory.setdefault(key, accessor.data)
        return accessor

    def index(self, accessor, folder):
        return self.memory.setdefault(folder, MemoryIndex())


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(900), object(), "\ud800", 10**5000], ids=["deep", *"abc"])
def test_a_value_that_cannot_be_held_affects_its_record_only(value):
    """Its record is passed over, with type and key named."""
    accessor = MemoryAccessor(Note)
    accessor.data = {str(n): {"id": n, "a": "x", "b": None} for n in (1, 2, 3)}
    accessor.data["2"]["a"] = value
    with Store("memory", accessor) as store:
        errors = []
        found = list(store.capture(unreadable=errors.append))
        assert [change.key for changes in found for change in changes] == ["1", "3"]
        assert len(errors) == 1
        assert "Note '2'" in str(errors[0])


def test_a_patch_changes_the_fields_it_names():
    """What another put into other fields stays, though the view would write it in another way."""
    view = View(convert={"a": Convert(str.upper, str.lower)})
    accessor = MemoryAccessor(Note, view=view)
    with Store("memory", accessor) as store:
        store.add(Note(id=1, a="x"))
        accessor.data["1"] = {"id": 1, "a": "Mixed", "theirs": 1}
        note = store.get(Note, 1)
        note.b = "new"
        store.update(note)
        assert accessor.data["1"] == {"id": 1, "a": "Mixed", "theirs": 1, "b": "new"}
