"""Views: how one store holds a record type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.errors import ConfigError, FieldError, RejectedError
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View


class Person(Record):
    """A record type with a field of each kind that views treat differently."""

    id: int = Field(key=True)
    name: str
    age: int = 0
    city: str | None = None
    active: bool = True


FIELDS = tuple(Person.__record__.fields)
TEXT = Convert(str, int)
values = st.fixed_dictionaries(
    {"id": st.integers(0, 99), "name": st.text(max_size=5), "age": st.integers(0, 120)},
    optional={"city": st.none() | st.text(max_size=5), "active": st.booleans()},
)
others = st.sets(st.sampled_from([name for name in FIELDS if name != "id"]))


def bound(**options):
    return View(**options).bind(Person.__record__)


@st.composite
def views(draw):
    """Return any view without a filter."""
    omit = draw(others)
    kept = [name for name in FIELDS if name not in omit]
    new = draw(st.sets(st.sampled_from(kept)))
    return bound(
        **{"omit": omit} if draw(st.booleans()) else {"only": kept},
        rename={name: f"{name}_" for name in new},
        convert={name: TEXT for name in ("id", "age") if draw(st.booleans())},
        constant={"source": "crm"} if draw(st.booleans()) else None,
    )


# -- reading and writing ---------------------------------------------------------------------------


@given(values)
def test_a_view_without_options_changes_nothing(values):
    """All fields under their own names, as they are."""
    view = bound()
    assert view.to_store(values) == values == view.to_record(values)
    assert not view.partial
    assert view.matches(values)


@given(views(), values)
def test_what_was_written_is_read_back(view, values):
    """Reading gives the values of the fields that the store holds, and nothing else."""
    stored = {"beside": 1, **view.constant, **view.to_store(values)}
    assert view.to_record(stored) == {n: v for n, v in values.items() if n in view.fields}


@given(values, others)
def test_a_view_holds_the_fields_that_it_names(values, omit):
    """``omit`` and ``only`` say the same in two ways; keys are always held."""
    by_omit = bound(omit=omit)
    by_only = bound(only=[name for name in FIELDS if name not in omit])
    kept = {name: value for name, value in values.items() if name not in omit}
    assert by_omit.fields == by_only.fields == tuple(n for n in FIELDS if n not in omit)
    assert by_omit.to_store(values) == by_only.to_store(values) == kept
    assert by_omit.partial == by_only.partial == bool(omit)


def test_fields_are_renamed():
    """The store has them under other names, which may be those of other fields."""
    view = bound(rename={"name": "age", "age": "name"})
    stored = view.to_store({"id": 1, "name": "Ada", "age": 36})
    assert stored == {"id": 1, "age": "Ada", "name": 36}
    assert view.to_record(stored) == {"id": 1, "name": "Ada", "age": 36}


def test_values_are_converted():
    """Each way with its own function, under the field's name in the record."""
    view = bound(convert={"age": Convert(lambda age: age * 12, lambda months: months // 12)})
    assert view.to_store({"age": 36}) == {"age": 432}
    assert view.to_record({"age": 432}) == {"age": 36}


@pytest.mark.parametrize("way", ["to_store", "to_record"])
def test_a_failing_conversion_names_the_field(way):
    """Whatever it raises becomes a ``RejectedError``; eventsync's own errors stay as they are."""

    def fail(value):
        if value == 1:
            raise FieldError("Person", "age", value, "even")
        raise ZeroDivisionError("oh")

    view = bound(convert={"age": Convert(fail, fail)})
    with pytest.raises(RejectedError, match=rf"Person\.age.*{way}.*ZeroDivisionError"):
        getattr(view, way)({"age": 2})
    with pytest.raises(FieldError):
        getattr(view, way)({"age": 1})


def test_a_value_that_does_not_fit_its_field_is_refused():
    """What a store holds is coerced to the type of its field, or refused."""
    view = bound()
    assert view.to_record({"age": "36"}) == {"age": 36}
    with pytest.raises(FieldError, match="age"):
        view.to_record({"age": "old"})


def test_constants_are_no_fields():
    """A record is added with them; they are neither written by an update nor read."""
    view = bound(constant={"source": "crm"})
    assert view.constant == {"source": "crm"}
    assert view.to_store({"id": 1}) == {"id": 1}
    assert view.to_record({"id": 1, "source": "other"}) == {"id": 1}


# -- the filter ------------------------------------------------------------------------------------


def test_the_filter_says_which_records_live_in_the_store():
    """It may judge by fields that the store does not hold: they are needed all the same."""
    view = bound(only=["id", "name"], where={"active": True})
    assert view.matches({"active": True})
    assert not view.matches({"active": False})
    assert view.judged == {"active"}
    assert view.needed == ("name", "active")
    assert view.fields == ("id", "name")


def test_needed_fields_are_those_held_or_judged_without_the_key():
    """A record can be written as soon as their values are known."""
    assert bound().needed == FIELDS[1:]
    assert bound(omit=["city"]).needed == ("name", "age", "active")
    assert bound().wanted == set(FIELDS[1:])


def test_optional_fields_are_those_that_may_be_empty():
    """Of the fields that the store holds."""
    assert bound().optional == ("city",)
    assert bound(omit=["city"]).optional == ()


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["id", "height"]}, "only.*'height'"),
        ({"omit": ["height"]}, "omit.*'height'"),
        ({"rename": {"height": "h"}}, "rename.*'height'"),
        ({"convert": {"height": TEXT}}, "convert.*'height'"),
        ({"only": ["id"], "omit": ["age"]}, "only.*omit"),
        ({"omit": ["id"]}, "'id'"),
        ({"only": ["name"]}, "'id'"),
        ({"rename": {"name": "age"}}, "'name'.*'age'"),
        ({"constant": {"age": 1}}, "'age'.*constant"),
    ],
)
def test_a_view_that_does_not_fit_its_record_type_is_an_error(options, message):
    """The error names the record type and the field."""
    with pytest.raises(ConfigError, match=f"view of Person: .*{message}"):
        bound(**options)


def test_a_name_that_is_free_may_be_taken():
    """A constant or a renamed field may use the name of a field that is left out."""
    assert bound(omit=["age"], constant={"age": 1}).constant == {"age": 1}
    assert bound(omit=["age"], rename={"name": "age"}).names["name"] == "age"
