"""Changes as CloudEvents, and from Debezium events."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest
from hypothesis import given
from support.strategies import PLAIN, published_changes

from eventsync.changes.stamp import DELETE, PUT
from eventsync.envelope.cloudevents import from_cloudevent, from_headers, to_cloudevent, to_headers
from eventsync.envelope.debezium import from_debezium
from eventsync.errors import ChangeRefusedError, EnvelopeError


@given(published_changes())
def test_cloudevent_round_trip(change):
    """A change survives as a JSON event in structured mode."""
    text = json.dumps(to_cloudevent(change))
    assert from_cloudevent(json.loads(text)) == change


@given(published_changes())
def test_cloudevent_headers_round_trip(change):
    """A change survives as headers and body in binary mode."""
    headers, body = to_headers(change)
    assert all(type(held) is str for held in headers.values())
    assert from_headers(headers, body) == change


def test_cloudevent_has_the_required_attributes():
    """An event has the required attributes, and its subject is the key."""
    event = to_cloudevent(PLAIN)
    assert event["specversion"] == "1.0"
    assert event["subject"] == "1"
    assert {"id", "source", "type", "time"} <= event.keys()


@pytest.mark.parametrize("event", ["", "[]", "{}", '{"specversion": "0.3"}', b"\xff"])
def test_foreign_cloudevents_are_refused(event):
    """Other texts and events raise ``EnvelopeError``."""
    with pytest.raises(EnvelopeError):
        from_cloudevent(event)


def debezium(op, before, after, **source):
    """Make an event like those of Debezium's PostgreSQL connector, with a schema."""
    row = {
        "type": "struct",
        "fields": [
            {"field": "id", "type": "int32"},
            {"field": "born", "type": "int32", "name": "io.debezium.time.Date"},
            {
                "field": "paid",
                "type": "bytes",
                "name": "org.apache.kafka.connect.data.Decimal",
                "parameters": {"scale": "2"},
            },
        ],
    }
    fields = [row | {"field": "before"}, row | {"field": "after"}]
    block = {"connector": "postgresql", "name": "pg", "ts_ms": 1_800_000_000_000, "table": "person"}
    return {
        "schema": {"type": "struct", "fields": fields},
        "payload": {
            "op": op,
            "before": before,
            "after": after,
            "source": block | {"lsn": 7} | source,
        },
    }


ROW = {"id": 1, "born": 20_000, "paid": "AfQ="}


def key_text(columns):
    return str(columns["id"])


@pytest.mark.parametrize("op", ["c", "u", "r"])
def test_debezium_puts(op):
    """Create, update and read are puts of the whole row, its logical types decoded."""
    change = from_debezium(debezium(op, None, ROW), key_text=key_text)
    assert (change.op, change.type, change.key) == (PUT, "person", "1")
    assert change.data == {
        "id": 1,
        "born": dt.date(1970, 1, 1) + dt.timedelta(days=20_000),
        "paid": Decimal("5.00"),
    }
    assert change.version.millis == 1_800_000_000_000


def test_debezium_deletes_and_tombstones():
    """A delete is a delete, and the tombstone after it is no change."""
    change = from_debezium(debezium("d", ROW, None), key_text=key_text)
    assert (change.op, change.data, change.key) == (DELETE, None, "1")
    assert from_debezium(None, key_text=key_text) is None


def test_debezium_versions_follow_the_log():
    """Of two changes in one millisecond, the later in the log has the greater version."""
    one = from_debezium(debezium("c", None, ROW, lsn=7), key_text=key_text)
    two = from_debezium(debezium("u", None, ROW, lsn=8), key_text=key_text)
    assert two.version > one.version


def test_debezium_truncate_is_refused():
    """A truncated table is refused, because it is no change of one record."""
    with pytest.raises(ChangeRefusedError, match="truncated"):
        from_debezium(debezium("t", None, None), key_text=key_text)


@pytest.mark.parametrize("event", ["[]", "{}", "0", '{"op": "x"}', {"payload": {"op": "c"}}])
def test_foreign_debezium_events_are_refused(event):
    """Other texts and events raise ``EnvelopeError``."""
    with pytest.raises(EnvelopeError):
        from_debezium(event, key_text=key_text)
