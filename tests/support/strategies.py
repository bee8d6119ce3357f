"""What property tests draw from: values that may travel, versions, changes of one record.

Versions come from a small pool, so that collisions happen.
"""

from __future__ import annotations

import datetime as dt
from uuid import UUID, uuid4

from hypothesis import strategies as st

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, Stamp

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
of_type = (
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False, allow_infinity=False),
    text,
    st.binary(max_size=12),
    st.dates(),
    st.times(),
    st.datetimes(),
    # Not at the very ends of the calendar, where no other zone has a date for the moment.
    st.datetimes(
        min_value=dt.datetime(2, 1, 1),
        max_value=dt.datetime(9998, 1, 1),
        timezones=st.timezones() | st.just(dt.UTC),
        # Python takes the hour that a zone has twice a year for equal to nothing in another zone.
    ).filter(lambda moment: moment == moment.astimezone(dt.UTC)),
    st.uuids(),
)
scalars = st.one_of(*of_type)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(text, values, max_size=6)

versions = st.builds(Version.of, st.integers(1, 6), st.integers(0, 1), st.integers(0, 1))
FIELDS = ("a", "b", "c")
_small = st.integers(0, 2)
_patches = st.dictionaries(st.sampled_from(FIELDS), _small, min_size=1)
_puts = st.fixed_dictionaries(dict.fromkeys(FIELDS, _small))


def change(op, version, data, known=None):
    """A change of the one record that these tests are about."""
    return Change(
        type="T", key="k", op=op, version=version, data=data, id=UUID(int=1).bytes, known=known
    )


puts = st.builds(change, st.just(PUT), versions, _puts)
deletes = st.builds(change, st.just(DELETE), versions, st.none())


@st.composite
def patches(draw):
    """A patch, sometimes with what its origin knew beside it, which is never later than itself."""
    data = draw(_patches)
    if draw(st.booleans()):
        return change(PATCH, draw(versions), data)
    stamp = draw(puts).stamp
    names = [name for name in FIELDS if name not in data]
    later = st.builds(Version.of, st.integers(stamp.version.millis + 1, 8))
    known = BaseState(
        stamp,
        {name: draw(_small) for name in names},
        {name: draw(later) for name in names if draw(st.booleans())},
    )
    newest = max([stamp.version, *known.versions.values()])
    return change(PATCH, max(newest, draw(versions)), data, known)


per_record = st.lists(st.one_of(puts, puts, deletes), max_size=8)
per_field = st.lists(st.one_of(puts, deletes, patches(), patches()), max_size=8)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def published_changes(draw):
    """A change as any producer may make it."""
    op = draw(st.sampled_from([PUT, PATCH, DELETE]))
    known = None
    version = Version(draw(st.binary(min_size=16, max_size=16)))
    if op == PATCH and draw(st.booleans()):
        stamp = Stamp(
            Version.of(draw(st.integers(0, 9)))
            + b"\x01"
            + draw(st.binary(min_size=32, max_size=32))
        )
        known = BaseState(
            stamp,
            draw(bodies),
            draw(st.dictionaries(names, st.builds(Version.of, st.integers(10, 99)), max_size=3)),
        )
        version = max([version, stamp.version, *known.versions.values()])
    return Change(
        type=draw(names),
        key=draw(names),
        op=op,
        version=version,
        data=None if op == DELETE else draw(bodies),
        source=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        id=uuid4().bytes,
        schema=draw(st.integers(0, 2**63 - 1)),
        hops=draw(st.integers(0, 99)),
        ext=draw(bodies.filter(lambda ext: "" not in ext)),
        known=known,
    )


PLAIN = Change(type="T", key="1", op=PUT, version=Version.of(5), data={"a": 1, "b": "é"})
"""A put of two fields, small enough to read in a failing test."""
