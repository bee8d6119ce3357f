"""The clock: versions grow across clock steps, restarts, forks and threads."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.changes.clock import Clock, MarkFile, Version
from eventsync.errors import ClockDriftError, ConfigError

parts = st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1))


class Mark:
    """A high-water mark in memory, which outlives its clock."""

    def __init__(self):
        self.millis = 0
        self.saves = 0

    def load(self):
        return self.millis

    def save(self, millis):
        assert millis > self.millis, "a mark never falls"
        self.millis = millis
        self.saves += 1


@given(parts, parts)
def test_byte_order_is_version_order(one, other):
    """Versions compare as bytes, and as hexadecimal text, as their parts do."""
    a, b = Version.of(*one), Version.of(*other)
    assert (a < b) == (one < other)
    assert (a.hex() < b.hex()) == (one < other)
    assert (a.millis, a.counter, a.node) == one
    assert Version.parse(a.hex()) == a


@given(st.lists(st.floats(0, 4_000_000_000), min_size=1, max_size=40))
def test_versions_grow_whatever_the_time_does(times):
    """Each version is above the one before, wherever the wall clock steps."""
    now = iter(times)
    clock = Clock(now=lambda: next(now))
    issued = [clock.tick() for _ in times]
    assert all(a < b for a, b in itertools.pairwise(issued))


@given(st.lists(st.tuples(st.floats(1000, 1010), st.integers(1, 5)), min_size=2, max_size=12))
def test_versions_grow_across_restarts(lives):
    """With a mark, no incarnation issues a version at or below one of an earlier one."""
    mark, last = Mark(), b""
    for wall, ticks in lives:
        clock = Clock(now=lambda wall=wall: wall, mark=mark)
        for _ in range(ticks):
            version = clock.tick()
            assert version > last
            last = version


def test_quick_restarts_do_not_run_away():
    """A thousand restarts within a millisecond move the clock by about a second."""
    mark = Mark()
    for _ in range(1000):
        version = Clock(now=lambda: 1000.0, mark=mark).tick()
    assert version.millis < 1_000_000 + 1000 + 1000 + 10


def test_mark_file_survives(tmp_path):
    """A mark file survives a restart, and a damaged one raises an error."""
    path = tmp_path / "mark"
    first = Clock(now=lambda: 1000.0, mark=MarkFile(path)).tick()
    assert Clock(now=lambda: 1.0, mark=MarkFile(path)).tick() > first
    path.write_text("garbage", encoding="ascii")
    with pytest.raises(ConfigError, match="mark"):
        Clock(mark=MarkFile(path))


def test_counter_carries_into_the_milliseconds():
    """The order stays when the counter overflows within one millisecond."""
    clock = Clock(now=lambda: 1.0)
    issued = [clock.tick() for _ in range(2**16 + 3)]
    assert issued == sorted(set(issued))
    assert issued[-1].millis == 1001


@given(parts)
def test_observe_is_beaten_by_the_next_version(part):
    """The next version after ``observe`` is above the observed one."""
    version = Version.of(min(part[0], 2**47), part[1], part[2])
    clock = Clock(now=lambda: 1.0)
    clock.observe(version, max_drift=float("inf"))
    assert clock.tick() > version


def test_drift_is_refused_and_changes_nothing():
    """A version too far ahead is refused, and the clock does not move."""
    clock = Clock(now=lambda: 1000.0, max_drift=5.0)
    clock.observe(Version.of(1_005_000))
    before = clock.tick()
    with pytest.raises(ClockDriftError, match="in the future"):
        clock.observe(Version.of(1_005_001))
    after = clock.tick()
    assert (after.millis, after.counter) == (before.millis, before.counter + 1)


def test_nodes_differ():
    """Two clocks are two nodes, and a child after a fork is a third."""
    clock = Clock()
    assert clock.node != Clock().node
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, clock.tick())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        os.close(writer)
        assert Version(pipe.read(16)).node != clock.node


def test_threads_get_versions_of_their_own():
    """Many threads on one clock never get the same version."""
    clock, issued = Clock(), []

    def draw():
        issued.extend([clock.tick() for _ in range(2000)])

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(issued)) == 8000


def test_time_is_that_of_the_wall():
    """A version says when it was issued."""
    assert abs(Clock().tick().time.timestamp() - time.time()) < 1.0
