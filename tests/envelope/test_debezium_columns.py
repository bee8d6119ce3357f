"""The values of Debezium's columns: placeholders, times, decimals, JSON, unsupported values."""

from __future__ import annotations

import base64
import datetime as dt
import json
from decimal import Decimal
from uuid import UUID

import pytest
from envelope.debezium_events import KEY, LARGE, event, key_text, recorded, with_schema

from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.envelope.debezium import DebeziumReader, from_debezium
from eventsync.errors import ChangeRefusedError, ConfigError, EnvelopeError

P = "__debezium_unavailable_value"
# The columns for which the connector sends null: there is no placeholder of their types.
NULLED = {"big", "sci", "nlist", "bools", "floats"}


def patched(name, **options):
    """The patch that a recorded update becomes where the record type is merged per field."""
    options = {"rule": "field", "trust_nulls": True} | options
    value, key = recorded(name)[0]
    change = DebeziumReader(key_text=key_text, **options).read(value, key)
    assert (change.op, change.key) == (PATCH, "1")
    return change.data


# -- placeholders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaptive", "schemaless", "micro"])
def test_every_form_of_a_placeholder_is_recognised(name):
    """In texts, arrays, bytes, UUIDs, JSON and hstore, a placeholder is not a value."""
    data = patched(name)
    assert not data.keys() & (LARGE | {"id"})
    assert data["name"] == "Anna"


def test_a_configured_placeholder_is_recognised():
    """The connector may be configured with another placeholder, for all types."""
    nulled = {"dates"}  # mode connect has no placeholder for arrays of dates
    assert not patched("connect", placeholder="__gone").keys() & (LARGE - nulled)
    with pytest.raises(ChangeRefusedError, match="no values for the columns bio, tags"):
        refused("connect", placeholder="__gone", trust_nulls=True)


def test_a_placeholder_may_be_bytes():
    """A placeholder that is set in hexadecimal form need not be text."""
    raw = bytes.fromhex("ff00")
    encoded = base64.b64encode(raw).decode()
    for value, schema in (
        (encoded, {"type": "bytes"}),
        ([-1, 0], {"type": "array", "items": {"type": "int32"}}),
        (["ff00"], {"type": "array", "items": {"type": "string"}}),
    ):
        with pytest.raises(ChangeRefusedError, match="no values for the columns value"):
            from_debezium(with_schema(value, schema), KEY, key_text=key_text, placeholder=raw)


def test_strings_and_base64_hold_placeholders():
    """With times and decimals as text, decimals have a placeholder, too."""
    data = patched("isostring")
    nulled = {"dates", "photo"}
    assert not data.keys() & ((LARGE - nulled) | {"big", "sci"})
    assert data["amount"] == "12.50"


@pytest.mark.parametrize("declared", [P, '["' + P + '"]', '{"' + P + '":"' + P + '"}'])
def test_a_declared_placeholder_is_recognised(declared):
    """Newer connectors declare the placeholder of a column in its schema."""
    other = declared.replace(P, "other")
    value = json.loads(other) if other[0] in "[{" else other
    schema = {"type": "string", "parameters": {"__debezium.unavailable.value.placeholder": other}}
    with pytest.raises(ChangeRefusedError, match="no values for the columns value"):
        from_debezium(with_schema(value, schema), KEY, key_text=key_text)


def test_similar_values_are_values():
    """A text that contains the placeholder, and a list with more than it, are values."""
    for value in (f"about {P}", [P, P], [P, "x"], {P: "x"}, {"x": P}, [95, 95]):
        assert from_debezium(with_schema(value, {}), KEY, key_text=key_text).data["value"] == value


def refused(name, **options):
    value, key = recorded(name)[0]
    return DebeziumReader(key_text=key_text, **options).read(value, key)


@pytest.mark.parametrize("name", ["adaptive", "schemaless", "isostring", "url", "micro"])
def test_a_row_that_lacks_values_is_refused_under_the_per_record_rule(name):
    """It would blank the values that did not change. The error names record and columns."""
    with pytest.raises(ChangeRefusedError, match=r"person '1' has no values .* bio, tags") as error:
        refused(name, trust_nulls=True)
    assert error.value.reason == "incomplete-row"


@pytest.mark.parametrize("rule", ["record", "field"])
def test_a_null_that_may_be_a_placeholder_is_refused(rule):
    """For large numbers and arrays of numbers, PostgreSQL's connector sends null instead."""
    with pytest.raises(ChangeRefusedError, match="null for column 'big'"):
        refused("adaptive", rule=rule)
    for items in ({"type": "double"}, {"type": "boolean"}, {"type": "bytes"}, {"type": "int16"}):
        doubtful = with_schema(None, {"type": "array", "items": items})
        with pytest.raises(ChangeRefusedError, match="null for column 'value'"):
            from_debezium(doubtful, KEY, key_text=key_text, rule=rule)
        change = from_debezium(doubtful, KEY, key_text=key_text, rule=rule, trust_nulls=True)
        assert change.data["value"] is None


@pytest.mark.parametrize(
    "sure",
    [
        with_schema(None, {"type": "array", "items": {"type": "string"}}),
        with_schema(None, {"type": "string"}),
        with_schema(None, {"type": "array", "items": {"type": "double"}}, op="c"),
        with_schema(
            None,
            {"type": "array", "items": {"type": "double"}},
            before={"id": 1, "value": [1.5]},
        ),
    ],
)
def test_a_null_that_is_sure_is_a_value(sure):
    """Null is a value if the type has a placeholder, or if the event has the row before."""
    assert from_debezium(sure, KEY, key_text=key_text).data == {"id": 1, "value": None}


def test_a_null_beside_the_replica_identity_is_refused():
    """A row before the update that holds only an index says nothing of the other columns."""
    doubtful = {"type": "array", "items": {"type": "double"}}
    before = {"id": 1, "email": "a@x", "name": None, "value": None}
    update = with_schema(None, doubtful, before=before)
    update["payload"]["after"] |= {"email": "b@x", "name": "Ann"}
    with pytest.raises(ChangeRefusedError, match="null for column 'value'"):
        from_debezium(update, KEY, key_text=key_text)
    before["name"] = "Ann"  # the whole row
    assert from_debezium(update, KEY, key_text=key_text).data["value"] is None


def test_a_declared_column_of_bytes_has_no_placeholder():
    """In mode base64, PostgreSQL's connector sends null for bytes that did not change."""
    update = with_schema(None, {"type": "string"})
    with pytest.raises(ChangeRefusedError, match="null for column 'value'"):
        from_debezium(update, KEY, key_text=key_text, columns={"value": "base64"})


# -- times, decimals, bytes ------------------------------------------------------------------------

WHOLE = {
    "born": dt.date(1815, 12, 10),
    "at": dt.datetime(2026, 11, 30, 10, 15, 30, 123456),
    "at3": dt.datetime(2026, 11, 30, 10, 15, 30, 123000),
    "atz": dt.datetime(2026, 11, 30, 9, 15, 30, 123456, dt.UTC),
    "t": dt.time(10, 15, 30, 123456),
    "tz": dt.time(8, 15, 30, 123456, dt.UTC),
    "u": UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"),
    "f8": 1.5,
    "flag": True,
}


@pytest.mark.parametrize("name", ["adaptive", "isostring", "url"])
def test_values_arrive_as_they_were(name):
    """In all modes of time precision, the schema says what a value is."""
    data = patched(name)
    assert {column: data[column] for column in WHOLE} == WHOLE
    if name != "isostring":  # where decimals are texts
        assert (data["amount"], data["m"]) == (Decimal("12.50"), Decimal("19.90"))


def test_values_without_schema_need_their_types():
    """Without schema, the caller says which columns are times, decimals and bytes."""
    scale = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal"}
    columns = {
        "born": "io.debezium.time.Date",
        "at": "io.debezium.time.MicroTimestamp",
        "at3": "io.debezium.time.Timestamp",
        "atz": "io.debezium.time.ZonedTimestamp",
        "t": "io.debezium.time.MicroTime",
        "tz": "io.debezium.time.ZonedTime",
        "u": "io.debezium.data.Uuid",
        "amount": {**scale, "parameters": {"scale": "2"}},
        "bits": "base64",
    }
    data = patched("schemaless", columns=columns)
    assert {column: data[column] for column in WHOLE} == WHOLE
    assert (data["amount"], data["bits"]) == (Decimal("12.50"), b"\x05")


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ("base64-url-safe", "_-8", b"\xff\xef"),
        ("hex", "ff00", b"\xff\x00"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 3, "value": "MDk="}, Decimal("12.345")),
        ("io.debezium.time.IsoTimestamp", "2026-11-30T10:15:30Z",
         dt.datetime(2026, 11, 30, 10, 15, 30)),
        ({"type": "map", "values": {"type": "bytes"}}, {"a": "AA=="}, {"a": b"\x00"}),
        ({"type": "double"}, "Infinity", float("inf")),
        ({"type": "double"}, 3, 3.0),
        ("uint64", -1, 2**64 - 1),
        ("uint64", 7, 7),
    ],
)  # fmt: skip
def test_declared_types(schema, value, expected):
    """Types are given by name, or as schemas of Kafka Connect."""
    change = from_debezium(
        event("mysql", after={"id": 1, "v": value}, pos=4, file="b.1"),
        KEY,
        key_text=key_text,
        columns={"v": schema},
    )
    assert change.data["v"] == expected


@pytest.mark.parametrize("schema", ["date", {"name": "io.debezium.time.Years"}, "",
                                    "org.apache.kafka.connect.data.Decimal"])  # fmt: skip
def test_unknown_declared_types_are_refused(schema):
    with pytest.raises(ConfigError, match="column 'v'"):
        DebeziumReader(key_text=key_text, columns={"v": schema})


def test_decimals_may_be_json_numbers():
    """The converter's setting decimal.format=NUMERIC writes all digits."""
    text = '{"id": 1, "v": 12345678901234567.12345}'
    decimal = {
        "type": "bytes",
        "name": "org.apache.kafka.connect.data.Decimal",
        "parameters": {"scale": "5"},
    }
    raw = '{"op":"c","before":null,"after":' + text + ',"source":{"pos":4,"file":"b.1",'
    raw += '"table":"person","ts_ms":1800000000000},"ts_ms":1800000000000}'
    change = from_debezium(raw, KEY, key_text=key_text, columns={"v": decimal})
    assert change.data["v"] == Decimal("12345678901234567.12345")
    assert from_debezium(raw, KEY, key_text=key_text).data["v"] == change.data["v"]


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": [{"b": 1, "b": {"c": 1, "c": 3}}]}', {"a": [{"b": {"c": 3}}]}),
        ("12345678901234567.12345", Decimal("12345678901234567.12345")),
        ("[0.1, 1.10, 1e400]", [0.1, 1.1, Decimal("1e400")]),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("null", None),
    ],
)
def test_json_columns(text, expected):
    """The last of two equal members counts, as in the database, and numbers keep their digits."""
    schema = {"type": "string", "name": "io.debezium.data.Json"}
    data = from_debezium(with_schema(text, schema), KEY, key_text=key_text).data
    assert data["value"] == expected
    assert type(data["value"]) is type(expected)


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[NaN]", "1e9999999999999999999", "[1"])
def test_json_that_no_record_holds_is_refused(text):
    schema = {"type": "string", "name": "io.debezium.data.Json"}
    with pytest.raises((EnvelopeError, ChangeRefusedError)):
        from_debezium(with_schema(text, schema), KEY, key_text=key_text)


# -- values that no record holds -------------------------------------------------------------------


@pytest.mark.parametrize("number", range(7))
def test_infinity_and_distant_years_are_refused_by_name(number):
    """As the connector sends infinity, years before 1 and after 9999, in two modes."""
    value, key = recorded("odd")[number]
    reader = DebeziumReader(key_text=key_text)
    with pytest.raises(ChangeRefusedError, match=r"the column '\w+' of odd '\d'") as error:
        reader.read(value, key)
    assert error.value.reason == "unsupported-value"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("io.debezium.time.ZonedTimestamp", "infinity"),
        ("io.debezium.time.ZonedTimestamp", "-infinity"),
        ("io.debezium.time.ZonedTimestamp", "-0043-03-15T12:00:00.000000Z"),
        ("io.debezium.time.Date", -622_191_234),
        ("io.debezium.time.MicroTimestamp", 9_223_372_036_825_200_000),
        ("io.debezium.time.NanoTimestamp", -(2**63)),
        ("io.debezium.time.IsoDate", "+292278994-08-16Z"),
        ("io.debezium.time.IsoDate", "-5877611-06-21Z"),
        ("io.debezium.time.MicroTime", 3_020_399_000_000),  # MySQL: 838:59:59
        ("io.debezium.time.MicroTime", -1),
        ("io.debezium.time.ZonedTime", "24:00:00Z"),
        (None, "NaN"),
    ],
)
def test_values_outside_the_types_of_records(name, value):
    schema = {"type": "double", "name": name} if name is None else {"type": "x", "name": name}
    with pytest.raises(ChangeRefusedError, match="column 'value' of person '1'"):
        from_debezium(with_schema(value, schema), KEY, key_text=key_text)


def test_malformed_times_are_malformed():
    """What the connector never sends is no value of the database."""
    for name, value in (("ZonedTimestamp", "soon"), ("IsoDate", "1815-13-40Z"), ("Date", "x")):
        schema = {"type": "string", "name": f"io.debezium.time.{name}"}
        with pytest.raises(EnvelopeError, match="column 'value'"):
            from_debezium(with_schema(value, schema), KEY, key_text=key_text)


def test_a_delete_needs_no_sound_row():
    """A row with an infinite date, or without its large values, can be deleted."""
    row = {"id": 1, "at": "infinity", "bio": P}
    schema = {"field": "at", "type": "string", "name": "io.debezium.time.ZonedTimestamp"}
    before = {"type": "struct", "field": "before", "fields": [schema]}
    deleted = {
        "schema": {"type": "struct", "fields": [before]},
        "payload": event("postgresql", "d", before=row, lsn=7),
    }
    assert from_debezium(deleted, key_text=key_text).op == DELETE


def test_an_infinite_date_that_did_not_change_stays():
    """A patch leaves out a value that no record holds, if the update left it alone."""
    schema = {"type": "string", "name": "io.debezium.time.ZonedTimestamp"}
    update = with_schema("infinity", schema, before={"id": 1, "value": "infinity"})
    update["payload"]["before"]["name"], update["payload"]["after"]["name"] = "Ann", "Bea"
    change = from_debezium(update, KEY, key_text=key_text, rule="field")
    assert (change.op, change.data) == (PATCH, {"name": "Bea"})
    update["payload"]["before"]["value"] = "2026-11-30T00:00:00Z"
    with pytest.raises(ChangeRefusedError, match="infinite"):
        from_debezium(update, KEY, key_text=key_text, rule="field")


def test_recorded_values_of_mariadb():
    """Without schema, the caller declares the types. MySQL's times may exceed a day."""
    columns = {
        "amount": {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
                   "parameters": {"scale": "2"}},
        "born": "io.debezium.time.Date",
        "at": "io.debezium.time.MicroTimestamp",
        "ts": "io.debezium.time.ZonedTimestamp",
        "t": "io.debezium.time.MicroTime",
        "doc": "io.debezium.data.Json",
        "big": "uint64",
        "bl": "base64",
    }  # fmt: skip
    reader = DebeziumReader(key_text=key_text, columns=columns)
    rows = [message for message in recorded("binlog") if message[0] and message[0].get("op") == "r"]
    assert reader.read(*rows[0]).data == {
        "id": 1,
        "name": "Ann",
        "amount": Decimal("12.50"),
        "born": dt.date(1815, 12, 10),
        "at": dt.datetime(2026, 11, 30, 10, 15, 30, 123456),
        "ts": dt.datetime(2026, 11, 30, 10, 15, 30, 123456, dt.UTC),
        "t": dt.time(10, 15, 30, 123456),
        "doc": {"a": 1},
        "big": 2**64 - 1,
        "st": "a,b",
        "en": "x",
        "bl": b"\x00\xff",
        "y": 2026,
    }
    with pytest.raises(ChangeRefusedError, match="column 't' of person '2' is not a time of day"):
        reader.read(*rows[1])


def test_whole_rows_are_puts():
    """A row with all its values is a put under the per-record rule, and when it is created."""
    for rule, op in (("record", "u"), ("record", "c"), ("field", "c"), ("field", "r")):
        found = with_schema("x", {}, op=op)
        change = from_debezium(found, KEY, key_text=key_text, rule=rule)
        assert (change.op, change.data) == (PUT, {"id": 1, "value": "x"})
