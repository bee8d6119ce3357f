"""How one store sees the records of one type: which fields, under which names, and which records.

This module knows nothing of versions, changes or how a store keeps its data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventsync.errors import ConfigError, EventSyncError, RejectedError
from eventsync.records.query import Filter
from eventsync.records.record import RecordType

__all__ = ["BoundView", "Convert", "View"]


@dataclass(slots=True, frozen=True)
class Convert:
    """A conversion of one field's values, both ways. Each must be the other's inverse.

    ``to_store`` gets a field's value and gives what the store keeps; ``to_record`` the reverse.
    Both are called with ``None`` too when the field is optional.
    """

    to_store: Callable[[Any], Any]
    to_record: Callable[[Any], Any]


@dataclass(slots=True, frozen=True, kw_only=True)
class View:
    """What a store holds of a record type; without arguments, all of every record as it is.

    ``only`` or ``omit``: the fields it holds or does not. ``rename``: a field's name in the store.
    ``constant``: values, by the store's names, that every record gets there and that no field
    holds. ``convert``: conversions by field. ``where``: which records live in this store, as a
    filter over the record's fields (``eventsync.records.query``), also over fields it does not
    hold; a record that stops matching is removed from this store only.
    """

    only: Iterable[str] | None = None
    omit: Iterable[str] = ()
    rename: Mapping[str, str] | None = None
    constant: Mapping[str, Any] | None = None
    convert: Mapping[str, Convert] | None = None
    where: Mapping[str, Any] | None = None

    def bind(self, record_type: RecordType) -> BoundView:
        """This view of ``record_type``. Raises ``ConfigError`` when the two do not fit."""
        return BoundView(self, record_type)


class BoundView:
    """A view of one record type, checked and ready. Immutable, hence thread-safe."""

    def __init__(self, view: View, record_type: RecordType) -> None:
        self.record_type = record_type
        known = record_type.fields
        only = None if view.only is None else frozenset(view.only)
        omit = frozenset(view.omit)
        rename = dict(view.rename or {})
        convert = dict(view.convert or {})
        for what, names in (
            ("only", only or ()),
            ("omit", omit),
            ("rename", rename),
            ("convert", convert),
        ):
            for name in names:
                if name not in known:
                    raise self._error(f"{what} names the field {name!r}, which is not declared")
        if only is not None and omit:
            raise self._error("only and omit exclude each other")
        self.fields: tuple[str, ...] = tuple(
            name for name in known if name not in omit and (only is None or name in only)
        )
        """The record's fields that the store holds, in the order of their declaration."""
        for name in record_type.keys:
            if name not in self.fields:
                raise self._error(f"the key field {name!r} is left out; no record could be found")
        self.names: dict[str, str] = {name: rename.get(name, name) for name in self.fields}
        """The store's name of each field it holds."""
        self.constant: dict[str, Any] = dict(view.constant or {})
        taken: dict[str, str] = {}
        for name, stored in [*self.names.items(), *((f"constant {c}", c) for c in self.constant)]:
            if stored in taken:
                raise self._error(f"{taken[stored]!r} and {name!r} both go to {stored!r}")
            taken[stored] = name
        self.convert: dict[str, Convert] = {n: c for n, c in convert.items() if n in self.fields}
        self.where: Filter | None = (
            Filter.parse(view.where, record_type) if view.where is not None else None
        )
        self.partial: bool = len(self.fields) < len(known)
        """Whether the store lacks fields that the record type declares."""
        judged = self.where.fields if self.where else frozenset()
        self.judged: frozenset[str] = judged
        """The fields by which ``where`` judges a record."""
        self.needed: tuple[str, ...] = tuple(
            name
            for name in known
            if name not in record_type.keys and (name in self.names or name in judged)
        )
        """The fields, keys aside, whose values must be known before a record can be written."""
        self.wanted: frozenset[str] = frozenset(self.needed)
        """The same, to look them up."""
        self.optional: tuple[str, ...] = tuple(n for n in self.fields if known[n].optional)
        """The fields it holds of which a record may have no value."""
        self._plain = not self.convert and all(n == s for n, s in self.names.items())

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"view of {self.record_type.name}: {message}")

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Whether a record of these field values lives in the store."""
        return self.where is None or self.where.matches(values)

    def to_store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``values`` that the store holds, converted and under its names.

        Constants are not part of it: they are written when a record is added. Raises
        ``RejectedError`` when a conversion fails, naming the field.
        """
        if self._plain:
            return {name: values[name] for name in self.fields if name in values}
        stored = {}
        for name, store_name in self.names.items():
            if name in values:
                conversion = self.convert.get(name)
                held = values[name]
                if conversion is not None:
                    held = self._call(conversion.to_store, "to_store", name, held)
                stored[store_name] = held
        return stored

    def to_record(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The field values, validated and coerced, of what the store holds under its names.

        What the store holds beside the view is left out. Raises ``RejectedError`` when a
        conversion fails, and ``FieldError`` when a value does not fit its field.
        """
        values = {}
        for name, store_name in self.names.items():
            if store_name in stored:
                conversion = self.convert.get(name)
                held = stored[store_name]
                if conversion is not None:
                    held = self._call(conversion.to_record, "to_record", name, held)
                values[name] = held
        return self.record_type.load(values, partial=True)

    def _call(self, function: Callable[[Any], Any], which: str, name: str, held: Any) -> Any:
        try:
            return function(held)
        except EventSyncError:
            raise
        except Exception as error:
            raise RejectedError(
                f"{self.record_type.name}.{name}: the conversion {which} failed: "
                f"{type(error).__name__}: {error}",
                hint="mend the conversion in the view, then replay the dead letter",
            ) from error
