"""The store in memory."""

from __future__ import annotations

from eventsync.index import MemoryIndex
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing import StoreContract


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
