"""Capture in stores that hold only some records or fields, in SQL and in memory."""

from __future__ import annotations

import sqlite3

import pytest

from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.index import Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor


class Task(Record):
    id: int = Field(key=True)
    title: str
    open: bool = True


def test_rows_outside_the_filter_are_left_alone(tmp_path):
    """Rows of an existing table that do not match the filter are neither captured nor removed."""
    path = tmp_path / "tasks.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE Task (id INTEGER PRIMARY KEY, title TEXT, open INTEGER)")
        connection.execute("INSERT INTO Task VALUES (1, 'mine', 1), (2, 'foreign', 0)")
    connection.close()
    accessor = SqlAccessor(Task, f"sqlite:///{path}", view=View(where={"open": True}))
    with Store("tasks", accessor) as store:
        changes = [change for chunk in store.capture() for change in chunk]
        assert [change.key for change in changes] == ["1"]
        assert {record.key for record in store.find(Task)} == {"1", "2"}
        assert store.index.counts("Task")[Presence.PRESENT] == 1


def test_record_edited_out_of_the_filter_leaves(tmp_path):
    """A foreign write makes a record fail the filter: it is published once and removed here."""
    path = tmp_path / "tasks.db"
    view = View(where={"open": True})
    accessor = SqlAccessor(Task, f"sqlite:///{path}", view=view, create=True)
    with Store("tasks", accessor) as store:
        store.add(Task(id=1, title="mine"))
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE Task SET open = 0")
        connection.close()
        changes = [change for chunk in store.capture() for change in chunk]
        assert [(change.op, change.data["open"]) for change in changes] == [("put", False)]
        assert store.count(Task) == 0
        assert store.index.counts("Task")[Presence.FILTERED_OUT] == 1
        assert [change for chunk in store.capture() for change in chunk] == []


class Word(Record, rule="field"):
    id: str = Field(key=True)
    note: str | None = None


@pytest.mark.parametrize("omit", [(), ("note",)])
def test_record_of_which_only_the_key_is_known(omit):
    """A foreign record without values is captured once and applied elsewhere."""
    accessor = MemoryAccessor(Word, view=View(omit=omit))
    other = Store("other", MemoryAccessor(Word))
    with Store("words", accessor) as store, other:
        accessor.data["a"] = {"id": "a", "note": None}
        changes = [change for chunk in store.capture() for change in chunk]
        assert [change.key for change in changes] == ["a"]
        assert [change for chunk in store.capture() for change in chunk] == []
        apply(other, changes, clock=other.clock)
        assert store.index.counts("Word")[Presence.PRESENT] == 1
        # If the origin does not hold the field, the other store waits for a store that does.
        assert other.index.counts("Word")[Presence.PENDING if omit else Presence.PRESENT] == 1
        del accessor.data["a"]
        assert [c.op for chunk in store.capture() for c in chunk] == ["delete"]


def test_edit_of_a_record_without_values():
    """A foreign record without values can be edited before it is captured."""
    accessor = MemoryAccessor(Word)
    with Store("words", accessor) as store:
        accessor.data["a"] = {"id": "a", "note": None}
        word = store[Word, "a"]
        word.note = "new"
        store.update(word)
        assert accessor.data["a"]["note"] == "new"
        assert [change for chunk in store.capture() for change in chunk] == []
