"""Encodes the headers, properties and arguments that backends store as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eventsync.errors import BusError

__all__ = ["decode_object", "encode_object"]


def encode_object(what: str, value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return ``value`` as JSON text.

    ``what``: the name of the value in errors. Raises ``BusError`` if ``value`` contains something
    that JSON cannot express.
    """
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise BusError(
            f"the {what} of a message cannot be stored as JSON: {error}",
            hint="use only texts, numbers, booleans, None, lists and dicts with text keys",
        ) from error


def decode_object(raw: Any) -> dict[str, Any]:
    """Decode a JSON object from text or bytes; never raise.

    Returns an empty dict for ``None``. If ``raw`` is not a JSON object, returns a dict with its
    first 1,000 characters under the name ``x-malformed``.
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
