"""The record: a key and field values that several stores hold, and what changed since its commit.

Of a store it knows only the three methods of ``RecordStore``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, MutableSet
from reprlib import Repr
from types import new_class
from typing import (
    Any,
    ClassVar,
    Protocol,
    Self,
    TypeVar,
    dataclass_transform,
)

from eventsync.errors import RecordError
from eventsync.records.declaration import Declared, bind, declared_in, inherited
from eventsync.records.field import MISSING, Field
from eventsync.records.record_type import RecordType, Rule, Unknown, content_hash, same

__all__ = [
    "AbsentFieldError",
    "Field",
    "Record",
    "RecordStore",
    "RecordType",
    "Rule",
    "Stores",
    "values_of",
]


R = TypeVar("R", bound="Record")


class AbsentFieldError(RecordError, AttributeError, KeyError):
    """A read field is absent, because the record's store does not hold it; that is not ``None``."""

    reason = "absent"


class RecordStore(Protocol):
    """The methods of a store that a record calls."""

    def update(self, record: Record, /, *, upsert: bool) -> object:
        """Write the record; with ``upsert`` add it if it is not there."""

    def remove(self, record: Record, /) -> object:
        """Remove the record."""

    def record_to_data(self, record: Record, /) -> Any:
        """Return what the store keeps for the record."""


class Stores(MutableSet[Any]):
    """The stores of a record: a set that compares by identity and keeps the order of adding."""

    __slots__ = ("_stores",)

    def __init__(self, stores: Iterable[Any] = ()) -> None:
        self._stores = {id(store): store for store in stores}

    def __contains__(self, store: object) -> bool:
        return id(store) in self._stores

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._stores.values()))

    def __len__(self) -> int:
        return len(self._stores)

    def __repr__(self) -> str:
        return f"Stores({list(self._stores.values())!r})"

    def add(self, value: Any) -> None:
        self._stores[id(value)] = value

    def discard(self, value: Any) -> None:
        self._stores.pop(id(value), None)


class _Attribute:
    """The attribute of a field: on a record its value, on the class the ``Field`` itself."""

    __slots__ = ("_field", "_member", "_name")

    def __init__(self, field: Field) -> None:
        self._field = field
        self._name = field.name
        self._member = field.member

    def __get__(self, record: Record | None, owner: type[Record]) -> Any:
        if record is None:
            return self._field
        value = record[self._name]
        return value if self._member is None or value is None else self._member(value)


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class Record:
    """A record that unlike stores hold.

    Declare a record type by extending this class with annotated fields::

        class Customer(Record, rule="field"):
            id: int = Field(key=True)
            name: str = Field(length=120)
            born: date | None = None

    Class keywords: ``name``, the name of the type on the wire (by default the class name);
    ``rule``, how concurrent edits merge, ``"record"`` (the default) or ``"field"``; ``schema``, the
    schema number (by default 1); ``abstract``, whether the class only passes its fields on to
    subclasses.

    The values of a record are plain: checked and converted by its fields, enumerations as their
    values, references to other records as their keys. ``record["status"]``, ``raw()`` and
    ``changes()`` return plain values. The attribute ``record.status`` returns the member of an
    enumeration.

    Records are equal if their type names and values are. Their hash depends on the values too, so
    do not alter a record that is in a set. Not thread-safe.
    """

    __slots__ = ("__weakref__", "_base", "_new", "_stores", "_values")

    __record__: ClassVar[RecordType]
    __declared__: ClassVar[Declared]

    _values: dict[str, Any]
    # The values that ``cancel`` restores: the committed ones, or those of a new record.
    _base: dict[str, Any]
    _new: bool
    _stores: Stores | None

    def __init__(self, /, **values: Any) -> None:
        """Make a new record.

        Raises ``FieldError`` for a wrong or missing value, ``RecordError`` for an unknown field.
        """
        record_type = _type_of(type(self))
        loaded = record_type.load(values)
        self._become(loaded, record_type.copied(loaded), True, None)

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        rule: Rule = "record",
        schema: int = 1,
        abstract: bool = False,
        _derived: Mapping[str, Field] | None = None,
    ) -> None:
        """Declare a record type. Raises ``RecordError``; ``FieldError`` for a wrong default."""
        super().__init_subclass__()
        # Annotations may use local names of the function around the class statement.
        scope = {**sys._getframe(1).f_locals, cls.__name__: cls}
        if _derived is None:
            cls.__declared__ = declared_in(cls, scope, Record)
        else:
            cls.__declared__ = {n: (field, None) for n, field in _derived.items()}
        if abstract:
            return
        record = name or cls.__name__
        declared = {**inherited(cls, scope, Record), **cls.__declared__}
        fields = bind(cls, record, declared, Record)
        cls.__record__ = RecordType(cls, record, fields, rule=rule, schema=schema)
        for field in fields.values():
            # A field of a derived type may have the name of a method; then the method stays.
            existing = getattr(cls, field.name, field)
            if _derived is None or isinstance(existing, Field):
                setattr(cls, field.name, _Attribute(field))

    @classmethod
    def derive(
        cls, name: str, fields: Mapping[str, Field], *, rule: Rule = "record", schema: int = 1
    ) -> type[Self]:
        """Return a record type made without a class statement, for example for an existing table.

        ``fields``: the fields by name, each with its ``type``. The names need not be identifiers:
        ``record["name"]`` reaches a field with any name, even the name of a method. Raises
        ``RecordError``.
        """
        caller = sys._getframe(1).f_globals.get("__name__", __name__)
        keywords = {"name": name, "rule": rule, "schema": schema, "_derived": fields}
        return new_class(
            name, (cls,), keywords, lambda namespace: namespace.update({"__module__": caller})
        )

    @classmethod
    def load(
        cls,
        data: Mapping[str, Any],
        *,
        partial: bool = False,
        stores: Iterable[RecordStore] = (),
        unknown: Unknown = "refuse",
    ) -> Self:
        """Return a record as ``stores`` hold it. Nothing in it is dirty.

        ``partial``: fields that are not in ``data`` are absent; otherwise they get their defaults.
        ``unknown``: whether data for undeclared fields are refused or ignored. Raises
        ``FieldError``, ``RecordError``.
        """
        record_type = _type_of(cls)
        loaded = record_type.load(data, partial=partial, unknown=unknown)
        record = cls.__new__(cls)
        lives_in = Stores(stores) if stores else None
        record._become(loaded, record_type.copied(loaded), False, lives_in)
        return record

    # -- values ----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """Return the plain value of a field. Raises ``AbsentFieldError``, ``RecordError``."""
        try:
            return self._values[name]
        except KeyError:
            pass
        record_type = self.__record__
        record_type.field(name)
        raise AbsentFieldError(
            f"the field {record_type.name}.{name} is absent from this record: the store that it "
            "was read from does not hold the field",
            hint=f"the record has {', '.join(self._values)}",
        )

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a field.

        Raises ``FieldError`` for a value that does not fit. Raises ``RecordError`` for an unknown
        field, and for a new value of a key field of a committed record.
        """
        field = self.__record__.field(name)
        plain = field.coerce(value)
        if field.key and not self._new and not same(plain, self._base.get(name, plain)):
            raise RecordError(
                f"{field.record}.{name}: the key of a committed record cannot change",
                hint=f"use copy({name}=...), commit the copy, and delete this record",
            )
        self._values[name] = plain

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = getattr(type(self), name, None)
        if isinstance(attribute, Field):
            self[name] = value
        elif hasattr(attribute, "__set__"):
            object.__setattr__(self, name, value)
        else:
            raise self.__record__.unknown([name])

    def __contains__(self, name: object) -> bool:
        """Return whether the record has a value of that field, which may be ``None``."""
        return name in self._values

    @property
    def key(self) -> str:
        """The canonical key (``RecordType.key_text``). Raises ``AbsentFieldError``."""
        for name in self.__record__.keys:
            self[name]
        return self.__record__.key_text(self._values)

    def raw(self, dirty: bool = True, store: RecordStore | None = None) -> Any:
        """Return a copy of the plain values by field, without the absent ones.

        ``dirty``: whether to return the current values; otherwise the last committed ones, none for
        a new record. ``store``: return what this store keeps for the record instead. Raises
        ``FieldError`` for an invalid value that was put into a list or dict.
        """
        if store is not None:
            return store.record_to_data(self)
        if dirty:
            return self.__record__.checked(self._values)
        return {} if self._new else self.__record__.copied(self._base)

    def copy(self, /, **changes: Any) -> Self:
        """Return a new record with copies of the values, except for ``changes``, in no store."""
        twin = _restored(type(self), self.__record__.copied(self._values), {}, True)
        for name, value in changes.items():
            twin[name] = value
        twin._base = self.__record__.copied(twin._values)
        return twin

    # -- changes ---------------------------------------------------------------------------------

    @property
    def dirty(self) -> frozenset[str]:
        """The fields that changed since the last commit; for a new record, all that it has.

        Changes inside lists and dicts count. A field that was set back is not dirty.
        """
        if self._new:
            return frozenset(self._values)
        base = self._base
        return frozenset(
            name for name, value in self._values.items() if not same(value, base.get(name, MISSING))
        )

    @property
    def is_dirty(self) -> bool:
        """Whether anything changed since the last commit; true for a new record."""
        if self._new:
            return True
        base = self._base
        return any(not same(v, base.get(name, MISSING)) for name, v in self._values.items())

    def changes(self) -> dict[str, Any]:
        """Return a copy of the values of the dirty fields. Raises ``FieldError`` like ``raw``."""
        return self.__record__.checked({name: self._values[name] for name in self.dirty})

    def clean(self) -> None:
        """Mark the values as committed, without writing them. For stores; idempotent."""
        self._base = self.__record__.copied(self._values)
        self._new = False

    def cancel(self) -> None:
        """Restore the committed values; in a new record, its first values. Idempotent."""
        self._values = self.__record__.copied(self._base)

    def commit(self, stores: Iterable[RecordStore] | None = None) -> None:
        """Write the record to ``stores``, by default its own, and mark it as committed.

        ``stores`` become stores of the record. Blocks on them. Raises the error of the first store
        that fails; the stores before it have been written, the record stays dirty, and another
        commit completes the work.
        """
        base, new = self._base, self._new
        for store in list(self.stores if stores is None else stores):
            try:
                store.update(self, upsert=True)
            finally:
                # A store may call ``clean``, but the next store must see the changes too.
                self._base, self._new = base, new
            self.stores.add(store)
        self.clean()

    def delete(self, stores: Iterable[RecordStore] | None = None) -> None:
        """Remove the record from ``stores``, by default its own. In no store, it is new again.

        Blocks on the stores. Raises the error of the first store that fails; the record's
        ``stores`` are then those that still hold it.
        """
        for store in list(self.stores if stores is None else stores):
            store.remove(self)
            self.stores.discard(store)
        if not self.stores:
            self._new = True

    @property
    def stores(self) -> Stores:
        """The stores that hold the record. The set may be altered."""
        if self._stores is None:
            self._stores = Stores()
        return self._stores

    # -- content ---------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return self.__record__.name == other.__record__.name and same(self._values, other._values)

    def __hash__(self) -> int:
        return hash((self.__record__.name, content_hash(self._values)))

    def __repr__(self) -> str:
        short = Repr()
        short.maxstring = short.maxother = 40
        fields = self.__record__.fields
        present = [name for name in fields if name in self._values]
        shown = [
            f"{name}={'***' if fields[name].secret else short.repr(self._values[name])}"
            for name in present[:8]
        ]
        if len(present) > len(shown):
            shown.append("...")
        return f"{self.__record__.name}({', '.join(shown)})"

    def __copy__(self) -> Self:
        copied = self.__record__.copied
        return _restored(type(self), copied(self._values), copied(self._base), self._new)

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self._values, self._base, self._new)

    def _become(
        self, values: dict[str, Any], base: dict[str, Any], new: bool, stores: Stores | None
    ) -> None:
        put = object.__setattr__
        put(self, "_values", values)
        put(self, "_base", base)
        put(self, "_new", new)
        put(self, "_stores", stores)


def values_of(record: Record) -> Mapping[str, Any]:
    """Return the plain values of a record, not copied. Read them at once; do not alter them."""
    return record._values


def _restored(cls: type[R], values: dict[str, Any], base: dict[str, Any], new: bool) -> R:
    """Return a record in that state and in no store: stores are neither copied nor pickled."""
    record = cls.__new__(cls)
    record._become(values, base, new, None)
    return record


def _type_of(cls: type[Record]) -> RecordType:
    try:
        return cls.__record__
    except AttributeError:
        raise RecordError(
            f"the record type {cls.__name__} is abstract, so it has no records",
            hint="declare a subclass of it",
        ) from None
