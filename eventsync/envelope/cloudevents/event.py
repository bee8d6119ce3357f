"""CloudEvents in structured mode: JSON objects of attributes and data, alone or in arrays."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version, version_at
from eventsync.changes.stamp import DELETE, PATCH, PUT, Op, Stamp
from eventsync.envelope.codec import encode
from eventsync.envelope.rules import MAX_NAME
from eventsync.errors import EnvelopeError, EventSyncError, ValueRefusedError, malformed, shown
from eventsync.values.tagged_json import dumps, from_json, loads, loads_each, to_json

__all__ = [
    "BATCH_CONTENT_TYPE",
    "CONTENT_TYPE",
    "check_json",
    "from_cloudevent",
    "from_cloudevents",
    "to_cloudevent",
    "to_cloudevents",
]

T = TypeVar("T")

CONTENT_TYPE: Final = "application/cloudevents+json"
"""The content type of a CloudEvent in structured mode."""

BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
"""The content type of a JSON array of CloudEvents."""

_PREFIX: Final = "eventsync."
_OPS: Final[Mapping[str, Op]] = {PUT: PUT, PATCH: PATCH, DELETE: DELETE}
_NO_SOURCE: Final = "urn:eventsync:unknown"
# The entry of ``Change.ext`` that keeps the attributes that eventsync does not use.
_FOREIGN: Final = "cloudevents"
_OURS: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
    | {"data", "data_base64"}
    | {"recordversion", "recordschema", "recordhops", "recordext", "recordknown"}
    | {"traceparent", "tracestate"}
)
_JSON: Final = re.compile(r"[a-z0-9-]+/([a-z0-9.!#$&^_-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(r"[a-z0-9]+")
# The trace context is an attribute of the same name in CloudEvents.
_TRACE: Final = ("traceparent", "tracestate")
_HEADER: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_DIGITS: Final = re.compile(r"-?[0-9]{1,20}")


def to_cloudevent(change: Change) -> dict[str, Any]:
    """Return ``change`` as a CloudEvent in structured mode: a dict for ``json.dumps``.

    No information is lost: ``from_cloudevent`` turns the event into an equal change.
    """
    ext = dict(change.ext)
    foreign = ext.pop(_FOREIGN) if _are_attributes(ext.get(_FOREIGN)) else {}
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(UUID(bytes=change.id)),
        "source": quote(change.source, safe="/:@!$&'()*+,;=?#[]~") or _NO_SOURCE,
        "type": f"{_PREFIX}{change.type}.{change.op}",
        "subject": change.key,
        "time": _rfc3339(change.version.time),
        "recordversion": change.version.hex(),
        "recordschema": str(change.schema),
        "recordhops": str(change.hops),
    }
    event |= foreign
    for name in _TRACE:
        if isinstance(ext.get(name), str) and _HEADER.fullmatch(ext[name]):
            event[name] = ext.pop(name)
    if ext:
        event["recordext"] = dumps(to_json(ext))
    if change.known is not None:
        known = change.known
        event["recordknown"] = dumps(
            {
                "stamp": known.stamp.hex(),
                "values": {name: to_json(value) for name, value in known.values.items()},
                "versions": {name: version.hex() for name, version in known.versions.items()},
            }
        )
    if change.data is not None:
        event["datacontenttype"] = "application/json"
        event["data"] = {name: to_json(value) for name, value in change.data.items()}
    return event


def to_cloudevents(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Return ``changes`` as a batch of CloudEvents: a list for ``json.dumps``."""
    return [to_cloudevent(change) for change in changes]


def from_cloudevent(
    event: Mapping[str, Any] | str | bytes,
    *,
    type: str | Callable[[Mapping[str, Any]], str] | None = None,
    op: Op | Callable[[Mapping[str, Any]], Op] | None = None,
    key: Callable[[Mapping[str, Any]], str] | None = None,
    version: Callable[[Mapping[str, Any]], Version] | None = None,
) -> Change:
    """Return the change that a CloudEvent in structured mode describes.

    ``type`` and ``op``: the record type and the operation, or functions that return them for the
    event. They are needed unless the type of the event is ``eventsync.<record type>.<op>``. The
    data of any other event are read as plain JSON, without tagged values.

    ``key``: a function that returns the record's key for the event; by default the key is the
    ``subject``. ``version``: a function that returns the version; by default the version is
    ``recordversion``, or is made from ``time``, ``sequence`` and ``source``, so the same event
    always gives the same version.

    Raises ``EnvelopeError`` if the event is malformed. Does not catch the eventsync errors that the
    functions raise.
    """
    found = loads(event) if isinstance(event, str | bytes) else event
    if not isinstance(found, Mapping) or found.get("specversion") != "1.0":
        raise malformed("the text is not a CloudEvent of version 1.0", reason="envelope")
    event_type, event_id, source = _text(found, "type"), _text(found, "id"), _text(found, "source")
    own_type, _, own_op = event_type.removeprefix(_PREFIX).rpartition(".")
    ours = event_type.startswith(_PREFIX) and own_op in _OPS
    name = _called("type", type, found) if callable(type) else type
    kind = _called("op", op, found) if callable(op) else op
    if ours:
        name, kind = name or own_type, kind or _OPS[own_op]
    if name is None or kind is None:
        raise malformed(
            f"the record type and the operation cannot be read from the CloudEvent type "
            f"{event_type[:80]!r}",
            hint="pass the arguments type and op, or use the event type "
            "eventsync.<record type>.<put, patch or delete>; read events of Debezium with a "
            "DebeziumReader",
        )
    data = None if kind == DELETE else _data(found)
    if kind != DELETE and not isinstance(data, Mapping):
        raise malformed("the data of the CloudEvent is not a JSON object of field values")
    if data is not None and ours:
        data = {name: from_json(value) for name, value in data.items()}
    change = Change(
        type=name,
        key=_key(found) if key is None else _called("key", key, found),
        op=kind,
        version=_version(found, source) if version is None else _called("version", version, found),
        data=None if data is None else dict(data),
        source="" if source == _NO_SOURCE else _shortened(unquote(source)),
        id=_id(event_id, source),
        schema=_uint(found, "recordschema", 1),
        hops=_uint(found, "recordhops", 0),
        ext=_ext(found),
        known=_known(found),
    )
    try:
        encode(change)  # raises if the change breaks a rule of envelopes
    except ValueRefusedError as error:
        raise malformed(f"malformed CloudEvent: {error.message}", hint=error.hint) from error
    return change


def from_cloudevents(
    events: Iterable[Mapping[str, Any]] | str | bytes,
    *,
    type: str | Callable[[Mapping[str, Any]], str] | None = None,
    op: Op | Callable[[Mapping[str, Any]], Op] | None = None,
    key: Callable[[Mapping[str, Any]], str] | None = None,
    version: Callable[[Mapping[str, Any]], Version] | None = None,
) -> list[Change | EventSyncError]:
    """Return for each event of a batch its change, or the error that ``from_cloudevent`` raises.

    ``events``: the text of a JSON array, or parsed events. The other arguments: as in
    ``from_cloudevent``. Raises ``EnvelopeError`` if the text is not a JSON array.
    """
    found = loads_each(events) if isinstance(events, str | bytes) else events
    changes: list[Change | EventSyncError] = []
    for event in found:
        try:
            if isinstance(event, EnvelopeError):
                raise event
            if not isinstance(event, Mapping):
                raise malformed(f"the item of the batch is {shown(event)}, not a JSON object")
            changes.append(from_cloudevent(event, type=type, op=op, key=key, version=version))
        except EventSyncError as error:
            changes.append(error)
    return changes


def _called(name: str, function: Callable[[Mapping[str, Any]], T], event: Mapping[str, Any]) -> T:
    """Return what ``function``, the argument ``name`` of the caller, returns for the event."""
    try:
        return function(event)
    except EventSyncError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise malformed(
            f"the function in the argument {name} cannot read the CloudEvent "
            f"{shown(event.get('id'))}: {error!r}"
        ) from error


def _key(event: Mapping[str, Any]) -> str:
    if event.get("subject") is None:
        raise malformed(
            f"the CloudEvent {shown(event.get('id'))} has no subject, so the record's key is "
            "unknown",
            hint="pass the argument key, a function that returns the key for such an event",
        )
    return _text(event, "subject")


def _shortened(source: str) -> str:
    """Return a source that fits into an envelope. The end of a longer one becomes a hash."""
    if len(source) <= MAX_NAME:
        return source
    digest = hashlib.sha256(source.encode(errors="replace")).hexdigest()[:16]
    return f"{source[: MAX_NAME - 17]}~{digest}"


def _rfc3339(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(event: Mapping[str, Any], name: str) -> str:
    found = event.get(name)
    if not isinstance(found, str) or not found:
        raise malformed(f"the attribute {name} of the CloudEvent is missing, empty or not text")
    return found


def _uint(event: Mapping[str, Any], name: str, default: int) -> int:
    found = event.get(name, default)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    raise malformed(
        f"the attribute {name} of the CloudEvent is {shown(found)}, not an integer of at least 0"
    )


def check_json(event: Mapping[str, Any]) -> None:
    """Raise ``EnvelopeError`` unless the data of the event are JSON."""
    content_type = event.get("datacontenttype")
    if content_type is not None and not (
        isinstance(content_type, str) and _JSON.fullmatch(content_type)
    ):
        raise malformed(
            f"the data of the CloudEvent has the content type {str(content_type)[:60]!r}; only "
            "JSON can be read"
        )


def _data(event: Mapping[str, Any]) -> Any:
    check_json(event)
    encoded = event.get("data_base64")
    if encoded is None:
        return event.get("data")
    try:
        return loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, TypeError) as error:
        raise malformed("the attribute data_base64 of the CloudEvent is not base64") from error


def _id(text: str, source: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        # The event comes from another system. Its source and its id together identify the event.
        return hashlib.sha256(f"{source}\n{text}".encode(errors="replace")).digest()[:16]


def _version(event: Mapping[str, Any], source: str) -> Version:
    text = event.get("recordversion")
    try:
        if text is not None:
            return Version.parse(text)
    except (ValueError, TypeError) as error:
        raise malformed(
            "the attribute recordversion of the CloudEvent is not 32 hexadecimal digits"
        ) from error
    if event.get("time") is None:
        raise malformed(
            f"the CloudEvent {shown(event.get('id'))} has neither recordversion nor time",
            hint="pass the argument version, a function that returns the version for such an event",
        )
    try:
        moment = dt.datetime.fromisoformat(_text(event, "time").upper())
    except ValueError as error:
        raise malformed(
            "the attribute time of the CloudEvent is not a timestamp as in RFC 3339"
        ) from error
    if moment.tzinfo is None:
        raise malformed("the attribute time of the CloudEvent has no offset from UTC")
    micros = (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)
    if event.get("sequence") is not None:
        return version_at(micros, _sequence(event))
    node = hashlib.sha256(source.encode(errors="replace")).digest()[:8]
    return version_at(micros, int.from_bytes(node, "big"))


def _sequence(event: Mapping[str, Any]) -> int:
    """Return the attribute ``sequence`` as a node: it orders events of the same time."""
    text = str(event["sequence"])
    if _DIGITS.fullmatch(text):
        number = int(text)
        if number < 0 and event.get("sequencetype") == "Integer":
            number += 1 << 32  # 32 bits, which follow 2^31 - 1
        if 0 <= number < 1 << 64:
            return number
    elif len(text.encode(errors="replace")) <= 8:
        return int.from_bytes(text.encode(errors="replace").ljust(8, b"\0"), "big")
    raise malformed(
        f"the attribute sequence of the CloudEvent is {shown(text)}; eventsync reads numbers from "
        "0 to 2^64 - 1, and texts of at most 8 bytes",
        hint="pass the argument version, a function that returns the version for such an event",
    )


def _ext(event: Mapping[str, Any]) -> dict[str, Any]:
    ext: dict[str, Any] = {}
    if event.get("recordext") is not None:
        found = from_json(loads(_text(event, "recordext")))
        if not isinstance(found, dict):
            raise malformed("the attribute recordext of the CloudEvent is not a JSON object")
        ext = found
    for name in _TRACE:
        if event.get(name) is not None:
            ext[name] = _text(event, name)
    foreign = {n: value for n, value in event.items() if n not in _OURS and value is not None}
    if not foreign:
        return ext
    if not _are_attributes(foreign):
        raise malformed(
            f"the name or the value of one of these attributes of the CloudEvent is invalid: "
            f"{sorted(foreign)[:9]}",
            hint="CloudEvents allows only lower-case letters and digits in names, and only text, "
            "integers and booleans as values",
        )
    return {**ext, _FOREIGN: foreign}


def _are_attributes(value: Any) -> bool:
    """Return whether ``value`` is a map of valid extension attributes of other systems.

    The attributes that eventsync itself uses are not valid here.
    """
    return isinstance(value, Mapping) and all(
        _ATTRIBUTE.fullmatch(name) and name not in _OURS and isinstance(attribute, str | int)
        for name, attribute in value.items()
    )


def _known(event: Mapping[str, Any]) -> BaseState | None:
    if event.get("recordknown") is None:
        return None
    found = loads(_text(event, "recordknown"))
    try:
        values = {name: from_json(value) for name, value in found["values"].items()}
        versions = {name: Version.parse(text) for name, text in found["versions"].items()}
        return BaseState(Stamp(bytes.fromhex(found["stamp"])), values, versions)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise malformed(
            "the attribute recordknown of the CloudEvent is not a base state (stamp, values and "
            "versions)"
        ) from error
