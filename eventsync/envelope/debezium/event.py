"""The parts of a Debezium event, which may be wrapped in a CloudEvent."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventsync.errors import malformed, shown
from eventsync.values.tagged_json import loads

__all__ = [
    "HEARTBEAT",
    "MESSAGE",
    "SCHEMA_CHANGE",
    "TOMBSTONE",
    "TRANSACTION",
    "Event",
    "read_event",
    "unwrapped",
]

TOMBSTONE: Final = "tombstone"
HEARTBEAT: Final = "heartbeat"
TRANSACTION: Final = "transaction"
SCHEMA_CHANGE: Final = "schema-change"
MESSAGE: Final = "message"

# Debezium's CloudEventsConverter makes the names of extension attributes from the names of the
# source block: a prefix, and the name without underscores.
_PREFIX: Final = "iodebezium"
_SOURCE_NAMES: Final[Mapping[str, str]] = {
    name.replace("_", ""): name
    for name in (
        *("version", "connector", "name", "ts_ms", "ts_us", "ts_ns", "snapshot", "db", "sequence"),
        *("schema", "table", "lsn", "xmin", "server_id", "gtid", "file", "pos", "row", "thread"),
        *("change_lsn", "commit_lsn", "event_serial_no", "scn", "commit_scn", "lcr_position"),
        *("rs_id", "ssn", "redo_thread", "row_id", "commit_ts_ms"),
    )
}
_TIMES: Final = ("ts_ms", "ts_us", "ts_ns", "commit_ts_ms")


@dataclass(frozen=True, slots=True)
class Event:
    """A change event. ``payload``: its content. ``schema``: its Connect schema, or ``None``."""

    payload: Mapping[str, Any]
    schema: Mapping[str, Any] | None


def read_event(event: Mapping[str, Any] | str | bytes | None) -> Event | str:
    """Return a change event, or the kind of an event that describes no change of a record.

    The kind is one of the constants of this module. Raises ``EnvelopeError`` if the event is
    malformed.
    """
    payload, schema = unwrapped(event)
    if payload is None:
        return TOMBSTONE
    if payload.get("specversion") is not None:
        payload, schema = _from_cloudevent(payload)
    return _kind(payload) or Event(payload, schema)


def unwrapped(event: Mapping[str, Any] | str | bytes | None) -> tuple[Any, Any]:
    """Return the payload and the schema of an event or key. A missing one is ``None``.

    Raises ``EnvelopeError`` if the event or key is malformed.
    """
    # A Kafka tombstone is ``None`` or empty. Other false values, such as 0, are malformed events.
    found = loads(event) if isinstance(event, str | bytes) and event else event
    if found is None or found in ("", b""):
        return None, None
    if not isinstance(found, Mapping):
        raise malformed("the Debezium event or its key is not a JSON object", reason="envelope")
    if "payload" not in found:
        return found, None
    payload, schema = found["payload"], found.get("schema")
    if payload is not None and not isinstance(payload, Mapping):
        raise malformed("the payload of the Debezium event or of its key is not a JSON object")
    return payload, schema if isinstance(schema, Mapping) else None


def _kind(payload: Mapping[str, Any]) -> str | None:
    """Return the kind of an event that describes no change of a record, else ``None``."""
    if "op" in payload:
        return MESSAGE if payload["op"] == "m" else None
    names = payload.keys()
    if names == {"ts_ms"}:
        return HEARTBEAT
    if {"status", "id", "event_count"} <= names:
        return TRANSACTION
    if {"source", "ddl", "databaseName"} <= names:
        return SCHEMA_CHANGE
    return None


def _from_cloudevent(event: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """Return the payload and the schema of an event that Debezium's CloudEventsConverter wrote."""
    found = {
        name.removeprefix(_PREFIX): value
        for name, value in event.items()
        if name.startswith(_PREFIX)
    }
    if "op" not in found:
        raise malformed(
            f"the CloudEvent of type {shown(event.get('type'))} has no attribute {_PREFIX}op, so "
            "it is not an event of Debezium",
            reason="envelope",
            hint="read CloudEvents of other producers with from_cloudevent",
        )
    data, schema = unwrapped(_data(event))
    if data is None:
        raise malformed("the CloudEvent of Debezium has no data")
    source = {
        _SOURCE_NAMES[name]: value
        for name, value in found.items()
        if name in _SOURCE_NAMES and value is not None
    }
    for name in _TIMES:
        if isinstance(source.get(name), str):
            source[name] = _integer(name, source[name])
    return {**data, "op": found["op"], "source": source}, schema


def _data(event: Mapping[str, Any]) -> Any:
    content_type = event.get("datacontenttype")
    if content_type not in (None, "application/json"):
        raise malformed(
            f"the data of the CloudEvent have the content type {shown(content_type)}; only JSON "
            "can be read",
            hint="set data.serializer.type of Debezium's CloudEventsConverter to json",
        )
    encoded = event.get("data_base64")
    if encoded is None:
        return event.get("data")
    try:
        return base64.b64decode(encoded, validate=True)
    except (ValueError, TypeError) as error:
        raise malformed("the attribute data_base64 of the CloudEvent is not base64") from error


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise malformed(
            f"the time {name} of the Debezium event is {shown(text)}, not a number"
        ) from error
