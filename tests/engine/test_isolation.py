"""Isolation: one failing item never stops the others, and a shared failure stops at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.engine.isolation import Done, Failed, isolate, item_error
from eventsync.errors import ConfigError, RejectedError, StoreError, StoreUnavailableError


@given(st.integers(0, 70), st.sets(st.integers(0, 70)))
def test_exactly_the_failing_items_fail(count, poison):
    """Every item is done or failed, once and in order, and only those fail that raise."""

    def call(part):
        wrong = [item for item in part if item in poison]
        if wrong:
            raise ZeroDivisionError(wrong[0])
        return [item * 2 for item in part]

    seen, failed = [], set()
    for part in isolate(range(count), call):
        if isinstance(part, Done):
            assert part.result == [item * 2 for item in part.items]
            seen += part.items
        else:
            assert part.error.args == (part.item,)
            seen.append(part.item)
            failed.add(part.item)
    assert seen == list(range(count))
    assert failed == poison & set(range(count))


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), OSError(), ConfigError("no")])
def test_shared_failure_is_raised_at_the_first_call(error):
    """A store that is away is no reason to try each item."""
    calls = []

    def call(part):
        calls.append(part)
        raise error

    with pytest.raises(type(error)):
        list(isolate(range(64), call))
    assert len(calls) == 1


def test_one_failing_item_costs_few_calls():
    """Halving finds one of 1,024 in 21 calls."""
    calls = []

    def call(part):
        calls.append(part)
        if 700 in part:
            raise RejectedError("no")

    found = [part for part in isolate(range(1024), call) if isinstance(part, Failed)]
    assert [part.item for part in found] == [700]
    assert len(calls) == 21


def test_no_item_is_no_call():
    """Without items nothing is called."""
    assert list(isolate([], lambda part: pytest.fail("called"))) == []


def test_unexpected_exception_becomes_a_store_error():
    """An error of eventsync stays as it is; any other is named by a StoreError that it caused."""
    rejected = RejectedError("no")
    assert item_error(rejected) is rejected
    foreign = KeyError("x")
    told = item_error(foreign)
    assert type(told) is StoreError
    assert "KeyError" in str(told)
    assert told.__cause__ is foreign
