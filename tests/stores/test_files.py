"""The stores in files."""

from __future__ import annotations

from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor, disk
from eventsync.testing import StoreContract

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
