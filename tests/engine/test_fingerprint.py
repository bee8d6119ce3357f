"""Fingerprints: what counts as a foreign write."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PUT
from eventsync.engine.fingerprint import (
    changed_fields,
    fingerprint_after,
    fingerprint_of,
    patched_fingerprints,
    unset_fields,
    without_new_fields,
)
from eventsync.index import Entry, Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View


class Product(Record):
    id: int = Field(key=True)
    name: str
    price: Decimal | None = None


class Note(Record, rule="field"):
    id: int = Field(key=True)
    text: str | None = None
    price: Decimal | None = None
    pinned: bool | None = None


class Account(Record, rule="field"):
    id: int = Field(key=True)
    level: int = 5
    kind: str | None = "x"


class Wide(Record):
    id: int = Field(key=True)
    name: str
    a: int | None = None
    price: Decimal | None = None
    note: str | None = None
    b: int | None = None
    c: int = 3


WIDE = View().bind(Wide.__record__)
PRODUCT, NOTE = View().bind(Product.__record__), View().bind(Note.__record__)
texts = st.none() | st.sampled_from(["", "a", "b"])
prices = st.none() | st.sampled_from([Decimal("1.5"), Decimal("1.50"), Decimal("2")])
notes = st.fixed_dictionaries(
    {"id": st.just(1), "text": texts, "price": prices, "pinned": st.none() | st.booleans()}
).map(lambda row: {name: row[name] for name in NOTE.fields})
written_values = st.fixed_dictionaries({}, optional={"text": texts, "price": prices})


def entry_of(row, view, body=None):
    """Return the entry of a row that eventsync wrote; ``body``: the values of its change."""
    name = view.record_type.name
    put = Change(type=name, key="1", op=PUT, version=Version.of(1), data=body or row)
    entry = Entry(put.stamp, Presence.PRESENT)
    entry.echo = fingerprint_of(entry, row, view)
    return entry


@given(notes, notes)
def test_each_changed_field_is_found(before, now):
    """Per field exactly the fields with another value count; trailing zeros are no difference."""
    changed = {name: value for name, value in now.items() if value != before[name]}
    assert changed_fields(entry_of(before, NOTE), now, NOTE) == changed


def test_per_record_any_change_counts_for_all_fields():
    """Per record the changed row is returned whole."""
    row = {"id": 1, "name": "Lamp", "price": Decimal("1.5")}
    entry = entry_of(row, PRODUCT)
    assert entry.echo is None  # the digest in the stamp says it already
    assert changed_fields(entry, dict(row), PRODUCT) == {}
    other = row | {"name": "Desk"}
    assert changed_fields(entry, other, PRODUCT) == other


def test_per_record_the_form_of_the_store_counts():
    """If the store altered the values, the fingerprint is of the altered row."""
    body = {"id": 1, "name": "Lamp", "price": Decimal("1.5")}
    row = body | {"name": "LAMP"}
    entry = entry_of(row, PRODUCT, body)
    assert entry.echo is not None
    assert changed_fields(entry, row | {"price": Decimal("1.50")}, PRODUCT) == {}
    assert changed_fields(entry, body, PRODUCT) == body


def test_a_value_in_a_new_field_is_a_foreign_write():
    """A fingerprint that is older than the field says nothing of it, so a value is of others."""
    entry = entry_of({"id": 1, "text": "a"}, NOTE)
    row = {"id": 1, "text": "a", "price": None, "pinned": True}
    assert changed_fields(entry, row, NOTE) == {"pinned": True}
    assert unset_fields(entry, row, NOTE) == {"price": None}


def test_what_fills_a_new_field_is_no_foreign_write():
    """Neither None, nor the default of the field, nor that of the store, is a value."""
    view = View().bind(Account.__record__)
    view.fills = {"level": 7}
    entry = entry_of({"id": 1}, view)
    for row in ({"level": 7, "kind": None}, {"level": 5, "kind": "x"}):
        row = {"id": 1, **row}
        assert changed_fields(entry, row, view) == {}
        noted = Entry(entry.stamp, Presence.PRESENT)
        noted.echo = fingerprint_of(noted, row, view, unset=unset_fields(entry, row, view))
        assert unset_fields(noted, row, view).keys() == {"level", "kind"}
        # Once noted, any other value is a foreign write, even a default.
        other = {"id": 1, "level": 12 - row["level"], "kind": row["kind"]}
        assert changed_fields(noted, other, view) == {"level": other["level"]}


def test_an_unwritten_new_field_stays_without_a_digest():
    """A write of other fields does not make a foreign value of a new field one of eventsync."""
    entry = entry_of({"id": 1, "text": "a"}, NOTE)
    read = {"id": 1, "text": "a", "price": Decimal(9), "pinned": None}
    row = read | {"text": "b"}
    entry.echo = fingerprint_after(entry.echo, row, read=read, written={"text": "b"})
    assert changed_fields(entry, row, NOTE) == {"price": Decimal(9)}
    assert unset_fields(entry, row, NOTE) == {"pinned": None}


def test_per_record_a_new_field_that_is_only_filled_in():
    """The rest of the row is compared, whichever fields are new, and however many."""
    older = {"id": 1, "name": "Lamp", "price": Decimal(2)}
    entry = entry_of(older, WIDE)
    row = older | {"a": None, "b": None, "c": 3, "note": None}
    assert without_new_fields(entry, row, WIDE) == older
    assert changed_fields(entry, row, WIDE) == {}
    for change in ({"name": "Desk"}, {"b": 1}, {"c": 4}):
        assert changed_fields(entry, row | change, WIDE) == row | change


@given(notes, notes, written_values)
def test_a_write_keeps_foreign_writes_to_other_fields(before, read, written):
    """After a write the foreign writes to the other fields are still found, and no others."""
    row = read | written
    entry = entry_of(before, NOTE)
    entry.echo = fingerprint_after(entry.echo, row, read=read, written=written)
    foreign = {n: v for n, v in read.items() if v != before[n] and n not in written}
    assert changed_fields(entry, row, NOTE) == foreign


def test_what_the_store_alters_by_itself_is_no_foreign_write():
    """A store may alter a field that was not written, for example a time of modification."""
    read = {"id": 1, "text": "a", "price": None, "pinned": None}
    entry = entry_of(read, NOTE)
    row = read | {"text": "b", "pinned": True}
    entry.echo = fingerprint_after(entry.echo, row, read=read, written={"text": "b"})
    assert changed_fields(entry, row, NOTE) == {}


@given(notes, written_values)
def test_a_patched_fingerprint_is_that_of_the_row(before, written):
    """The row is not needed to tell the fingerprint after a write."""
    fingerprint = entry_of(before, NOTE).echo
    [patched] = patched_fingerprints([fingerprint], NOTE.fields, [written])
    assert patched == fingerprint_after(fingerprint, before | written, read=before, written=written)


@given(st.lists(st.tuples(st.booleans(), notes, written_values), max_size=5))
def test_fingerprints_of_other_fields_are_not_patched(records):
    """Each result belongs to its record, and is ``None`` where a field is missing."""
    before = []
    for complete, row, _ in records:
        fields = row if complete else {name: row[name] for name in ("id", "text")}
        before.append(entry_of(fields, NOTE).echo)
    patched = patched_fingerprints(before, NOTE.fields, [written for _, _, written in records])
    expected = [
        fingerprint_after(one, row | written, read=row, written=written) if complete else None
        for one, (complete, row, written) in zip(before, records, strict=True)
    ]
    assert patched == expected
    assert patched_fingerprints([None], NOTE.fields, [{}]) == [None]
