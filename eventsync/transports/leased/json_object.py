"""JSON objects as backends store them: headers, properties and arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eventsync.errors import BusError

__all__ = ["decode_object", "encode_object"]


def encode_object(what: str, value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return a value as JSON.

    Raises: BusError that names ``what`` if the value holds anything but JSON values.
    """
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise BusError(
            f"the {what} of a message cannot be stored as JSON: {error}",
            hint="use JSON values only",
        ) from error


def decode_object(raw: Any) -> dict[str, Any]:
    """Return the object in ``raw``; never raise.

    ``None`` is an empty object. The beginning of any other content is returned as ``x-malformed``.
    """
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except (TypeError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    text = raw[:1000].decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)[:1000]
    return {"x-malformed": text}
