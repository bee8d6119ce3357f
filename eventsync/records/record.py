"""The record: a key and field values that several stores hold. It knows its uncommitted changes.

A record calls only the three methods of a store that ``RecordStore`` lists.
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
    """A field was read that the record does not have, because its store does not hold the field.

    An absent field is not the same as a field whose value is ``None``.
    """

    reason = "absent"


class RecordStore(Protocol):
    """The methods of a store that a record calls."""

    def update(self, record: Record, /, *, upsert: bool) -> object:
        """Write ``record``. ``upsert``: whether to add the record if the store does not hold it."""

    def remove(self, record: Record, /) -> object:
        """Remove ``record`` from the store."""

    def record_to_data(self, record: Record, /) -> Any:
        """Return ``record`` in the form in which the store keeps it."""


class Stores(MutableSet[Any]):
    """The stores of a record: an ordered set that compares stores by identity."""

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
    """The descriptor for a field of a record class.

    On a record it returns the field's value, on the class the ``Field`` itself.
    """

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
    """The base class of all records. A record has a key and field values, and may be in stores.

    Declare a record type by deriving a class with annotated fields::

        class Customer(Record, rule="field"):
            id: int = Field(key=True)
            name: str = Field(length=120)
            born: date | None = None

    Class keywords: ``name`` is the name of the type on the wire (by default the class name).
    ``rule`` says how concurrent edits merge: ``"record"`` (the default) or ``"field"``. ``schema``
    is the schema number (by default 1). ``abstract=True`` declares a class that has no records and
    only passes its fields on to subclasses.

    A record stores *plain* values: checked and converted by its fields. An enumeration member is
    stored as its value, and a reference to another record as the key of that record.
    ``record["status"]``, ``raw()`` and ``changes()`` return plain values. The attribute
    ``record.status`` returns the enumeration member.

    Two records are equal if their type names and their values are equal. The hash depends on the
    values, so do not alter a record that is in a set. Not thread-safe.
    """

    __slots__ = ("__weakref__", "_base", "_new", "_stores", "_values")

    __record__: ClassVar[RecordType]
    __declared__: ClassVar[Declared]

    _values: dict[str, Any]
    # The values that ``cancel`` restores: the last committed values, or the first values of a new
    # record.
    _base: dict[str, Any]
    _new: bool
    _stores: Stores | None

    def __init__(self, /, **values: Any) -> None:
        """Make a new record from field values. Missing fields get their defaults.

        Raises ``FieldError`` if a value does not fit its field, or is missing without a default.
        Raises ``RecordError`` if a field is unknown or the class is abstract.
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
        """Declare a record type. The keywords are explained in the class docstring.

        Raises ``RecordError`` if the declaration is wrong, and ``FieldError`` if a default does not
        fit its field.
        """
        super().__init_subclass__()
        # Annotations may use local names of the function that contains the class statement.
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
            # In a type made by ``derive``, a field may have the name of a method. The attribute
            # then remains the method.
            existing = getattr(cls, field.name, field)
            if _derived is None or isinstance(existing, Field):
                setattr(cls, field.name, _Attribute(field))

    @classmethod
    def derive(
        cls, name: str, fields: Mapping[str, Field], *, rule: Rule = "record", schema: int = 1
    ) -> type[Self]:
        """Return a new record class, made without a class statement, for example from a table.

        ``name``, ``rule``, ``schema``: as the class keywords. ``fields``: the fields by name, each
        with a ``type``. A field name may be any text, even the name of a method;
        ``record["name"]`` gives access to every field. Raises ``RecordError`` if the declaration is
        wrong.
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
        """Return a committed record: a record without uncommitted changes.

        ``data``: the field values by name. ``partial``: whether fields that are not in ``data`` are
        absent from the record; otherwise they get their defaults. ``stores``: the stores that hold
        the record. ``unknown``: whether to refuse or ignore data for undeclared fields. Raises
        ``FieldError`` if a value does not fit or is missing, and ``RecordError`` for an undeclared
        field.
        """
        record_type = _type_of(cls)
        loaded = record_type.load(data, partial=partial, unknown=unknown)
        record = cls.__new__(cls)
        lives_in = Stores(stores) if stores else None
        record._become(loaded, record_type.copied(loaded), False, lives_in)
        return record

    # -- values ----------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """Return the plain value of the field ``name``.

        Raises ``AbsentFieldError`` if the record does not have the field, and ``RecordError`` if
        the record type does not declare it.
        """
        try:
            return self._values[name]
        except KeyError:
            pass
        record_type = self.__record__
        record_type.field(name)
        raise AbsentFieldError(
            f"the field {record_type.name}.{name} is absent from this record, because the store "
            "that the record was read from does not hold the field",
            hint=f"the record has the fields {', '.join(self._values)}",
        )

    def __setitem__(self, name: str, value: Any) -> None:
        """Set the field ``name``; the value is converted if necessary.

        Raises ``FieldError`` if the value does not fit. Raises ``RecordError`` if the field is
        unknown, or if the assignment would change the key of a committed record.
        """
        field = self.__record__.field(name)
        plain = field.coerce(value)
        if field.key and not self._new and not same(plain, self._base.get(name, plain)):
            raise RecordError(
                f"{field.record}.{name}: the key of a committed record cannot change",
                hint=f"make a copy with copy({name}=...), commit the copy, and delete this record",
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
        """Return whether the record has the field ``name``. The value may be ``None``."""
        return name in self._values

    @property
    def key(self) -> str:
        """The canonical text of the key (``RecordType.key_text``).

        Raises ``AbsentFieldError`` if the record does not have a key field.
        """
        for name in self.__record__.keys:
            self[name]
        return self.__record__.key_text(self._values)

    def raw(self, dirty: bool = True, store: RecordStore | None = None) -> Any:
        """Return a copy of the plain values by field name. Absent fields are left out.

        ``dirty``: whether to return the current values; otherwise the last committed values, which
        are none for a new record. ``store``: if given, return the record in the form in which this
        store keeps it. Raises ``FieldError`` if a program put an invalid value into a list or dict.
        """
        if store is not None:
            return store.record_to_data(self)
        if dirty:
            return self.__record__.checked(self._values)
        return {} if self._new else self.__record__.copied(self._base)

    def copy(self, /, **changes: Any) -> Self:
        """Return a new, uncommitted record with copies of the values. It is in no store.

        ``changes``: field values that replace those of this record. Raises ``FieldError`` or
        ``RecordError`` as an assignment does.
        """
        twin = _restored(type(self), self.__record__.copied(self._values), {}, True)
        for name, value in changes.items():
            twin[name] = value
        twin._base = self.__record__.copied(twin._values)
        return twin

    # -- changes ---------------------------------------------------------------------------------

    @property
    def dirty(self) -> frozenset[str]:
        """The names of the fields that differ from the last commit; all fields of a new record.

        Changes inside lists and dicts count.
        """
        if self._new:
            return frozenset(self._values)
        base = self._base
        return frozenset(
            name for name, value in self._values.items() if not same(value, base.get(name, MISSING))
        )

    @property
    def is_dirty(self) -> bool:
        """Whether a field differs from the last commit. Always true for a new record."""
        if self._new:
            return True
        base = self._base
        return any(not same(v, base.get(name, MISSING)) for name, v in self._values.items())

    def changes(self) -> dict[str, Any]:
        """Return a copy of the plain values of the dirty fields, by name.

        Raises ``FieldError`` if a program put an invalid value into a list or dict.
        """
        return self.__record__.checked({name: self._values[name] for name in self.dirty})

    def clean(self) -> None:
        """Mark the current values as committed. Writes nothing: stores call it after a write.

        Idempotent.
        """
        self._base = self.__record__.copied(self._values)
        self._new = False

    def cancel(self) -> None:
        """Restore the last committed values, or the first values of a new record. Idempotent."""
        self._values = self.__record__.copied(self._base)

    def commit(self, stores: Iterable[RecordStore] | None = None) -> None:
        """Write the record to stores one after the other, and mark it as committed.

        ``stores``: by default ``self.stores``; other stores are added to ``self.stores``. Blocks
        until all stores have answered. If a store raises, its error is raised and the later stores
        are not written. The record stays dirty, so another commit completes the work.
        """
        base, new = self._base, self._new
        for store in list(self.stores if stores is None else stores):
            try:
                store.update(self, upsert=True)
            finally:
                # A store may call ``clean``, but the next store must still see the changes.
                self._base, self._new = base, new
            self.stores.add(store)
        self.clean()

    def delete(self, stores: Iterable[RecordStore] | None = None) -> None:
        """Remove the record from stores one after the other.

        ``stores``: by default ``self.stores``. A record that is in no store any more becomes new
        again. Blocks until all stores have answered. If a store raises, its error is raised, and
        ``self.stores`` contains the stores that still hold the record.
        """
        for store in list(self.stores if stores is None else stores):
            store.remove(self)
            self.stores.discard(store)
        if not self.stores:
            self._new = True

    @property
    def stores(self) -> Stores:
        """The stores that hold the record. Programs may add and remove stores in this set."""
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
    """Return the plain values of a record by name. Faster than ``raw``, because nothing is copied.

    Do not alter the result, and do not keep it: it changes with the record.
    """
    return record._values


def _restored(cls: type[R], values: dict[str, Any], base: dict[str, Any], new: bool) -> R:
    """Return a record with these values, in no store. For copying and pickling records.

    ``base``: the values that ``cancel`` restores. ``new``: whether the record is uncommitted.
    """
    record = cls.__new__(cls)
    record._become(values, base, new, None)
    return record


def _type_of(cls: type[Record]) -> RecordType:
    try:
        return cls.__record__
    except AttributeError:
        raise RecordError(
            f"the record type {cls.__name__} is abstract, so it cannot have records",
            hint=f"declare a subclass of {cls.__name__} and use the subclass",
        ) from None
