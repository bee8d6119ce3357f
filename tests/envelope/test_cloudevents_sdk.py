"""The CloudEvents SDK for Python on the other side, in both directions and in every mode."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from support.strategies import PLAIN

from eventsync.changes.stamp import DELETE, PUT
from eventsync.envelope.cloudevents import (
    from_cloudevent,
    from_headers,
    to_cloudevent,
    to_headers,
)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CHANGES = [
    PLAIN.replace(key="50% Müller €", ext={"traceparent": TRACE}),
    PLAIN.replace(op=DELETE, data=None),
    PLAIN.replace(data={"id": 1, "name": 'Quote "x" 😀'}),
]


def of_sdk(**attributes):
    """An event that the SDK makes."""
    return CloudEvent(
        {
            "id": "A234",
            "source": "/shop/Müller 50%",
            "type": "com.example.person.changed",
            "subject": "Anna & Bö 50%",
            "time": dt.datetime(2026, 11, 30, 10, 15, 30, 123456, dt.UTC),
            "datacontenttype": "application/json",
            "sequence": "7",
            "traceparent": TRACE,
        }
        | attributes,
        {"id": 1, "name": "Ann €"},
    )


def check(change):
    """The change has all that the event says."""
    assert (change.key, change.data) == ("Anna & Bö 50%", {"id": 1, "name": "Ann €"})
    assert change.source == "/shop/Müller 50%"
    assert change.version.time == dt.datetime(2026, 11, 30, 10, 15, 30, 123000, dt.UTC)
    assert (change.version.counter, change.version.node) == (456, 7)
    assert change.ext["traceparent"] == TRACE


@pytest.mark.parametrize("change", CHANGES)
def test_the_sdk_reads_our_events(change):
    """What the SDK reads and writes again is the same change."""
    format = JSONFormat()
    event = format.read(None, json.dumps(to_cloudevent(change)).encode())
    assert event.get_subject() == change.key
    assert event.get_data() == to_cloudevent(change).get("data")
    assert from_cloudevent(format.write(event)) == change


@pytest.mark.parametrize("change", CHANGES)
def test_the_sdk_reads_our_kafka_messages(change):
    headers, body = to_headers(change, prefix="ce_")
    event = kafka.from_kafka(kafka.KafkaMessage(headers, None, body or b""), JSONFormat())
    assert event.get_subject() == change.key
    message = kafka.to_binary_event(event)
    assert from_headers(message.headers, message.value, prefix="ce_") == change


@pytest.mark.parametrize("change", CHANGES)
def test_the_sdk_reads_our_http_messages(change):
    headers, body = to_headers(change)
    event = http.from_http(http.HTTPMessage(headers, body), JSONFormat())
    assert event.get_subject() == change.key
    message = http.to_binary_event(event)
    assert from_headers(message.headers, message.body) == change


@pytest.mark.parametrize("mode", [kafka.to_binary_event, kafka.to_structured_event])
def test_kafka_messages_of_the_sdk(mode):
    message = mode(of_sdk())
    check(from_headers(message.headers, message.value, prefix="ce_", type="Person", op=PUT))


@pytest.mark.parametrize("mode", [http.to_binary_event, http.to_structured_event])
def test_http_messages_of_the_sdk(mode):
    message = mode(of_sdk())
    check(from_headers(message.headers, message.body, type="Person", op=PUT))


def test_events_of_the_sdk():
    check(from_cloudevent(JSONFormat().write(of_sdk()), type="Person", op=PUT))
