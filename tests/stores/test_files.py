"""The stores in files."""

from __future__ import annotations

import pytest

from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import RecordError
from eventsync.records.query import Query
from eventsync.records.view import Convert, View
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor, disk
from eventsync.testing import StoreContract
from eventsync.testing.harness import Item, put

DISK_STEPS = [(disk, "replace"), (disk, "sync")]


class TestJsonFolderAccessor(StoreContract):
    """The conformance suite on folders of JSON documents."""

    def accessor(self, record_type, folder, view=None):
        return JsonFolderAccessor(record_type, folder / record_type.__record__.name, view=view)

    def steps(self, store):
        return DISK_STEPS


class TestCsvAccessor(StoreContract):
    """The conformance suite on CSV files."""

    def accessor(self, record_type, folder, view=None):
        return CsvAccessor(record_type, folder / f"{record_type.__record__.name}.csv", view=view)

    def steps(self, store):
        return DISK_STEPS


class TestJsonLinesAccessor(StoreContract):
    """The conformance suite on files of JSON lines."""

    def accessor(self, record_type, folder, view=None):
        return JsonLinesAccessor(
            record_type, folder / f"{record_type.__record__.name}.jsonl", view=view
        )

    def steps(self, store):
        return DISK_STEPS


@pytest.mark.parametrize("kind", [JsonFolderAccessor, CsvAccessor, JsonLinesAccessor])
@pytest.mark.parametrize("field", ["id", "name"])
def test_a_conversion_that_fails_for_one_record_affects_no_other(tmp_path, kind, field):
    """A record whose conversion raises is unreadable, and its sibling is read and written."""

    def read(stored):
        if str(stored) in ("2", "bad"):
            raise KeyError(stored)
        return stored

    path = tmp_path / "items"
    with Store("plain", kind(Item, path)) as store:
        store.add([Item(id=1, name="good"), Item(id=2, name="bad")])
    view = View(convert={field: Convert(lambda value: value, read)})
    with Store("plain", kind(Item, path, view=view)) as store:
        unreadable = []
        list(store.capture(unreadable=unreadable.append))
        assert [type(error) for error in unreadable] == [RecordError]
        assert str(path) in str(unreadable[0])
        query = Query.parse(store.accessor(Item).type, unreadable=unreadable.append)
        assert [item.id for item in store.accessor(Item).find(query)] == [1]
        clock = Clock()
        changes = [put(Item(id=n, name="new"), clock.tick()) for n in (1, 2)]
        outcomes = [settled.outcome for settled in apply(store, changes, clock=clock)]
        # A put replaces a bad value. Where the key cannot be read, the record cannot be found.
        bad = Outcome.REJECTED if field == "id" else Outcome.APPLIED
        assert outcomes == [Outcome.APPLIED, bad]
