"""The conversion between field values and the cells of a table, written as a person writes them.

``eventsync.stores.json_values`` does the same for the members of a JSON document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from eventsync.errors import RecordError, RejectedError, ValueRefusedError
from eventsync.records.view import BoundView
from eventsync.stores.json_values import (
    MAX_SIZE,
    Members,
    dump,
    escape_surrogates,
    exact_json,
    fields_by_name,
    from_base64,
    has_surrogates,
    parse,
    parse_value,
    refuse_long,
    refuse_overflow,
    to_text,
    with_floats,
    written,
)

__all__ = ["MAX_SIZE", "Cells", "Members", "dump", "escape_surrogates", "has_surrogates", "parse"]

_TEXT: Final = frozenset({str, bytes})
# The types whose cells can begin like a formula, and the beginning of such a cell.
_FORMULA_KINDS: Final = frozenset({str, bytes, object})
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")


class Cells:
    """The conversion of one view between field values and cells. Immutable, thread-safe.

    In an optional column of text, of bytes or with a conversion, ``null`` means ``None``; a value
    that looks like it is written with a backslash before it. With ``null=""`` an empty cell means
    ``None`` there, and an empty value is refused. In any other optional column an empty cell means
    ``None``. Lists, dicts and values of an undeclared type are JSON.

    ``formulas``: write texts that a spreadsheet would take for a formula as they are. If false,
    they get an apostrophe before them, and so do texts that already look like that; ``decode``
    removes it. Columns of numbers and dates cannot hold formulas and need none.
    """

    def __init__(self, view: BoundView, null: str, *, formulas: bool = True) -> None:
        self._names = tuple(view.names.values())
        self._fields = fields_by_name(view)
        self._null = null
        # The columns in which a cell may mean None. In all others the text is the value.
        names = {stored: name for name, stored in view.names.items()}
        self._nullable = {
            stored
            for stored, name in names.items()
            if name in view.convert or view.record_type.fields[name].optional
        } | set(view.constant)

        self._escaped: frozenset[str] = frozenset()
        if not formulas:
            kinds = {name: self._fields[name].type for name in names if name in self._fields}
            self._escaped = frozenset(n for n in names if kinds.get(n, str) in _FORMULA_KINDS)

    def encode(self, stored: Mapping[str, Any]) -> dict[str, str]:
        """Return the cells for the result of ``View.to_store``. Raises ``RejectedError``."""
        cells = {name: self._encode(name, value) for name, value in stored.items()}
        for name in self._escaped & cells.keys():
            if _FORMULA.match(cells[name]):
                cells[name] = f"'{cells[name]}"
        return cells

    def decode(self, cells: Mapping[str, str]) -> dict[str, Any]:
        """Return the argument of ``View.to_record`` for these cells. Raises ``FieldError``."""
        return {
            name: self._decode(name, self._unescaped(name, cells[name]))
            for name in self._names
            if name in cells
        }

    def _unescaped(self, name: str, text: str) -> str:
        escaped = name in self._escaped and text.startswith("'") and _FORMULA.match(text)
        return text[1:] if escaped else text

    def _encode(self, name: str, value: Any) -> str:
        field = self._fields.get(name)
        textual = field is None or field.type in _TEXT
        if value is None and name in self._nullable:
            return self._null if textual else ""
        if field is not None and not field.scalar:
            return dump(exact_json(field, value, name))
        text: str = written(to_text, value, name)
        if textual and name in self._nullable and self._like_null(text):
            if not self._null:
                raise RejectedError(
                    f"{name}: in this file an empty value would read back as None",
                    hint=r"pass a marker for None to the accessor: null='\\N'",
                )
            return f"\\{text}"
        return text

    def _decode(self, name: str, text: str) -> Any:
        field = self._fields.get(name)
        if name in self._nullable:
            if text == self._null or (not text and field is not None and field.type not in _TEXT):
                return None
            if text.startswith("\\") and self._like_null(text):
                text = text[1:]
        if field is None:
            return text
        if field.type is bytes:
            return from_base64(field, text)
        if field.scalar:
            if field.type is float:
                refuse_overflow(field, text)
            elif field.type is Decimal:
                refuse_long(field, text)
            return text
        try:
            return with_floats(parse_value(text))
        except ValueRefusedError as error:
            raise RecordError(f"{name}: {error.message}") from error
        except RecordError:
            if field.type is object:
                return text  # plain text that a person wrote into a column of any type
            raise field.error(text, f"{field.expected} as JSON") from None

    def _like_null(self, text: str) -> bool:
        if not self._null:
            return not text
        return text.endswith(self._null) and not text[: -len(self._null)].strip("\\")
