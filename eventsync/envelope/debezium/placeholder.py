"""The placeholder that a connector sends for the value of a column that did not change.

The log of a database may lack large values that a change leaves as they are: PostgreSQL's TOAST
values, Oracle's large objects. The connector setting ``unavailable.value.placeholder`` is the
placeholder; the type of the column decides the form in which it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

__all__ = ["PLACEHOLDER", "Placeholder", "may_lack_placeholder"]

PLACEHOLDER: Final = "__debezium_unavailable_value"
"""The default of the connectors."""

# Newer connectors declare the form in the schema of the column.
_DECLARED: Final = "__debezium.unavailable.value.placeholder"
_TEXTS: Final = (None, "io.debezium.data.Json", "io.debezium.data.Uuid")


class Placeholder:
    """Recognises a placeholder in all its forms. Immutable.

    ``content``: the placeholder as in the settings of the connector; ``bytes`` for one that is set
    in hexadecimal form.
    """

    def __init__(self, content: str | bytes = PLACEHOLDER) -> None:
        raw = content.encode() if isinstance(content, str) else content
        text = raw.decode(errors="replace")
        in_json = json.dumps({text: text}, separators=(",", ":"), ensure_ascii=False)
        # UUID arrays hold the UUID of version 3 that Java makes from the placeholder.
        named = UUID(bytes=hashlib.md5(raw, usedforsecurity=False).digest(), version=3)
        encoded = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
        self._texts = frozenset(
            {text, raw.hex(), raw.hex().upper(), str(named), in_json}
            | {part.decode() for part in encoded}
            | {part.decode().rstrip("=") for part in encoded}
        )
        # The bytes of Java have a sign.
        self._numbers = [byte - 256 if byte > 127 else byte for byte in raw]
        self._map = {text: text}

    def matches(self, value: Any, schema: Any = None) -> bool:
        """Return whether ``value``, as it is in the event, is the placeholder.

        ``schema``: the schema of the column, or ``None``.
        """
        if isinstance(value, str):
            found = value in self._texts
        elif isinstance(value, list):
            found = value == self._numbers or (len(value) == 1 and self.matches(value[0]))
        else:
            found = isinstance(value, dict) and value == self._map
        return found or (schema is not None and _is_declared(value, schema))


def _is_declared(value: Any, schema: Any) -> bool:
    parameters = schema.get("parameters") if isinstance(schema, Mapping) else None
    declared = parameters.get(_DECLARED) if isinstance(parameters, Mapping) else None
    if value is None or not isinstance(declared, str):
        return False
    if isinstance(value, str):
        return value == declared
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) == declared


def may_lack_placeholder(schema: Any) -> bool:
    """Return whether PostgreSQL's connector sends null for an unchanged large value of this type.

    It has no placeholder for numbers of any length and for arrays of numbers, booleans and times.
    ``schema``: the schema of the column, or ``None``.
    """
    if not isinstance(schema, Mapping):
        return False
    kind, name = schema.get("type"), schema.get("name")
    if name in ("io.debezium.data.VariableScaleDecimal", "base64", "base64-url-safe"):
        return True
    items = schema.get("items")
    if kind != "array" or not isinstance(items, Mapping):
        return False
    kind, name = items.get("type"), items.get("name")
    if kind == "string":
        return name not in _TEXTS
    if kind == "int32":
        return name not in (None, "io.debezium.time.Date")
    return kind != "int64" or name is not None
