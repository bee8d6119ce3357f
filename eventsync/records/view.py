"""The view: how a store holds a record type: which fields, under which names, and which records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventsync.errors import ConfigError, EventSyncError, RejectedError
from eventsync.records.query import Filter
from eventsync.records.record import RecordType
from eventsync.records.record_type import same

__all__ = ["BoundView", "Convert", "View"]


@dataclass(slots=True, frozen=True)
class Convert:
    """A conversion of the values of one field between the record and the store.

    ``to_store``: a function that returns the store's value for a field value. ``to_record``: the
    inverse function. If the field is optional, both functions must accept ``None``.
    """

    to_store: Callable[[Any], Any]
    to_record: Callable[[Any], Any]


@dataclass(slots=True, frozen=True, kw_only=True)
class View:
    """The part of a record type that a store holds. By default all fields of all records.

    - ``only``: the names of the fields that the store holds. ``omit``: the names of the fields that
      it does not hold. Give at most one of these two.
    - ``rename``: field name -> name of the field in the store.
    - ``constant``: name in the store -> additional value that every new record gets there.
    - ``convert``: field name -> conversion of its values.
    - ``where``: a filter (``eventsync.records.query``) for the records that the store holds. It may
      use fields that the store does not hold. A record that no longer matches is removed from this
      store, but not from other stores.
    """

    only: Iterable[str] | None = None
    omit: Iterable[str] = ()
    rename: Mapping[str, str] | None = None
    constant: Mapping[str, Any] | None = None
    convert: Mapping[str, Convert] | None = None
    where: Mapping[str, Any] | None = None

    def bind(self, record_type: RecordType) -> BoundView:
        """Return this view, bound to ``record_type``.

        Raises ``ConfigError`` if the view does not fit the record type, and ``FilterError`` if
        ``where`` is not a valid filter.
        """
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
                        f"the argument {what} contains the field {name!r}, which is not declared",
                        hint=f"the fields of {record_type.name} are {', '.join(known)}",
                    )
        if only is not None and omit:
            raise self._error(
                "the arguments only and omit are both given", hint="give only one of the two"
            )
        self.fields: tuple[str, ...] = tuple(
            name for name in known if name not in omit and (only is None or name in only)
        )
        """The names of the fields that the store holds, in the order of declaration."""
        for name in record_type.keys:
            if name not in self.fields:
                raise self._error(
                    f"the key field {name!r} is left out, but a view must contain all key fields",
                    hint=f"add {name!r} to only, or remove the field from omit",
                )
        self.names: dict[str, str] = {name: rename.get(name, name) for name in self.fields}
        """Field name -> name of the field in the store, for the fields that the store holds."""
        self.constant: dict[str, Any] = dict(view.constant or {})
        taken: dict[str, str] = {}
        for name, stored in [*self.names.items(), *((f"constant {c}", c) for c in self.constant)]:
            if stored in taken:
                raise self._error(
                    f"{taken[stored]!r} and {name!r} have the same name {stored!r} in the store",
                    hint="give one of them another name with rename",
                )
            taken[stored] = name
        self.convert: dict[str, Convert] = {n: c for n, c in convert.items() if n in self.fields}
        self.where: Filter | None = (
            Filter.parse(view.where, record_type) if view.where is not None else None
        )
        self.partial: bool = len(self.fields) < len(known)
        """Whether the store does not hold all fields of the record type."""
        judged = self.where.fields if self.where else frozenset()
        self.judged: frozenset[str] = judged
        """The names of the fields that the filter ``where`` reads."""
        self.needed: tuple[str, ...] = tuple(
            name
            for name in known
            if name not in record_type.keys and (name in self.names or name in judged)
        )
        """The names of the fields whose values must be known to write a record, without the key."""
        self.wanted: frozenset[str] = frozenset(self.needed)
        """The names in ``needed``, as a set."""
        self.optional: tuple[str, ...] = tuple(n for n in self.fields if known[n].optional)
        """The names of the fields that the store holds and whose value may be ``None``."""
        self.fills: dict[str, Any] = {}
        """Field name -> the value that the store itself gives new and old records in that field.

        For example the default of a column. The accessor sets it when it knows the store.
        """
        self._defaults: dict[str, Any] = {
            name: known[name].make_default()
            for name in self.fields
            if known[name].default_factory in (None, list, dict, set) and known[name].has_default
        }
        self._plain = not self.convert and all(n == s for n, s in self.names.items())

    def _error(self, message: str, *, hint: str = "") -> ConfigError:
        return ConfigError(f"the view of {self.record_type.name}: {message}", hint=hint)

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Return whether a record with these field values matches the filter of the view."""
        return self.where is None or self.where.matches(values)

    def excludes(self, values: Mapping[str, Any]) -> bool:
        """Return whether the filter of the view excludes a record with these field values.

        Returns ``False`` if the value of a field that the filter reads is not known.
        """
        return self.judged <= values.keys() and not self.matches(values)

    def fills_in(self, name: str, value: Any) -> bool:
        """Return whether ``value`` may stand in the field ``name`` although nobody has set it.

        So may ``None``, the field's default, and the value that the store itself gives the field.
        """
        return value is None or any(
            name in filled and same(filled[name], value) for filled in (self._defaults, self.fills)
        )

    def to_store(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of ``values`` that the store holds, converted and by the store's names.

        ``values``: field values by name. Constants are not included, because only adding a record
        writes them. Raises ``RejectedError`` if a conversion fails.
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
        """Return the plain field values that the store's values stand for, by field name.

        ``stored``: values by the store's names; other names are ignored. Raises ``RejectedError``
        if a conversion fails, and ``FieldError`` if a value does not fit its field.
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
                f"{self.record_type.name}.{name}: the function {which} of the view's conversion "
                f"raised {type(error).__name__}: {error}",
                hint="correct the function; if a change became a dead letter, replay it",
            ) from error
