"""A change source whose log is a list, and an accessor in memory that offers it."""

from __future__ import annotations

from eventsync.engine.change_source import Changes, ChangeSource, MarkLostError, SourceState
from eventsync.stores.memory import MemoryAccessor


class Scripted(ChangeSource):
    """A source whose log is a list of (type, key, moment); without a key, all of the type is told.

    The mark is the number of entries that were told.
    """

    kind = "scripted"

    def __init__(self):
        self.log = []
        self.lost = False
        self.failure = None
        self.settled = []
        self.opened = []
        self.told = 0

    def open(self, mark):
        self.opened.append(mark)
        if mark and self.lost:
            self.lost = False
            raise MarkLostError("the log was truncated")
        return mark if mark not in ("", "-") else str(len(self.log))

    def changes(self, mark, *, wait):
        if self.failure is not None:
            raise self.failure
        keys, whole = {}, {}
        self.told = len(self.log)
        for type, key, moment in self.log[int(mark) : self.told]:
            if key is None:
                whole[type] = "truncated"
            else:
                keys.setdefault(type, {})[key] = moment
        return Changes(str(self.told), keys, whole, own=1)

    def settle(self, changes):
        self.settled.append(changes.mark)

    def state(self):
        return SourceState(True, waiting=len(self.log) - self.told, lag_bytes=0, retained_bytes=100)


class ScriptedAccessor(MemoryAccessor):
    """Records in memory, whose foreign writes the source ``source`` of the first accessor tells."""

    def __init__(self, record_type, **options):
        super().__init__(record_type, **options)
        self.source = Scripted()

    @classmethod
    def sources(cls, accessors, store):
        return [accessors[0].source]
