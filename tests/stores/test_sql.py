"""The SQL store, on SQLite."""

from __future__ import annotations

import contextlib
import sqlite3

from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.testing import FakeBus, StoreContract


class TestSqlAccessor(StoreContract):
    """The conformance suite on tables that eventsync makes."""

    def accessor(self, record_type, folder, view=None):
        return SqlAccessor(record_type, f"sqlite:///{folder}/data.db", create=True, view=view)


def test_derived_records_can_travel(tmp_path):
    """A record of a type that was derived from a table goes into an envelope as any other."""
    database = f"sqlite:///{tmp_path / 'music.db'}"
    with contextlib.closing(sqlite3.connect(tmp_path / "music.db")) as connection:
        connection.execute(
            'CREATE TABLE "Track List" (list INT, track INT, "the Title" TEXT,'
            " PRIMARY KEY (list, track))"
        )
        connection.execute("INSERT INTO \"Track List\" VALUES (1, 2, 'Für Elise')")
        connection.commit()
    record_type = derive(database, "Track List", name="TrackList")
    bus = FakeBus()
    accessor = SqlAccessor(record_type, database, table="Track List")
    with Store("music", accessor, publisher=bus) as store:
        assert [len(chunk) for chunk in store.capture()] == [1]
        (change,) = bus.changes()
        assert (change.key, change.data["the Title"]) == ("1/2", "Für Elise")
