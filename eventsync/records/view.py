"""The view: which fields of a record type a store holds, under which names, and which records."""

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
    """A conversion of one field's values. Each of its functions must be the other's inverse.

    ``to_store``: returns what the store keeps for a field's value. ``to_record``: returns the
    field's value for what the store keeps. If the field is optional, both must take ``None``.
    """

    to_store: Callable[[Any], Any]
    to_record: Callable[[Any], Any]


@dataclass(slots=True, frozen=True, kw_only=True)
class View:
    """The part of a record type that a store holds. Without arguments: all of every record.

    ``only``, or ``omit``: the fields that the store holds, or does not hold. ``rename``: the
    store's name of a field. ``constant``: additional values that every record gets in the store, by
    the store's names. ``convert``: conversions by field. ``where``: the records that the store
    holds, as a filter (``eventsync.records.query``). The filter may use fields that the store does
    not hold. A record that stops matching is removed from this store only.
    """

    only: Iterable[str] | None = None
    omit: Iterable[str] = ()
    rename: Mapping[str, str] | None = None
    constant: Mapping[str, Any] | None = None
    convert: Mapping[str, Convert] | None = None
    where: Mapping[str, Any] | None = None

    def bind(self, record_type: RecordType) -> BoundView:
        """Return this view, bound to ``record_type``. Raises ``ConfigError`` if it does not fit."""
        return BoundView(self, record_type)


class BoundView:
    """A view that is bound to a record type and checked. Immutable, hence thread-safe."""

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
                    raise self._error(
                        f"{what} names the field {name!r}, which is not declared",
                        hint=f"the fields of {record_type.name} are {', '.join(known)}",
                    )
        if only is not None and omit:
            raise self._error("only and omit are both given", hint="use one of them")
        self.fields: tuple[str, ...] = tuple(
            name for name in known if name not in omit and (only is None or name in only)
        )
        """The fields that the store holds, in the order of declaration."""
        for name in record_type.keys:
            if name not in self.fields:
                raise self._error(
                    f"the key field {name!r} is left out, so no record could be found",
                    hint="a view must hold every key field",
                )
        self.names: dict[str, str] = {name: rename.get(name, name) for name in self.fields}
        """The store's name of each field that it holds."""
        self.constant: dict[str, Any] = dict(view.constant or {})
        taken: dict[str, str] = {}
        for name, stored in [*self.names.items(), *((f"constant {c}", c) for c in self.constant)]:
            if stored in taken:
                raise self._error(
                    f"{taken[stored]!r} and {name!r} have the same name {stored!r} in the store"
                )
            taken[stored] = name
        self.convert: dict[str, Convert] = {n: c for n, c in convert.items() if n in self.fields}
        self.where: Filter | None = (
            Filter.parse(view.where, record_type) if view.where is not None else None
        )
        self.partial: bool = len(self.fields) < len(known)
        """Whether the store lacks some fields of the record type."""
        judged = self.where.fields if self.where else frozenset()
        self.judged: frozenset[str] = judged
        """The fields that the filter ``where`` reads."""
        self.needed: tuple[str, ...] = tuple(
            name
            for name in known
            if name not in record_type.keys and (name in self.names or name in judged)
        )
        """The fields, except the key's, whose values must be known to write a record."""
        self.wanted: frozenset[str] = frozenset(self.needed)
        """The same as ``needed``, as a set."""
        self.optional: tuple[str, ...] = tuple(n for n in self.fields if known[n].optional)
        """The fields that the store holds and that may be ``None``."""
        self._plain = not self.convert and all(n == s for n, s in self.names.items())

    def _error(self, message: str, *, hint: str = "") -> ConfigError:
        return ConfigError(f"view of {self.record_type.name}: {message}", hint=hint)

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Return whether the store holds a record with these field values."""
        return self.where is None or self.where.matches(values)

    def to_store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of ``values`` that the store holds, converted, under the store's names.

        Constants are left out, because they are written when a record is added. Raises
        ``RejectedError``, which names the field, if a conversion fails.
        """
        if self._plain:
            return {name: values[name] for name in self.fields if name in values}
        stored = {}
        for name, store_name in self.names.items():
            if name in values:
                conversion = self.convert.get(name)
                value = values[name]
                if conversion is not None:
                    value = self._call(conversion.to_store, "to_store", name, value)
                stored[store_name] = value
        return stored

    def to_record(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the field values, converted and checked, for what the store holds.

        Other data in ``stored`` are left out. Raises ``RejectedError`` if a conversion fails, and
        ``FieldError`` if a value does not fit its field.
        """
        values = {}
        for name, store_name in self.names.items():
            if store_name in stored:
                conversion = self.convert.get(name)
                value = stored[store_name]
                if conversion is not None:
                    value = self._call(conversion.to_record, "to_record", name, value)
                values[name] = value
        return self.record_type.load(values, partial=True)

    def _call(self, function: Callable[[Any], Any], which: str, name: str, value: Any) -> Any:
        try:
            return function(value)
        except EventSyncError:
            raise
        except Exception as error:
            raise RejectedError(
                f"{self.record_type.name}.{name}: the view's conversion {which} raised "
                f"{type(error).__name__}: {error}",
                hint="correct the conversion, then replay the dead letter",
            ) from error
