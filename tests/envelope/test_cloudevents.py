"""Changes as CloudEvents: structured, in batches and in headers; events of other producers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from support.strategies import PLAIN, published_changes

from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.envelope.cloudevents import (
    from_cloudevent,
    from_cloudevents,
    from_headers,
    to_cloudevent,
    to_cloudevents,
    to_headers,
)
from eventsync.errors import EnvelopeError, FieldError

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def foreign(**attributes):
    """An event of another producer."""
    event = {
        "specversion": "1.0",
        "id": "A234-1234-1234",
        "source": "/shop/orders",
        "type": "com.example.person.changed",
        "subject": "1",
        "time": "2026-11-30T10:15:30Z",
        "data": {"id": 1, "name": "Ann"},
    }
    event |= attributes
    return {name: value for name, value in event.items() if value is not ...}


def read(event, **options):
    return from_cloudevent(event, **({"type": "Person", "op": PUT} | options))


# -- round trips -----------------------------------------------------------------------------------


@given(published_changes())
def test_round_trip(change):
    """A change survives as a JSON event in structured mode."""
    text = json.dumps(to_cloudevent(change))
    assert from_cloudevent(json.loads(text)) == change


@given(published_changes())
def test_round_trip_in_headers(change):
    """A change survives as headers and body in binary mode, of HTTP, Kafka and other protocols."""
    for prefix, kind in (("ce-", str), ("ce_", bytes), ("cloudEvents_", str)):
        headers, body = to_headers(change, prefix=prefix)
        assert all(type(held) is kind for held in headers.values())
        assert from_headers(headers, body, prefix=prefix) == change
        assert from_headers(list(headers.items()), body, prefix=prefix) == change


def test_round_trip_in_a_batch():
    changes = [PLAIN, PLAIN.replace(op=DELETE, data=None)]
    assert from_cloudevents(json.dumps(to_cloudevents(changes))) == changes
    assert from_cloudevents("[]") == []


def test_required_attributes():
    """An event has the required attributes, and its subject is the key."""
    event = to_cloudevent(PLAIN)
    assert event["specversion"] == "1.0"
    assert event["subject"] == "1"
    assert {"id", "source", "type", "time"} <= event.keys()


@pytest.mark.parametrize("event", ["", "[]", "{}", '{"specversion": "0.3"}', b"\xff"])
def test_other_texts_are_refused(event):
    """Other texts and events raise ``EnvelopeError``."""
    with pytest.raises(EnvelopeError):
        from_cloudevent(event)


# -- headers ---------------------------------------------------------------------------------------


def test_kafka_headers_are_plain_utf8():
    """Only HTTP percent-encodes. A percent sign in a Kafka header means itself."""
    change = PLAIN.replace(key="50% Müller €")
    headers, body = to_headers(change, prefix="ce_")
    assert headers["ce_subject"] == "50% Müller €".encode()
    assert from_headers(headers, body, prefix="ce_").key == "50% Müller €"
    assert to_headers(change)[0]["ce-subject"] == "50%25%20M%C3%BCller%20%E2%82%AC"


def test_percent_signs_of_kafka_producers_are_kept():
    """A key that looks percent-encoded stays as it is."""
    headers, body = to_headers(PLAIN, prefix="ce_")
    headers["ce_subject"] = b"a%2Fb%20c"
    assert from_headers(headers, body, prefix="ce_").key == "a%2Fb%20c"


def test_a_delete_in_kafka_is_a_tombstone():
    """An event without data is a message without value."""
    change = PLAIN.replace(op=DELETE, data=None)
    assert to_headers(change, prefix="ce_")[1] is None
    assert to_headers(change)[1] == b""


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Euro%20%E2%82%AC%20%f0%9f%98%80", "Euro € 😀"),
        ('"a \\"b\\" c"', 'a "b" c'),
        (b"%31", "1"),
    ],
)
def test_http_headers_of_other_producers(header, key):
    """Quoted texts, needless percent-encoding and lower-case digits are read."""
    headers, body = to_headers(PLAIN)
    found = {name.title().encode(): value for name, value in headers.items()}
    found[b"Ce-Subject"] = header
    assert from_headers(found, body).key == key


@pytest.mark.parametrize("value", ["%C0%A0", "%ff"])
def test_invalid_percent_encoding_is_refused(value):
    headers, body = to_headers(PLAIN)
    with pytest.raises(EnvelopeError, match="UTF-8"):
        from_headers(headers | {"ce-subject": value}, body)


def test_headers_that_are_no_utf8_are_refused():
    headers, body = to_headers(PLAIN, prefix="ce_")
    with pytest.raises(EnvelopeError, match="UTF-8"):
        from_headers(headers | {"ce_subject": b"\xff"}, body, prefix="ce_")


def test_structured_messages_are_recognised_by_their_content_type():
    """A consumer need not know the mode of a message."""
    body = json.dumps(to_cloudevent(PLAIN)).encode()
    headers = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    assert from_headers(headers, body, prefix="ce_") == PLAIN
    with pytest.raises(EnvelopeError, match="content type"):
        from_headers({**to_headers(PLAIN)[0], "content-type": "application/avro"}, b"x")


# -- events of other producers ---------------------------------------------------------------------


def test_the_caller_says_where_key_and_version_are():
    """Subject and time are optional attributes."""
    bare = foreign(subject=..., time=...)
    change = read(
        bare,
        key=lambda event: str(event["data"]["id"]),
        version=lambda event: Version.of(event["data"]["id"] * 1000),
    )
    assert (change.key, change.version, change.data) == ("1", Version.of(1000), bare["data"])
    with pytest.raises(EnvelopeError, match=r"no subject.*argument key"):
        read(foreign(subject=None))
    with pytest.raises(EnvelopeError, match=r"neither recordversion nor time.*argument version"):
        read(foreign(time=...))


def test_functions_that_fail_name_the_event():
    with pytest.raises(EnvelopeError, match="argument key cannot read the CloudEvent 'A234"):
        read(foreign(subject=...), key=lambda event: event["data"]["number"])

    def refuse(event):
        raise FieldError("Person", "id", 1, "a string")

    with pytest.raises(FieldError):
        read(foreign(), version=refuse)


def test_type_and_operation_may_depend_on_the_event():
    """A stream carries creations and deletions."""

    def op(event):
        return DELETE if event["type"].endswith("deleted") else PUT

    batch = [foreign(), foreign(type="com.example.person.deleted")]
    changes = from_cloudevents(batch, type=lambda event: event["type"].split(".")[2], op=op)
    assert [(change.op, change.type) for change in changes] == [(PUT, "person"), (DELETE, "person")]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"sequence": "9"}, {"sequence": "10"}),
        ({"sequence": "00000000000000000009"}, {"sequence": "00000000000000000010"}),
        ({"sequence": "a"}, {"sequence": "b"}),
        ({"sequence": "2147483647", "sequencetype": "Integer"},
         {"sequence": "-2147483648", "sequencetype": "Integer"}),
        ({"sequence": "7000000000000000001"}, {"sequence": "7000000000000000002"}),
    ],
)  # fmt: skip
def test_sequence_orders_events_of_one_time(earlier, later):
    assert read(foreign(**earlier)).version < read(foreign(**later)).version
    assert read(foreign(**earlier)).ext["cloudevents"] == earlier


@pytest.mark.parametrize("sequence", ["-1", "18446744073709551616", "01JDXK7Z3QW8V9"])
def test_a_sequence_that_does_not_fit_is_refused(sequence):
    with pytest.raises(EnvelopeError, match="argument version"):
        read(foreign(sequence=sequence))
    assert read(foreign(sequence=sequence), version=lambda event: Version.of(7)).version.millis == 7


def test_trace_context_is_an_attribute():
    """The W3C trace context of a change is CloudEvents' extension for distributed tracing."""
    change = PLAIN.replace(ext={"traceparent": TRACE, "tracestate": "a=1", "note": 1})
    event = to_cloudevent(change)
    assert (event["traceparent"], event["tracestate"]) == (TRACE, "a=1")
    assert json.loads(event["recordext"]) == {"note": 1}
    assert from_cloudevent(event) == change
    assert read(foreign(traceparent=TRACE)).ext == {"traceparent": TRACE}
    headers, _ = to_headers(change, prefix="ce_")
    assert headers["ce_traceparent"] == TRACE.encode()


def test_one_event_of_a_batch_does_not_stop_the_others():
    """A batch has an error in the place of an event that cannot be read."""
    texts = [json.dumps(foreign(id=str(n))) for n in range(2)]
    bad = ['{"a": 1, "a": 2}', '{"specversion": "1.0"}', "[NaN]", "7", '{"x": 1e99999999999999999}']
    batch = "[" + ", ".join([texts[0], *bad, texts[1]]) + " ]"
    found = from_cloudevents(batch, type="Person", op=PUT)
    assert [isinstance(one, EnvelopeError) for one in found] == [False, *[True] * 5, False]

    def key(event):
        if event["id"] == "0":
            raise FieldError("Person", "id", 0, "positive")
        return event["id"]

    found = from_cloudevents(batch, type="Person", op=PUT, key=key)
    assert isinstance(found[0], FieldError)
    assert found[-1].key == "1"
    for text in ("{}", "[", "[1,]", "x", b"\xff\xff", "[" * 2000):
        with pytest.raises(EnvelopeError):
            from_cloudevents(text)


def test_numbers_in_data_keep_their_digits():
    text = json.dumps(foreign()).replace('"Ann"', "12345678901234567.12345")
    assert str(read(text).data["name"]) == "12345678901234567.12345"


@pytest.mark.parametrize("content_type", ["text/json", "application/vnd.x+json; charset=utf-8"])
def test_content_types_of_json(content_type):
    assert read(foreign(datacontenttype=content_type)).data == {"id": 1, "name": "Ann"}


def test_long_sources_fit_into_an_envelope():
    """A source may be any URI. Two long ones stay distinct, and each always gives the same."""
    one, two = (read(foreign(source=f"https://example.com/{'a' * 200}/{n}")) for n in (1, 2))
    assert len(one.source) == 128
    assert one.source != two.source
    assert one == read(foreign(source=f"https://example.com/{'a' * 200}/1"))


def test_null_is_an_absent_attribute():
    assert read(foreign(dataschema=None, comexample=None)).ext == {}


def test_patches_of_other_producers():
    assert read(foreign(), op=PATCH).op == PATCH
