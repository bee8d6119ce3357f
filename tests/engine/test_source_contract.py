"""The conformance suite for change sources, on a source whose log is a list."""

from __future__ import annotations

import time

from eventsync.engine.change_source import Changes, ChangeSource, MarkLostError, SourceState
from eventsync.index import MemoryIndex
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing import SourceContract


class Place:
    """What several processes share: the data, the index, and the log of all writes."""

    def __init__(self):
        self.index = MemoryIndex()
        self.data = {}
        self.log = []
        self.name = 1
        self.installed = False


class LoggedAccessor(MemoryAccessor):
    def __init__(self, record_type, place):
        super().__init__(record_type)
        self.place = place
        self.data = place.data.setdefault(self.type.name, {})

    @classmethod
    def sources(cls, accessors, store):
        return [LogSource(accessors[0].place)]


class LogSource(ChangeSource):
    """The mark is the name of the log and how much of it was told."""

    kind = "list"

    def __init__(self, place):
        self.place = place

    def open(self, mark):
        name, _, told = mark.partition("/")
        if name and int(name) != self.place.name:
            raise MarkLostError("another log has begun")
        return f"{self.place.name}/{told or len(self.place.log)}"

    def changes(self, mark, *, wait):
        name, _, told = mark.partition("/")
        keys, whole = {}, {}
        for type, key, moment in self.place.log[int(told) :]:
            if key is None:
                whole[type] = "truncated"
            else:
                keys.setdefault(type, {})[key] = moment
        return Changes(f"{name}/{len(self.place.log)}", keys, whole)

    def install(self):
        self.place.installed = True

    def remove(self):
        self.place.installed = False

    def state(self):
        return SourceState(installed=self.place.installed)


class TestListOfWrites(SourceContract):
    kind = "list"
    truncates = loses = True
    keyless = None

    def setup_method(self):
        super().setup_method()
        self.places = {}

    def place(self, folder):
        return self.places.setdefault(folder, Place())

    def accessor(self, record_type, folder):
        return LoggedAccessor(record_type, self.place(folder))

    def index(self, accessor, folder):
        return self.place(folder).index

    def edit(self, folder, *edits):
        place = self.place(folder)
        for edit in edits:
            type = edit.record_type.__record__
            data = place.data.setdefault(type.name, {})
            row = {}
            if edit.key is not None:
                key = type.key_text(edit.key)
                row = data.pop(key)
                place.log.append((type.name, key, time.time()))
            if edit.values is not None:
                row = {**row, **edit.values}
                data[type.key_text(row)] = row
                place.log.append((type.name, type.key_text(row), time.time()))

    def truncate(self, folder, record_type):
        place = self.place(folder)
        place.data[record_type.__record__.name].clear()
        place.log.append((record_type.__record__.name, None, time.time()))

    def lose(self, folder):
        place = self.place(folder)
        place.name += 1
        place.log.clear()
