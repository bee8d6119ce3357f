"""Values as a person would write them in the cells of a table, and back.

It knows nothing of files. What a JSON document holds is in ``eventsync.stores.json_values``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from eventsync.errors import RejectedError
from eventsync.records.view import BoundView
from eventsync.stores.json_values import (
    DECODER,
    Members,
    check_exact,
    dump,
    fields_by_name,
    from_base64,
    parse,
    to_json,
    to_text,
    with_floats,
    written,
)

__all__ = ["Cells", "Members", "dump", "parse"]

_TEXT: Final = frozenset({str, bytes})


class Cells:
    """The cells of a table of text, for one view of a record type. Immutable, thread-safe.

    In a column of text, bytes or of a conversion, ``null`` stands for ``None``, if the field is
    optional; a value that looks like it gets a backslash before it. With an empty ``null`` an empty
    cell is ``None`` there, and an empty value is refused. In any other optional column an empty
    cell is ``None``. Lists, dicts and values of an undeclared type are JSON.
    """

    def __init__(self, view: BoundView, null: str) -> None:
        self._names = tuple(view.names.values())
        self._fields = fields_by_name(view)
        self._null = null
        # Where a cell may say None: for every other name the text is what it is.
        names = {stored: name for name, stored in view.names.items()}
        self._nullable = {
            stored
            for stored, name in names.items()
            if name in view.convert or view.record_type.fields[name].optional
        } | set(view.constant)

    def encode(self, stored: Mapping[str, Any]) -> dict[str, str]:
        """The cells for what ``View.to_store`` gave. Raises ``RejectedError``."""
        return {name: self._encode(name, value) for name, value in stored.items()}

    def decode(self, cells: Mapping[str, str]) -> dict[str, Any]:
        """What ``View.to_record`` takes, of the cells. Raises ``FieldError``."""
        return {name: self._decode(name, cells[name]) for name in self._names if name in cells}

    def _encode(self, name: str, value: Any) -> str:
        field = self._fields.get(name)
        textual = field is None or field.type in _TEXT
        if value is None and name in self._nullable:
            return self._null if textual else ""
        if field is not None and not field.scalar:
            member = written(to_json, value, name)
            check_exact(field, value, member)
            return dump(member)
        text: str = written(to_text, value, name)
        if textual and name in self._nullable and self._like_null(text):
            if not self._null:
                raise RejectedError(
                    f"{name}: an empty value cannot be told from None in this file",
                    hint=r"give the accessor a null marker, as null='\\N'",
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
            return text
        try:
            return with_floats(DECODER.decode(text))
        except (ValueError, RecursionError):
            if field.type is object:
                return text  # a person wrote plain text where anything may stand
            raise field.error(text, f"{field.expected} as JSON") from None

    def _like_null(self, text: str) -> bool:
        if not self._null:
            return not text
        return text.endswith(self._null) and not text[: -len(self._null)].strip("\\")
