"""The pace of looks for foreign writes: slower while hints come, and never too slow."""

from __future__ import annotations

import time

import pytest
from support.records import Product
from support.scripted_source import ScriptedAccessor

from eventsync.engine.listening import forget_listening, note_listening
from eventsync.engine.store import Store
from eventsync.index import MemoryIndex
from eventsync.worker.poll_pace import PollPace


class Ticks:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def store():
    return Store(
        "crm",
        ScriptedAccessor(Product),
        index=MemoryIndex(),
        capture="auto",
        capture_every=10.0,
        capture_whole_every=60.0,
    )


def looks(pace, ticks, count, found=lambda number: 0):
    """Ask ``count`` times, each 10 seconds; return at which times a look was due."""
    due = []
    for number in range(count):
        if pace.is_due():
            due.append(number)
            pace.looked(found(number))
        ticks.now += 10.0
    return due


def test_each_look_is_due_without_hints(store, ticks):
    assert looks(PollPace(store, monotonic=ticks), ticks, 5) == [0, 1, 2, 3, 4]


def test_looks_that_find_nothing_double_the_pause(store, ticks):
    """Up to capture_whole_every: 20, 40 and 60 seconds."""
    note_listening(store.index, 1.0)
    assert looks(PollPace(store, monotonic=ticks), ticks, 20) == [0, 2, 6, 12, 18]


def test_a_found_write_sets_the_pause_back(store, ticks):
    note_listening(store.index, 1.0)
    pace = PollPace(store, monotonic=ticks)
    assert looks(pace, ticks, 12, lambda number: number == 6) == [0, 2, 6, 7, 9]


def test_a_gap_in_the_hints_makes_a_look_due_at_once(store, ticks):
    note_listening(store.index, 1.0)
    pace = PollPace(store, monotonic=ticks)
    looks(pace, ticks, 8)
    note_listening(store.index, 2.0)
    assert looks(pace, ticks, 3) == [0, 2]


def test_a_process_that_ends_makes_each_look_due(store, ticks):
    note_listening(store.index, 1.0)
    pace = PollPace(store, monotonic=ticks)
    looks(pace, ticks, 8)
    forget_listening(store.index)
    assert looks(pace, ticks, 3) == [0, 1, 2]


def test_a_process_that_died_makes_each_look_due(store, ticks, monkeypatch):
    note_listening(store.index, 1.0)
    pace = PollPace(store, monotonic=ticks)
    looks(pace, ticks, 8)
    later = time.time() + 20.0
    monkeypatch.setattr(time, "time", lambda: later)
    assert looks(pace, ticks, 3) == [0, 1, 2]


def test_a_failed_look_does_not_count(store, ticks):
    note_listening(store.index, 1.0)
    pace = PollPace(store, monotonic=ticks)
    assert pace.is_due()
    pace.looked(0, failed=True)
    assert pace.pause == 10.0
