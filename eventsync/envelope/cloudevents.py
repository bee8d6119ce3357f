"""CloudEvents 1.0 in JSON: converts changes to events and back, in structured or binary mode.

The mapping is described in docs/envelope.md.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote
from uuid import UUID

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version, version_at
from eventsync.changes.stamp import DELETE, PATCH, PUT, Op, Stamp
from eventsync.envelope.codec import encode
from eventsync.errors import ValueRefusedError, malformed, shown
from eventsync.values.tagged_json import dumps, from_json, loads, to_json

__all__ = ["CONTENT_TYPE", "from_cloudevent", "from_headers", "to_cloudevent", "to_headers"]

CONTENT_TYPE: Final = "application/cloudevents+json"
"""The content type of a CloudEvent in structured mode."""

_PREFIX: Final = "eventsync."
_OPS: Final[Mapping[str, Op]] = {PUT: PUT, PATCH: PATCH, DELETE: DELETE}
_NO_SOURCE: Final = "urn:eventsync:unknown"
# The entry of ``Change.ext`` that keeps the attributes that eventsync does not use.
_FOREIGN: Final = "cloudevents"
_OURS: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
    | {"data", "data_base64"}
    | {"recordversion", "recordschema", "recordhops", "recordext", "recordknown"}
)
_JSON: Final = re.compile(r"application/([a-z0-9.!#$&^_-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(r"[a-z0-9]+")


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


def from_cloudevent(
    event: Mapping[str, Any] | str | bytes, *, type: str | None = None, op: Op | None = None
) -> Change:
    """Return the change that a CloudEvent in structured mode describes.

    ``type`` and ``op``: the record type and the operation. They are needed unless the type of the
    event is ``eventsync.<record type>.<op>``. The data of any other event are read as plain JSON,
    without tagged values. The ``subject`` of the event is the key of the record. An event without
    ``recordversion`` gets a version made from its ``time`` and ``source``, so the same event always
    gives the same version. Raises ``EnvelopeError``, and no other error, if the event is malformed.
    """
    found = event if isinstance(event, Mapping) else loads(event)
    if not isinstance(found, Mapping) or found.get("specversion") != "1.0":
        raise malformed("the text is not a CloudEvent of version 1.0", reason="envelope")
    event_type, event_id = _text(found, "type"), _text(found, "id")
    source, key = _text(found, "source"), _text(found, "subject")
    own_type, _, own_op = event_type.removeprefix(_PREFIX).rpartition(".")
    ours = event_type.startswith(_PREFIX) and own_op in _OPS
    if ours:
        type, op = type or own_type, op or _OPS[own_op]
    if type is None or op is None:
        raise malformed(
            f"the record type and the operation cannot be read from the CloudEvent type "
            f"{event_type[:80]!r}",
            hint="pass the arguments type and op, or use the event type "
            "eventsync.<record type>.<put, patch or delete>",
        )
    data = None if op == DELETE else _data(found)
    if op != DELETE and not isinstance(data, Mapping):
        raise malformed("the data of the CloudEvent is not a JSON object of field values")
    if data is not None and ours:
        data = {name: from_json(value) for name, value in data.items()}
    change = Change(
        type=type,
        key=key,
        op=op,
        version=_version(found, source),
        data=None if data is None else dict(data),
        source="" if source == _NO_SOURCE else unquote(source),
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


def to_headers(change: Change, *, prefix: str = "ce-") -> tuple[dict[str, str], bytes]:
    """Return ``change`` as a CloudEvent in binary mode: the headers and the body of a message.

    ``prefix``: what the protocol puts before header names: ``ce-`` for HTTP, ``ce_`` for Kafka.
    Header values are percent-encoded as in the HTTP binding of CloudEvents, for any protocol.
    """
    event = to_cloudevent(change)
    content_type = event.pop("datacontenttype", None)
    body = dumps(event.pop("data")).encode() if change.data is not None else b""
    headers = {f"{prefix}{name}": _quoted(value) for name, value in event.items()}
    if content_type is not None:
        headers["content-type"] = content_type
    return headers, body


def from_headers(
    headers: Mapping[str, Any],
    body: bytes,
    *,
    prefix: str = "ce-",
    type: str | None = None,
    op: Op | None = None,
) -> Change:
    """Return the change that a CloudEvent in binary mode describes.

    ``prefix``: as in ``to_headers``. ``type``, ``op`` and the errors: as in ``from_cloudevent``.
    Header names may be in upper or lower case. Except for ``Content-Type``, headers without the
    prefix are ignored.
    """
    event: dict[str, Any] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower == "content-type":
            event["datacontenttype"] = value
        elif lower.startswith(prefix.lower()):
            event[lower[len(prefix) :]] = unquote(value) if isinstance(value, str) else value
    if body:
        _check_json(event)
        event["data"] = loads(body)
    return from_cloudevent(event, type=type, op=op)


def _quoted(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # Printable ASCII is not escaped, except the space, the double quote and the percent sign.
    return quote(text, safe="!#$&'()*+,/:;<=>?@[\\]^`{|}~")


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


def _check_json(event: Mapping[str, Any]) -> None:
    content_type = event.get("datacontenttype")
    if content_type is not None and not (
        isinstance(content_type, str) and _JSON.fullmatch(content_type)
    ):
        raise malformed(
            f"the data of the CloudEvent has the content type {str(content_type)[:60]!r}; only "
            "JSON can be read"
        )


def _data(event: Mapping[str, Any]) -> Any:
    _check_json(event)
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
    try:
        moment = dt.datetime.fromisoformat(_text(event, "time").upper())
    except ValueError as error:
        raise malformed(
            "the attribute time of the CloudEvent is not a timestamp as in RFC 3339"
        ) from error
    if moment.tzinfo is None:
        raise malformed("the attribute time of the CloudEvent has no offset from UTC")
    micros = (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)
    node = hashlib.sha256(source.encode(errors="replace")).digest()[:8]
    return version_at(micros, int.from_bytes(node, "big"))


def _ext(event: Mapping[str, Any]) -> dict[str, Any]:
    ext: dict[str, Any] = {}
    if event.get("recordext") is not None:
        found = from_json(loads(_text(event, "recordext")))
        if not isinstance(found, dict):
            raise malformed("the attribute recordext of the CloudEvent is not a JSON object")
        ext = found
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
