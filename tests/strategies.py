"""What property tests draw from: values that may travel, versions, changes of one record.

Versions come from a small pool, so that collisions happen.
"""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from hypothesis import strategies as st

from eventsync.changes.change import Change, Known
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT

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
    """A patch, sometimes with what its origin knew beside it."""
    version, data = draw(versions), draw(_patches)
    if draw(st.booleans()):
        return change(PATCH, version, data)
    stamp = draw(puts).stamp
    names = [name for name in FIELDS if name not in data]
    later = st.builds(Version.of, st.integers(stamp.version.millis + 1, 8))
    known = Known(
        stamp,
        {name: draw(_small) for name in names},
        {name: draw(later) for name in names if draw(st.booleans())},
    )
    return change(PATCH, version, data, known)


per_record = st.lists(st.one_of(puts, puts, deletes), max_size=8)
per_field = st.lists(st.one_of(puts, deletes, patches(), patches()), max_size=8)
