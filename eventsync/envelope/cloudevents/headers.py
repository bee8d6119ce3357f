"""CloudEvents in binary mode: the attributes are headers, and the data are the body of a message.

HTTP percent-encodes header values. Kafka and the other protocols carry them as UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, overload
from urllib.parse import quote, unquote

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import Op
from eventsync.envelope.cloudevents.event import check_json, from_cloudevent, to_cloudevent
from eventsync.errors import malformed
from eventsync.values.tagged_json import dumps, loads

__all__ = ["from_headers", "to_headers"]

_HTTP: Final = "ce-"
_KAFKA: Final = "ce_"
_STRUCTURED: Final = re.compile(r"application/cloudevents(\+json)?\s*(;.*)?", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"\\(.)")


@overload
def to_headers(  # type: ignore[overload-overlap]  # the literal is narrower than str
    change: Change, *, prefix: Literal["ce_"]
) -> tuple[dict[str, bytes], bytes | None]: ...


@overload
def to_headers(change: Change, *, prefix: str = ...) -> tuple[dict[str, str], bytes]: ...


def to_headers(change: Change, *, prefix: str = _HTTP) -> tuple[dict[str, Any], bytes | None]:
    """Return ``change`` as a CloudEvent in binary mode: the headers and the body of a message.

    ``prefix``: what the protocol puts before header names: ``ce-`` for HTTP, ``ce_`` for Kafka.
    Header values are percent-encoded text for HTTP, UTF-8 bytes for Kafka, and plain text for any
    other prefix. The body of a delete is empty; for Kafka it is ``None``, a tombstone.
    """
    event = to_cloudevent(change)
    content_type = event.pop("datacontenttype", None)
    body = dumps(event.pop("data")).encode() if change.data is not None else None
    texts = {f"{prefix}{name}": _text(value) for name, value in event.items()}
    if prefix == _HTTP:
        texts = {name: _quoted(text) for name, text in texts.items()}
    if content_type is not None:
        texts["content-type"] = content_type
    if prefix == _KAFKA:
        return {name: text.encode() for name, text in texts.items()}, body
    return texts, body or b""


def from_headers(
    headers: Mapping[str, Any] | Iterable[tuple[Any, Any]],
    body: str | bytes | None,
    *,
    prefix: str = _HTTP,
    type: str | Callable[[Mapping[str, Any]], str] | None = None,
    op: Op | Callable[[Mapping[str, Any]], Op] | None = None,
    key: Callable[[Mapping[str, Any]], str] | None = None,
    version: Callable[[Mapping[str, Any]], Version] | None = None,
) -> Change:
    """Return the change that a CloudEvent in the headers and the body of a message describes.

    ``headers``: a mapping or pairs, of text or bytes. Names may be in upper or lower case. Except
    for ``Content-Type``, headers without the prefix are ignored. If the content type says that the
    body is the whole event (structured mode), the body is read alone. ``prefix``: as in
    ``to_headers``. The other arguments and the errors: as in ``from_cloudevent``.
    """
    event: dict[str, Any] = {}
    content_type = None
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        lower = _decoded(name).lower()
        if lower == "content-type":
            content_type = _decoded(value)
        elif lower.startswith(prefix.lower()):
            text = _decoded(value)
            event[lower[len(prefix) :]] = _unquoted(text) if prefix == _HTTP else text
    if content_type is not None and _STRUCTURED.fullmatch(content_type):
        return from_cloudevent(body or b"", type=type, op=op, key=key, version=version)
    if content_type is not None:
        event["datacontenttype"] = content_type
    if body:
        check_json(event)
        event["data"] = loads(body)
    return from_cloudevent(event, type=type, op=op, key=key, version=version)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    # Printable ASCII is not escaped, except the space, the double quote and the percent sign.
    return quote(text, safe="!#$&'()*+,/:;<=>?@[\\]^`{|}~")


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = _ESCAPED.sub(r"\1", text[1:-1])
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise malformed(
            "the percent-encoding of a header value of the CloudEvent is not UTF-8"
        ) from error


def _decoded(value: Any) -> Any:
    if not isinstance(value, bytes | bytearray | memoryview):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise malformed("a header of the CloudEvent is not UTF-8") from error
