"""What the tests of all trackers share."""

from __future__ import annotations

import contextlib

from eventsync.apply import apply
from eventsync.change import Change
from eventsync.clock import Clock
from eventsync.errors import StoreUnavailableError
from eventsync.gate import Outcome

__all__ = ["captured", "checked", "created_once", "put"]


def put(clock, record):
    """The change that creates a record, as it comes from elsewhere."""
    return Change(
        type=type(record).__record__.name,
        key=record.key,
        op="put",
        version=clock.tick(),
        data=record.raw(),
        source="t",
    )


def captured(store, **more):
    """The changes that the store finds others to have made."""
    return [change for found in store.capture(**more) for change in found]


def checked(store, record):
    """Add a record, and see that it is there as it was meant; what is there."""
    store.add(record)
    held = store.get(record)
    assert held is not None
    assert {name: record[name] for name in held.raw()} == held.raw()
    return held


def created_once(service, opened, record, failure, *, skip):
    """Whatever becomes of the answer to a write, and of the process, a record is created once.

    ``opened``: a new process' store. ``failure``: what becomes of the write after ``skip`` others.
    """
    clock = Clock()
    change = put(clock, record)
    service.only = lambda method, path: method != "GET"
    service.failures.extend([None] * skip + [failure])
    for _ in range(4):
        with contextlib.closing(opened()) as store:
            try:
                (settled,) = apply(store, [change], clock=clock)
            except StoreUnavailableError:
                continue
            assert settled.outcome in (Outcome.APPLIED, Outcome.DUPLICATE)
            held = store.get(record)
            assert held is not None
            assert {name: record[name] for name in held.raw()} == held.raw()
            assert captured(store) == []
            return
    raise AssertionError("it never succeeded")
