"""Tests of records, their fields, their keys and their schema."""

from __future__ import annotations

import copy
import datetime as dt
import math
import pickle
from collections.abc import Mapping
from decimal import Decimal, localcontext
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.errors import FieldError, RecordError
from eventsync.records.field import MISSING
from eventsync.records.record import AbsentFieldError, Field, Record, RecordType
from eventsync.records.record_type import same
from eventsync.values import packing as travel

UTC = dt.UTC
NOON = dt.datetime(2026, 11, 24, 12)


class Status(Enum):
    """An enumeration of strings."""

    OPEN = "open"
    SHUT = "shut"


class Level(IntEnum):
    """An enumeration of integers."""

    LOW = 1
    HIGH = 2


class Artist(Record):
    """A record to refer to."""

    id: int = Field(key=True)
    name: str | None = None


class Track(Record, name="track"):
    """A record with a composite key, part of which is a reference."""

    artist: Artist = Field(key=True)
    title: str = Field(key=True)


class Customer(Record, name="customer", rule="field", schema=2):
    """A record with a field of most kinds."""

    id: int = Field(key=True, description="the number on the card")
    name: str = Field(length=5)
    balance: Decimal = Decimal(0)
    tags: list[str] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)
    born: dt.date | None = None
    status: Status = Status.OPEN
    artist: Artist | None = None
    track: Track | None = None
    boss: Customer | None = None
    pin: str = Field(default="0000", secret=True)


def customer(**values: Any) -> Customer:
    """A customer as a store holds it."""
    return Customer.load({"id": 1, "name": "Ann", **values})


def field_of(kind: Any, **options: Any) -> Field:
    """A bound field of that type."""
    fields = {"key": Field(type=int, key=True), "it": Field(type=kind, **options)}
    return Record.derive("thing", fields).__record__.fields["it"]


def type_of(*kinds: Any) -> RecordType:
    """A record type whose key has these types."""
    fields = {f"k{place}": Field(type=kind, key=True) for place, kind in enumerate(kinds)}
    return Record.derive("thing", fields).__record__


class FakeStore:
    """A store that keeps raw values, cleans what it has written as stores do, and can fail."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.held: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []

    def update(self, record: Record, /, *, upsert: bool) -> None:
        """Keep the record."""
        if self.fails or not upsert:
            raise OSError("down")
        self.changes.append(record.changes())
        self.held[record.key] = record.raw()
        record.clean()

    def remove(self, record: Record, /) -> None:
        """Drop the record."""
        if self.fails:
            raise OSError("down")
        del self.held[record.key]

    def record_to_data(self, record: Record, /) -> str:
        """Give a form of the store's own."""
        return f"<{record.key}>"


class TestDeclaration:
    """Declarations by class statements."""

    def test_the_description_says_what_was_declared(self) -> None:
        """``__record__`` has the name, keys, rule, schema and fields with their options."""
        described = Customer.__record__
        assert (described.name, described.rule, described.schema) == ("customer", "field", 2)
        assert described.cls is Customer
        assert described.keys == ("id",)
        assert list(described.fields)[:3] == ["id", "name", "balance"]
        assert described.fields["id"].description == "the number on the card"
        assert described.fields["id"].required
        assert described.fields["born"].optional
        assert not described.fields["born"].required
        assert Artist.__record__.name == "Artist"
        assert Artist.__record__.rule == "record"

    def test_a_field_has_the_class_of_its_plain_values(self) -> None:
        """A field's ``type`` is that of an enumeration's values, and that of a referenced key."""
        types = {name: field.type for name, field in Customer.__record__.fields.items()}
        assert types["status"] is str
        assert types["artist"] is int
        assert types["track"] is str
        assert types["boss"] is int
        assert types["tags"] is list
        assert types["extra"] is dict
        assert Customer.__record__.fields["status"].annotation is Status
        assert Customer.__record__.fields["born"].annotation is dt.date

    def test_fields_are_inherited_from_mixins_and_bases(self) -> None:
        """Fields are inherited from mixins and other records in the order of the MRO."""

        class Dated:
            registry: ClassVar[list[str]] = []
            made: dt.date | None = None

        class Named(Record, abstract=True):
            name: str = "?"

        class Thing(Dated, Named):
            id: int = Field(key=True)

        class Special(Thing):
            name: str = "special"
            size: int = 1

        assert list(Special.__record__.fields) == ["name", "made", "id", "size"]
        assert Special(id=1).raw() == {"id": 1, "name": "special", "made": None, "size": 1}
        assert Thing(id=1).name == "?"

    def test_an_abstract_record_has_no_instances(self) -> None:
        """Making a record of an abstract class raises an error that says it is abstract."""

        class Base(Record, abstract=True):
            size: int = 1

        with pytest.raises(RecordError, match="abstract"):
            Base()
        with pytest.raises(RecordError, match="abstract"):
            Record.load({})

    def test_types_local_to_a_function_are_found(self) -> None:
        """An annotation may use a local name of the function around the class."""

        class Colour(StrEnum):
            RED = "red"

        class Paint(Record):
            id: int = Field(key=True)
            colour: Colour = Colour.RED

        assert Paint(id=1).colour is Colour.RED

    def test_the_identifier_is_the_key_when_none_is_named(self) -> None:
        """The identifier is the key unless another field is declared as the key."""

        class Ticket(Record):
            id: UUID = Field(identifier=True, default=UUID(int=7))

        class Coded(Record):
            id: int = Field(identifier=True, default=0)
            code: str = Field(key=True)

        assert Ticket.__record__.keys == ("id",)
        assert Ticket.__record__.fields["id"].key
        assert Ticket().key == str(UUID(int=7))
        assert Coded.__record__.keys == ("code",)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"a": Field(type=int)}, "no key field"),
            ({"a": Field(type=int | None, key=True)}, "optional"),
            ({"a": Field(type=float, key=True)}, "a key field cannot be a number"),
            ({"a": Field(type=list[int], key=True)}, "a key field cannot be a list"),
            ({"a": Field(type=str, key=True, secret=True)}, "secret"),
            ({"a": Field(key=True)}, "no type"),
            ({"a": Field(type=complex, key=True)}, "complex"),
            ({"a": Field(type=int | str, key=True)}, "is a union"),
            ({"a": Field(type=int, key=True, length=3)}, "length is for"),
            ({"a": Field(type=str, key=True, length=0)}, "at least 1"),
            ({"a": Field(type=str, key=True, minimum=3)}, "minimum"),
            ({"a": Field(type=dt.date, key=True, zoned=True)}, "zoned"),
            ({"a": Field(type=int, key=True, default="x")}, "'x'"),
            (
                {"a": Field(type=int, key=True, default=1, default_factory=int)},
                "both a default and a default_factory",
            ),
            ({"a": Field(type=int, key=True), "b": Field(type=list, default=[])}, "would share"),
            (
                {"a": Field(type=int, key=True), "b": Field(type=dict[int, str])},
                "keys that are not str",
            ),
            ({"a": Field(type=Literal["x", 1], key=True)}, "all strings or all integers"),
            (
                {"a": Field(type=int, identifier=True), "b": Field(type=int, identifier=True)},
                "all declared as the identifier",
            ),
        ],
    )
    def test_a_contradictory_declaration_is_refused(
        self, fields: dict[str, Field], said: str
    ) -> None:
        """The error names the record type and what is wrong."""
        with pytest.raises(RecordError, match=said) as caught:
            Record.derive("thing", fields)
        assert "thing" in str(caught.value)

    @pytest.mark.parametrize("name", ["", "1st", "a b", "é", "x" * 129])
    def test_a_type_name_that_is_no_name_is_refused(self, name: str) -> None:
        """Type names become parts of routing keys, so their characters are restricted."""
        with pytest.raises(RecordError, match="a record type cannot have the name"):
            Record.derive(name, {"a": Field(type=int, key=True)})

    @pytest.mark.parametrize("keywords", [{"rule": "merge"}, {"schema": -1}, {"schema": True}])
    def test_a_wrong_rule_or_schema_is_refused(self, keywords: dict[str, Any]) -> None:
        """The rule must be one of two, and the schema number an integer of at least 0."""
        with pytest.raises(RecordError):
            Record.derive("thing", {"a": Field(type=int, key=True)}, **keywords)

    def test_a_field_cannot_take_a_name_that_records_use(self) -> None:
        """The error tells the user to rename the field and to map it in the view."""
        with pytest.raises(RecordError, match="rename="):

            class Wrong(Record):
                key: int = Field(key=True)  # type: ignore[assignment]

    def test_a_value_without_annotation_cannot_hide_a_field(self) -> None:
        """A class attribute that hides an inherited field is refused."""
        with pytest.raises(RecordError, match="hides"):

            class Wrong(Artist):
                name = "x"

    def test_an_annotation_that_names_nothing_is_refused(self) -> None:
        """The error names the field and the missing name."""
        with pytest.raises(RecordError, match=r"Wrong\.id.*Nothing"):

            class Wrong(Record):
                id: Nothing = Field(key=True)  # type: ignore[name-defined]  # noqa: F821

    def test_a_key_cannot_refer_to_its_own_type(self) -> None:
        """A key field that refers to its own record type is refused."""
        with pytest.raises(RecordError, match="its own record type"):

            class Wrong(Record):
                id: Wrong = Field(key=True)

    def test_a_derived_type_takes_any_field_name(self) -> None:
        """``record["name"]`` reaches fields named like methods or not like identifiers."""
        fields = {
            "key": Field(type=int, key=True),
            "Full Name": Field(type=str | None),
            "copy": Field(type=str, default="x"),
        }
        Thing = Record.derive("dbo.Thing", fields, rule="field", schema=3)  # noqa: N806
        thing = Thing.load({"key": 7})
        assert thing["key"] == 7
        assert thing.key == "7"
        assert thing["Full Name"] is None
        thing["copy"] = "y"
        assert thing.dirty == {"copy"}
        assert thing.copy(key=8).raw() == {"key": 8, "Full Name": None, "copy": "y"}
        assert (Thing.__record__.rule, Thing.__record__.schema) == ("field", 3)

    def test_a_type_checker_knows_constructor_and_attributes(self) -> None:
        """Strict mypy accepts the right lines of a sample and refuses its wrong ones."""
        api = pytest.importorskip("mypy.api")
        sample = Path(__file__).parent / "typing" / "records.py"
        options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports"]
        out, _, status = api.run([*options, str(sample)])
        assert status == 0, out


# Kind, options, what comes, what it becomes.
COERCED = [
    (int, {}, "12", 12),
    (int, {}, b" -12 ", -12),
    (int, {}, 3.0, 3),
    (int, {}, Decimal("3.00"), 3),
    (int, {}, Level.HIGH, 2),
    (float, {}, 3, 3.0),
    (float, {}, "1e3", 1000.0),
    (float, {}, b"2.5", 2.5),
    (float, {}, Decimal("2.5"), 2.5),
    (float, {}, math.inf, math.inf),
    (Decimal, {}, "1.10", Decimal("1.10")),
    (Decimal, {}, b"1.10", Decimal("1.10")),
    (Decimal, {}, 5, Decimal(5)),
    (Decimal, {}, 0.1, Decimal("0.1")),
    (bool, {}, 1, True),
    (bool, {}, 0, False),
    (bool, {}, "True", True),
    (bool, {}, b"0", False),
    (str, {}, "grün".encode(), "grün"),
    (str, {}, Status.OPEN.value, "open"),
    (bytes, {}, bytearray(b"x"), b"x"),
    (bytes, {}, memoryview(b"x"), b"x"),
    (dt.date, {}, "2026-11-24", dt.date(2026, 11, 24)),
    (dt.date, {}, b"2026-11-24", dt.date(2026, 11, 24)),
    (dt.date, {}, "2026-11-24 00:00:00", dt.date(2026, 11, 24)),
    (dt.date, {}, dt.datetime(2026, 11, 24), dt.date(2026, 11, 24)),
    (dt.time, {}, "12:30", dt.time(12, 30)),
    (dt.datetime, {}, "2026-11-24T12:00:00", NOON),
    (dt.datetime, {}, "2026-11-24T12:00:00Z", NOON.replace(tzinfo=UTC)),
    (dt.datetime, {}, dt.date(2026, 11, 24), dt.datetime(2026, 11, 24)),
    (dt.datetime, {"zoned": True}, "2026-11-24T12:00:00+00:00", NOON.replace(tzinfo=UTC)),
    (dt.datetime, {"zoned": False}, "2026-11-24T12:00:00", NOON),
    (UUID, {}, str(UUID(int=5)), UUID(int=5)),
    (UUID, {}, UUID(int=5).bytes, UUID(int=5)),
    (UUID, {}, str(UUID(int=5)).encode(), UUID(int=5)),
    (Status, {}, Status.SHUT, "shut"),
    (Status, {}, b"shut", "shut"),
    (Level, {}, "2", 2),
    (Literal["a", "b"], {}, "a", "a"),
    (Literal[1, 2, None], {}, None, None),
    (list[Decimal], {}, ("1", 2), [Decimal(1), Decimal(2)]),
    (list[int | None], {}, [1, None, "3"], [1, None, 3]),
    (list, {}, (1, (2, {"a": Status.OPEN})), [1, [2, {"a": "open"}]]),
    (dict[str, dt.date], {}, {"a": "2026-11-24"}, {"a": dt.date(2026, 11, 24)}),
    (dict, {}, {"a": None}, {"a": None}),
    (Any, {}, {"a": (1,)}, {"a": [1]}),
    (Any, {}, None, None),
    (Artist, {}, "5", 5),
    (Artist, {}, Artist(id=5), 5),
    (Track, {}, Track(artist=5, title="a/b"), "5/a%2Fb"),
    (Track, {}, ("5", "a/b"), "5/a%2Fb"),
    (Track, {}, "5/a%2Fb", "5/a%2Fb"),
    (int | None, {}, None, None),
    (str, {"length": 2}, "éé", "éé"),
    (int, {"minimum": 1, "maximum": 3}, "3", 3),
    (int, {"minimum": 1, "maximum": 3}, "1", 1),
]

# Kind, options, what is refused, what is said of it.
REFUSED = [
    (int, {}, True, "an integer"),
    (int, {}, 3.5, "an integer"),
    (int, {}, "1_000", "an integer"),
    (int, {}, "", "an integer"),
    (int, {}, None, "an integer"),
    (int, {}, Decimal("1E+999999"), "an integer"),
    (int, {}, math.inf, "an integer"),
    (int, {}, "9" * 5000, "an integer"),
    (float, {}, "1_0", "a number"),
    (Decimal, {}, "1_0", "a decimal number"),
    (float, {}, math.nan, "a number"),
    (float, {}, "nan", "a number"),
    (float, {}, False, "a number"),
    (float, {}, 10**400, "a number"),
    (Decimal, {}, Decimal("NaN"), "a decimal number"),
    (Decimal, {}, Decimal("Infinity"), "a decimal number"),
    (Decimal, {}, "-Infinity", "a decimal number"),
    (Decimal, {}, True, "a decimal number"),
    (bool, {}, 2, "a boolean"),
    (bool, {}, "yes", "a boolean"),
    (bool, {}, 1.0, "a boolean"),
    (str, {}, 5, "a string"),
    (str, {}, "\ud800", "a string"),
    (str, {}, b"\xff", "a string"),
    (bytes, {}, "x", "bytes"),
    (dt.date, {}, "2026-02-30", "a date"),
    (dt.date, {}, NOON, "a date"),
    (dt.date, {}, "2026-11-24T00:00:00Z", "a date"),
    (dt.date, {}, 0, "a date"),
    (dt.time, {}, "25:00", "a time"),
    (dt.datetime, {}, 1_700_000_000, "a datetime"),
    (dt.datetime, {"zoned": True}, NOON, "with an offset"),
    (dt.datetime, {"zoned": False}, NOON.replace(tzinfo=UTC), "without an offset"),
    (UUID, {}, "x", "a UUID"),
    (UUID, {}, 5, "a UUID"),
    (Status, {}, "OPEN", "one of 'open', 'shut'"),
    (Status, {}, Level.LOW, "one of"),
    (Level, {}, True, "one of 1, 2"),
    (Literal["a", "b"], {}, "c", "one of"),
    (list[int], {}, {1, 2}, "a list"),
    (list[int], {}, [None], "an integer"),
    (list, {}, [0] * 1025, "may travel"),
    (list, {}, [object()], "a value that may travel"),
    (list, {}, [math.nan], "a number"),
    (dict, {}, {1: 2}, "a dict with string keys"),
    (dict, {}, {"\ud800": 2}, "a dict with string keys"),
    (Any, {}, {"a": {1: 2}}, "a value that may travel"),
    (Artist, {}, Track(artist=1, title="x"), "the key of a Artist"),
    (Artist, {}, Customer(id=1, name="Ann"), "the key of a Artist"),
    (Artist, {}, "x", "the key of a Artist"),
    (Track, {}, "5", "the key of a track"),
    (str, {"length": 2}, "ééé", "at most 2 characters"),
    (bytes, {"length": 2}, b"xyz", "at most 2 bytes"),
    (int, {"minimum": 1, "maximum": 3}, 4, "of at least 1 and at most 3"),
    (int, {"minimum": 1}, 0, "of at least 1"),
]


class TestCoercion:
    """The conversion of foreign values."""

    @pytest.mark.parametrize(("kind", "options", "given_value", "expected"), COERCED)
    def test_what_is_meant_is_understood(
        self, kind: Any, options: dict[str, Any], given_value: Any, expected: Any
    ) -> None:
        """A convertible value becomes a plain value of exactly the expected class."""
        field = field_of(kind, **options)
        coerced = field.coerce(given_value)
        assert same(coerced, expected)
        assert same(field.coerce(coerced), coerced)
        travel.check(coerced)

    @pytest.mark.parametrize(("kind", "options", "value", "expected"), REFUSED)
    def test_what_does_not_fit_is_refused(
        self, kind: Any, options: dict[str, Any], value: Any, expected: str
    ) -> None:
        """The error names record, field, value and what was expected."""
        with pytest.raises(FieldError) as caught:
            field_of(kind, **options).coerce(value)
        assert caught.value.record == "thing"
        assert caught.value.field.startswith("it")
        assert expected in caught.value.expected

    def test_an_error_inside_a_list_or_dict_says_where(self) -> None:
        """The error names the path to the wrong element."""
        with pytest.raises(FieldError) as caught:
            field_of(dict[str, list[int]]).coerce({"a": [1, "x"]})
        assert caught.value.field == "it['a'][1]"
        assert caught.value.value == "x"

    @pytest.mark.parametrize("value", [5, "x" * 9])
    def test_a_secret_value_is_in_no_error(self, value: Any) -> None:
        """Neither the error nor anything chained to it holds the value."""
        with pytest.raises(FieldError) as caught:
            field_of(str, secret=True, length=3).coerce(value)
        assert str(value) not in str(caught.value)
        assert "***" in str(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None

    def test_a_secret_dict_shows_no_key(self) -> None:
        """The path to a wrong element is hidden too, because it shows dict keys."""
        with pytest.raises(FieldError) as caught:
            field_of(dict[str, int], secret=True).coerce({"hunter2": "x"})
        assert "hunter2" not in str(caught.value)

    def test_a_list_that_holds_itself_is_refused(self) -> None:
        """A value that contains itself raises an error."""
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(FieldError):
            field_of(list).coerce(endless)

    def test_coercion_shares_nothing_with_its_argument(self) -> None:
        """Altering the given list later does not alter the value."""
        given_value = {"a": [1]}
        coerced = field_of(dict).coerce(given_value)
        given_value["a"].append(2)
        assert coerced == {"a": [1]}

    def test_the_decimal_context_does_not_round(self) -> None:
        """A decimal keeps its digits in any decimal context."""
        digits = "1." + "123456789" * 5
        with localcontext() as context:
            context.prec = 5
            assert str(field_of(Decimal).coerce(digits)) == digits

    @given(st.data())
    def test_coercion_is_idempotent(self, data: st.DataObject) -> None:
        """Conversion is idempotent, and its result can travel."""
        scalars = st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.decimals(),
            st.text(alphabet="0123456789.-e%TZ:\ud800é"),
            st.binary(max_size=20),
            st.dates(),
            st.times(),
            st.datetimes(timezones=st.none() | st.just(UTC)),
            st.uuids(),
        )
        value = data.draw(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)))
        kinds = [bool, int, float, Decimal, str, bytes, dt.date, dt.time, dt.datetime, UUID]
        kind = data.draw(st.sampled_from([*kinds, Status, Level, Any, list, list[int | None]]))
        field = field_of(kind)
        try:
            coerced = field.coerce(value)
        except FieldError:
            return
        assert same(field.coerce(coerced), coerced)
        assert coerced is None or field.type is object or type(coerced) is field.type
        travel.pack(coerced)


class TestLoad:
    """The check of a whole record's values."""

    def test_defaults_are_filled_in(self) -> None:
        """Absent fields get their defaults, as plain values."""
        loaded = Customer.__record__.load({"id": "1", "name": b"Ann"})
        assert loaded == {
            "id": 1,
            "name": "Ann",
            "balance": Decimal(0),
            "tags": [],
            "extra": {},
            "born": None,
            "status": "open",
            "artist": None,
            "track": None,
            "boss": None,
            "pin": "0000",
        }

    def test_a_default_is_a_new_one_each_time(self) -> None:
        """Two records do not share the list of their default."""
        described = Customer.__record__
        assert described.default_for("tags") is not described.default_for("tags")
        nested = field_of(Any, default=({"a": [1]},))
        nested.make_default()[0]["a"].append(2)
        assert nested.make_default() == [{"a": [1]}]

    def test_partial_data_stay_partial(self) -> None:
        """A partial load fills in no defaults and checks the given values."""
        described = Customer.__record__
        assert described.load({"id": 1}, partial=True) == {"id": 1}
        with pytest.raises(FieldError):
            described.load({"id": "x"}, partial=True)

    def test_a_required_field_must_be_given(self) -> None:
        """The error names the field and says that it has no default."""
        with pytest.raises(FieldError, match=r"customer\.name.*no default") as caught:
            Customer.__record__.load({"id": 1})
        assert caught.value.field == "name"
        assert caught.value.value is MISSING

    def test_unknown_fields_are_refused_or_ignored(self) -> None:
        """The error names the unknown fields and the declared ones."""
        with pytest.raises(RecordError, match=r"no field 'x', 'y' \(the fields are id, name"):
            Customer.__record__.load({"id": 1, "x": 1, "y": 2})
        loaded = Customer.__record__.load({"id": 1, "x": 1}, partial=True, unknown="ignore")
        assert loaded == {"id": 1}


KEY_VALUES: Mapping[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(10**40), 10**40),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.text("%/25Ff ", max_size=20),
    bytes: st.binary(max_size=20),
    dt.date: st.dates(),
    dt.time: st.times(),
    dt.datetime: st.datetimes(
        min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1), timezones=st.none()
    )
    | st.datetimes(
        min_value=dt.datetime(2, 1, 1),
        max_value=dt.datetime(9998, 1, 1),
        timezones=st.sampled_from([UTC, dt.timezone(dt.timedelta(hours=-7, minutes=30))]),
    ),
    UUID: st.uuids(),
    Status: st.sampled_from(["open", "shut"]),
    Level: st.sampled_from([1, 2]),
    Artist: st.integers(),
    Track: st.sampled_from(["1/a", "2/%252F%25", "3/%2F"]),
}


class TestKey:
    """The canonical text of a key."""

    @given(st.data())
    def test_keys_survive_the_way_to_text_and_back(self, data: st.DataObject) -> None:
        """``key_values`` inverts ``key_text`` for keys of all types."""
        kinds = data.draw(st.lists(st.sampled_from(list(KEY_VALUES)), min_size=1, max_size=3))
        described = type_of(*kinds)
        values = {f"k{n}": data.draw(KEY_VALUES[kind]) for n, kind in enumerate(kinds)}
        text = described.key_text(values)
        back = described.key_values(text)
        assert back == values
        assert described.key_text(back) == text
        assert described.key_of(tuple(values.values())) == text

    @given(st.text(max_size=12) | st.text("%25F/-+0.eE1T:Z", max_size=12), st.data())
    def test_every_accepted_text_is_the_one_of_its_key(
        self, text: str, data: st.DataObject
    ) -> None:
        """A text is refused with ``FieldError``, or it is the canonical one."""
        kinds = data.draw(st.lists(st.sampled_from(list(KEY_VALUES)), min_size=1, max_size=2))
        described = type_of(*kinds)
        try:
            values = described.key_values(text)
        except FieldError:
            return
        assert described.key_text(values) == text

    @given(st.data())
    def test_many_keys_are_read_as_each_of_them(self, data: st.DataObject) -> None:
        """``key_columns`` returns what ``key_values`` returns for each key."""
        kinds = data.draw(st.lists(st.sampled_from(list(KEY_VALUES)), min_size=1, max_size=2))
        described = type_of(*kinds)
        wild = st.text("%25F/-+0.eE1T:Z", max_size=12)
        values = st.tuples(*(KEY_VALUES[kind] for kind in kinds))
        sound = data.draw(st.lists(values.map(described.key_of), min_size=1, max_size=3))
        texts = [*sound, *data.draw(st.lists(wild, max_size=1))]
        try:
            expected = [tuple(described.key_values(text).values()) for text in texts]
        except FieldError:
            assert described.key_columns(texts) is None
            return
        columns = described.key_columns(texts)
        if columns is not None:
            assert same(list(map(list, zip(*columns, strict=True))), list(map(list, expected)))
        else:
            assert not all(
                field.scalar and field.verify is None for field in described.fields.values()
            )

    @pytest.mark.parametrize(
        ("kinds", "texts"),
        [
            ([int], ["1", "2"]),
            ([int], ["1", "01"]),
            ([int], ["1", "+1"]),
            ([int], ["1", "\u0661"]),
            ([int], ["1", "1/1"]),
            ([Decimal], ["1", "1.0"]),
            ([str], ["a", "%25"]),
            ([str], ["a", "%41"]),
            ([str], ["a", "a" * 513]),
            ([str, int], ["a/1", "a%2F/2"]),
            ([str, int], ["a/1", "a%2f/2"]),
            ([str, int], ["a/1", "a"]),
        ],
    )
    def test_of_many_keys_each_text_is_the_one_of_its_key(
        self, kinds: list[Any], texts: list[str]
    ) -> None:
        """A text that is not canonical is no key."""
        described = type_of(*kinds)
        try:
            expected = [described.key_values(text) for text in texts]
        except FieldError:
            assert described.key_columns(texts) is None
            return
        columns = described.key_columns(texts)
        assert columns is not None
        assert [tuple(values.values()) for values in expected] == list(zip(*columns, strict=True))

    @given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
    def test_different_keys_have_different_texts(self, a: str, b: str, c: str, d: str) -> None:
        """Different components have different keys, whatever separators they contain."""
        described = type_of(str, str)
        one, other = {"k0": a, "k1": b}, {"k0": c, "k1": d}
        assert (described.key_text(one) == described.key_text(other)) == (one == other)

    @pytest.mark.parametrize(
        ("kind", "one", "other", "text"),
        [
            (Decimal, "1.10", "1.1", "1.1"),
            (Decimal, "100", "1E+2", "100"),
            (Decimal, "-0.00", "0", "0"),
            (Decimal, "1E+60", "10E+59", "1E+60"),
            (int, "1", 1, "1"),
            (bool, 1, "true", "true"),
            (bytes, b"\xff/", bytearray(b"\xff/"), "ff2f"),
            (
                dt.datetime,
                "2026-11-24T12:00:00Z",
                "2026-11-24T13:00:00+01:00",
                "2026-11-24T12:00:00+00:00",
            ),
            (Status, Status.OPEN, "open", "open"),
            (str, "a/b%", b"a/b%", "a%2Fb%25"),
        ],
    )
    def test_equal_keys_have_one_text(self, kind: Any, one: Any, other: Any, text: str) -> None:
        """Values in another form give the same key."""
        described = type_of(kind)
        assert described.key_of(one) == described.key_of(other) == text

    def test_decimals_that_differ_late_have_different_keys(self) -> None:
        """A key keeps every digit of a decimal, in any decimal context."""
        described = type_of(Decimal)
        digits = "1" * 40
        assert described.key_of(f"{digits}1") != described.key_of(f"{digits}2")

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (int, "01"),
            (int, "+1"),
            (int, " 1"),
            (int, "1/2"),
            (int, "x"),
            (str, "a%2fb"),
            (str, "100%"),
            (str, "a/b"),
            (Decimal, "1.0"),
            (bool, "1"),
            (bytes, "FF"),
            (bytes, "f f"),
            (dt.date, "20261124"),
            (dt.datetime, "2026-11-24T13:00:00+01:00"),
            (str, "x" * 513),
        ],
    )
    def test_a_text_that_is_not_canonical_is_refused(self, kind: Any, text: str) -> None:
        """Only the canonical text is a key, so that no record has two."""
        with pytest.raises(FieldError):
            type_of(kind).key_values(text)

    @pytest.mark.parametrize("value", [None, MISSING, "x", (1, 2), ()])
    def test_a_value_that_is_no_key_is_refused(self, value: Any) -> None:
        """A value that no key can have is refused; ``None``, for example."""
        with pytest.raises(FieldError):
            type_of(int).key_of(value)

    def test_a_key_may_have_512_characters(self) -> None:
        """A key may have 512 characters and no more."""
        described = type_of(str, str)
        assert len(described.key_of(("x" * 500, "y" * 11))) == 512
        with pytest.raises(FieldError, match="512"):
            described.key_of(("x" * 500, "y" * 12))

    def test_a_time_with_a_zone_is_no_key(self) -> None:
        """A time with a zone cannot be a key."""
        with pytest.raises(FieldError):
            type_of(dt.time).key_of("12:00+01:00")

    def test_an_absent_part_is_named(self) -> None:
        """The error says which key field is missing."""
        with pytest.raises(FieldError) as caught:
            type_of(int, int).key_text({"k0": 1})
        assert caught.value.field == "k1"


class TestRecord:
    """Records themselves."""

    def test_fields_are_attributes_and_items(self) -> None:
        """An attribute returns the enumeration's member, an item the plain value."""
        record = customer(status="shut", artist=Artist(id=5))
        assert record.status is Status.SHUT
        assert record["status"] == "shut"
        assert record.artist == 5
        record.name = b"Bob"  # type: ignore[assignment]
        record["status"] = Status.OPEN
        assert (record.name, record["status"]) == ("Bob", "open")
        assert "name" in record
        assert Customer.name is Customer.__record__.fields["name"]

    def test_setting_checks_the_value(self) -> None:
        """A refused value leaves the record unchanged."""
        record = customer()
        with pytest.raises(FieldError):
            record.name = "too long"
        with pytest.raises(FieldError):
            record["id"] = None
        assert record == customer()
        assert not record.is_dirty

    def test_an_unknown_field_is_refused(self) -> None:
        """An unknown field is refused everywhere, and the error names the declared ones."""
        record = customer()
        for attempt in (
            lambda: Customer(id=1, name="x", nmae="y"),  # type: ignore[call-arg]
            lambda: setattr(record, "nmae", "y"),
            lambda: record.__setitem__("nmae", "y"),
            lambda: record["nmae"],
            lambda: record.copy(nmae="y"),
        ):
            with pytest.raises(RecordError, match=r"no field 'nmae' \(the fields are id, name"):
                attempt()

    def test_a_new_record_is_dirty_until_it_is_clean(self) -> None:
        """Every field of a new record is dirty."""
        record = Artist(id=1)
        assert record.is_dirty
        assert record.dirty == {"id", "name"}
        assert record.changes() == record.raw()
        assert record.raw(dirty=False) == {}
        record.clean()
        assert not record.is_dirty
        assert record.dirty == frozenset()
        assert record.raw(dirty=False) == {"id": 1, "name": None}

    def test_changes_inside_lists_and_dicts_count(self) -> None:
        """A field is no longer dirty once it is set back or cancelled."""
        record = customer(tags=["a"], extra={"b": {"c": [1]}})
        record.tags.append("d")
        assert record.dirty == {"tags"}
        record.extra["b"]["c"][0] = True
        assert record.dirty == {"tags", "extra"}
        assert record.changes() == {"tags": ["a", "d"], "extra": {"b": {"c": [True]}}}
        record.tags.pop()
        assert record.dirty == {"extra"}
        record.cancel()
        assert not record.is_dirty
        assert record.extra == {"b": {"c": [1]}}

    def test_a_value_that_is_set_back_is_not_dirty(self) -> None:
        """An equal value is no change; 1.10 equals 1.1."""
        record = customer(balance="1.10")
        record.balance = Decimal("1.1")
        record.name = "Bob"
        record.name = "Ann"
        assert not record.is_dirty

    def test_what_was_put_into_a_list_is_checked_before_it_leaves(self) -> None:
        """An invalid element put into a list is found when the values are read."""
        record = customer()
        record.tags.append(5)  # type: ignore[arg-type]
        with pytest.raises(FieldError, match=r"tags\[0\]"):
            record.raw()
        with pytest.raises(FieldError, match=r"tags\[0\]"):
            record.changes()

    def test_cancel_takes_a_new_record_back_to_its_start(self) -> None:
        """Cancelling a new record restores the values it was made with."""
        record = Customer(id=1, name="Ann", tags=["a"])
        record.name = "Bob"
        record.tags.append("b")
        record.cancel()
        assert record == Customer(id=1, name="Ann", tags=["a"])
        assert record.is_dirty

    def test_raw_is_a_deep_copy(self) -> None:
        """``raw`` returns current or committed values, or those of a store."""
        record = customer(tags=["a"])
        record.tags.append("b")
        record.raw()["tags"].append("x")
        record.raw(dirty=False)["tags"].append("x")
        assert record.raw()["tags"] == ["a", "b"]
        assert record.raw(dirty=False)["tags"] == ["a"]
        assert record.raw(store=FakeStore()) == "<1>"
        assert Customer.__record__.wire(record) == record.raw()

    def test_the_key_of_a_committed_record_stays(self) -> None:
        """The key of a new record may be set, and that of a committed one may not."""
        new = Artist(id=1)
        new.id = 2
        assert new.key == "2"
        new.clean()
        new.id = 2
        with pytest.raises(RecordError, match="cannot change"):
            new.id = 3
        assert new.key == "2"

    def test_a_copy_is_new_and_deep(self) -> None:
        """A copy has the changes, lists of its own and no stores."""
        store = FakeStore()
        record = Customer.load({"id": 1, "name": "Ann", "tags": ["a"]}, stores=[store])
        twin = record.copy(id="2", name="Bob")
        twin.tags.append("b")
        assert (record.id, record.name, record.tags) == (1, "Ann", ["a"])
        assert (twin.id, twin.name, twin.tags) == (2, "Bob", ["a", "b"])
        assert twin.is_dirty
        assert not twin.stores
        twin.cancel()
        assert twin.tags == ["a"]
        assert twin.id == 2

    def test_an_absent_field_is_not_none(self) -> None:
        """Reading an absent field raises an error; other methods leave it out."""
        record = Customer.load({"id": 1, "tags": ["a"]}, partial=True)
        with pytest.raises(AbsentFieldError, match="does not hold"):
            record.name  # noqa: B018
        with pytest.raises(KeyError):
            record["name"]
        assert not hasattr(record, "name")
        assert "name" not in record
        assert record.raw() == {"id": 1, "tags": ["a"]}
        assert not record.is_dirty
        record.name = "Ann"
        assert record.changes() == {"name": "Ann"}
        record.cancel()
        assert record.raw() == {"id": 1, "tags": ["a"]}

    def test_a_record_without_its_key_has_none(self) -> None:
        """The key of a record without its key field raises the error of an absent field."""
        with pytest.raises(AbsentFieldError):
            Track.load({"title": "x"}, partial=True).key  # noqa: B018

    def test_equality_is_by_type_and_content(self) -> None:
        """Records compare by type name and values only."""
        record = customer(tags=["a"], extra={"b": [1]})
        twin = customer(tags=["a"], extra={"b": [1]})
        assert record == twin
        assert hash(record) == hash(twin)
        twin.extra["b"][0] = True
        assert record != twin
        fields = {"id": Field(type=int, key=True), "name": Field(type=str)}
        like = Record.derive("Artist", fields)
        assert like(id=1, name="x") == Artist(id=1, name="x")
        other = Record.derive("Other", fields)
        assert other(id=1, name="x") != Artist(id=1, name="x")
        assert Artist(id=1) != {"id": 1, "name": None}

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, ""]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
            ),
        ),
        st.data(),
    )
    def test_equal_records_have_equal_hashes(self, value: Any, data: st.DataObject) -> None:
        """Equal records have equal hashes, also with lists and dicts."""
        Thing = Record.derive(  # noqa: N806
            "thing", {"id": Field(type=int, key=True), "it": Field(type=Any)}
        )
        one = Thing(id=1, it=value)
        if isinstance(value, dict):
            value = dict(data.draw(st.permutations(list(value.items()))))
        other = Thing(it=value, id=1)
        assert one == other
        assert hash(one) == hash(other)

    def test_the_repr_is_short_and_keeps_secrets(self) -> None:
        """``repr`` cuts long values and hides secret ones."""
        shown = repr(Customer(id=1, name="Ann", tags=["x" * 1000], pin="1234"))
        assert shown.startswith("customer(id=1, name='Ann'")
        assert len(shown) < 400
        secret = Record.derive(
            "s", {"id": Field(type=int, key=True), "pin": Field(type=str, secret=True)}
        )
        assert repr(secret(id=1, pin="1234")) == "s(id=1, pin=***)"

    @pytest.mark.parametrize(
        "duplicate",
        [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_copies_and_pickles_keep_the_state(self, duplicate: Any) -> None:
        """Copies and pickles keep values and newness, but no stores."""
        record = Customer.load({"id": 1, "name": "Ann", "tags": ["a"]}, stores=[FakeStore()])
        record.tags.append("b")
        twin = duplicate(record)
        assert twin == record
        assert twin.dirty == {"tags"}
        assert not twin.stores
        twin.tags.append("c")
        twin.cancel()
        assert record.tags == ["a", "b"]
        assert duplicate(Artist(id=1)).is_dirty


class TestStores:
    """Committing to stores and deleting from them."""

    def test_commit_writes_all_changes_to_every_store(self) -> None:
        """The second store gets the changes even if the first cleans the record."""
        stores = [FakeStore(), FakeStore()]
        record = Customer.load({"id": 1, "name": "Ann"}, stores=stores)
        record.name = "Bob"
        record.commit()
        assert [store.changes for store in stores] == [[{"name": "Bob"}]] * 2
        assert not record.is_dirty

    def test_commit_to_given_stores_makes_them_the_records_own(self) -> None:
        """The stores of a commit become the stores of the record."""
        store = FakeStore()
        record = Artist(id=1)
        record.commit([store])
        assert list(record.stores) == [store]
        assert store.held == {"1": {"id": 1, "name": None}}

    def test_a_record_in_no_store_simply_becomes_clean(self) -> None:
        """A commit to no store marks the values as committed."""
        record = Artist(id=1)
        record.commit()
        assert not record.is_dirty

    def test_a_failed_commit_leaves_the_record_dirty(self) -> None:
        """After a failing store the record stays dirty, and another commit completes it."""
        good, bad = FakeStore(), FakeStore(fails=True)
        record = Customer.load({"id": 1, "name": "Ann"}, stores=[good, bad])
        record.name = "Bob"
        with pytest.raises(OSError, match="down"):
            record.commit()
        assert good.held["1"]["name"] == "Bob"
        assert record.dirty == {"name"}
        bad.fails = False
        record.commit()
        assert bad.changes == [{"name": "Bob"}]
        assert not record.is_dirty

    def test_delete_removes_from_all_stores(self) -> None:
        """A record deleted from all stores is new again."""
        stores = [FakeStore(), FakeStore()]
        record = Artist(id=1)
        record.commit(stores)
        record.delete()
        assert [store.held for store in stores] == [{}, {}]
        assert not record.stores
        assert record.is_dirty

    def test_a_failed_delete_knows_which_stores_are_left(self) -> None:
        """The error passes through, and the record keeps the stores that still hold it."""
        stores = [FakeStore(), FakeStore(), FakeStore()]
        record = Artist(id=1)
        record.commit(stores)
        stores[1].fails = True
        with pytest.raises(OSError, match="down"):
            record.delete()
        assert list(record.stores) == stores[1:]
        assert stores[2].held
        assert not record.is_dirty

    def test_stores_are_a_set_by_identity_in_order(self) -> None:
        """Stores are compared by identity and need not be hashable."""
        one: list[Any] = []
        other: list[Any] = []
        record = Artist(id=1)
        for store in (one, other, one):
            record.stores.add(store)
        assert [store is one for store in record.stores] == [True, False]
        record.stores.discard(one)
        record.stores.discard(one)
        assert one not in record.stores
        assert other in record.stores
