"""What a change source tells of the writes of a program that does not know eventsync."""

from __future__ import annotations

import contextlib

from eventsync.engine.store import Store
from eventsync.stores.sql import SqlAccessor
from eventsync.testing import FakeBus

__all__ = ["Told"]


class Told:
    """A store in a database, and the change source that is to tell the writes of others."""

    def __init__(self, url, *accessors, kind="triggers", **options):
        made = [
            one
            if isinstance(one, SqlAccessor)
            else SqlAccessor(one, url, table=one.__record__.name.lower(), **options)
            for one in accessors
        ]
        self.store = Store("shop", *made, publisher=FakeBus(), capture=kind).open()
        self.source = self.store.change_source()
        self.mark = self.source.open("")

    def keys(self, record_type, *, wait=5.0):
        """Return the keys that are told of a type, and settle them."""
        changes = self.source.changes(self.mark, wait=wait)
        self.source.settle(changes)
        return set(changes.keys.get(record_type.__record__.name, {}))

    def nothing(self):
        """Return whether nothing is told."""
        changes = self.source.changes(self.mark, wait=0.0)
        return not changes.keys and not changes.whole

    def whole(self, *, wait=5.0):
        """Return the types all of whose records must be read."""
        changes = self.source.changes(self.mark, wait=wait)
        self.source.settle(changes)
        return set(changes.whole)

    def check(self):
        """Look now whether all triggers are there."""
        self.source._checked_at = 0.0

    def close(self):
        with contextlib.suppress(Exception):
            self.source.close()
        self.store.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
