"""The record type: its fields and its key, and the check of a record's values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from eventsync.errors import FieldError, RecordError
from eventsync.records import key
from eventsync.records.field import MISSING, Field
from eventsync.values.packing import freeze

__all__ = ["RecordType", "Rule", "Unknown", "content_hash", "same"]

Rule: TypeAlias = Literal["record", "field"]
"""How concurrent edits of one record merge: by whole records, or field by field."""

Unknown: TypeAlias = Literal["refuse", "ignore"]
"""Whether data for fields that are not declared are refused or ignored."""


_Checks: TypeAlias = list[tuple[str, Callable[[Any], bool]]]
"""For each field whose values need one, the check of a value that has the right class."""

# The most layouts of data that a record type remembers; hostile ones must not fill the memory.
_MAX_LAYOUTS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


class RecordType:
    """The description of a record type; for a class ``Customer`` it is ``Customer.__record__``.

    Immutable, hence thread-safe. ``name``: the name on the wire. ``cls``: the class of its records.
    ``fields``: the fields by name, in the order of declaration. ``keys``: the names of the fields
    that identify a record. ``rule``: how concurrent edits merge. ``schema``: the schema number.
    """

    __slots__ = (
        "_coders",
        "_containers",
        "_layouts",
        "_plan",
        "cls",
        "fields",
        "keys",
        "name",
        "rule",
        "schema",
    )

    cls: type[Any]
    fields: Mapping[str, Field]
    keys: tuple[str, ...]
    name: str
    rule: Rule
    schema: int

    def __init__(
        self, cls: type[Any], name: str, fields: Mapping[str, Field], *, rule: Rule, schema: int
    ) -> None:
        """Make a record type of bound fields. Raises ``RecordError`` for a wrong declaration."""
        self.cls = cls
        self.name = name
        self.fields = MappingProxyType(dict(fields))
        self.keys = tuple(field.name for field in fields.values() if field.key)
        self.rule = rule
        self.schema = schema
        self._check()
        self._plan = {f.name: (f.type, f.verify, f.coerce) for f in fields.values()}
        self._coders = tuple((self.fields[n], *key.CODERS[self.fields[n].type]) for n in self.keys)
        self._layouts: dict[tuple[Any, ...], _Checks | None] = {}
        self._containers = tuple(field.name for field in fields.values() if not field.scalar)

    def _check(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RecordError(
                f"the name {self.name!r} is not valid for a record type",
                hint="use up to 128 letters, digits, '_', '.' and '-', the first a letter or '_'",
            )
        if self.rule not in ("record", "field"):
            raise RecordError(f"{self.name}: rule is {self.rule!r}; it must be 'record' or 'field'")
        if type(self.schema) is not int or self.schema < 0:
            raise RecordError(
                f"{self.name}: schema is {self.schema!r}; it must be an integer of at least 0"
            )
        if not self.keys:
            raise RecordError(
                f"{self.name} has no key field, so its records cannot be told apart",
                hint="declare one with Field(key=True), or declare the class with abstract=True",
            )
        for name in self.keys:
            field = self.fields[name]
            problem = ""
            if field.type not in key.CODERS:
                problem = f"a key field cannot be {field.expected}"
                hint = f"use one of {', '.join(kind.__name__ for kind in key.CODERS)}"
            elif field.optional:
                problem = "a key field cannot be optional"
                hint = "remove None from its type"
            elif field.secret:
                problem = "a key field cannot be secret: keys are in every envelope and log"
                hint = "remove secret=True, or choose another field as the key"
            if problem:
                raise RecordError(f"{self.name}.{name}: {problem}", hint=hint)

    def __repr__(self) -> str:
        return f"RecordType({self.name!r}, {', '.join(self.fields)})"

    # -- values ----------------------------------------------------------------------------------

    def field(self, name: str) -> Field:
        """Return the field of that name. Raises ``RecordError`` if there is none."""
        try:
            return self.fields[name]
        except KeyError:
            raise self.unknown([name]) from None

    def load(
        self, data: Mapping[str, Any], *, partial: bool = False, unknown: Unknown = "refuse"
    ) -> dict[str, Any]:
        """Return the plain values of ``data``, converted and checked.

        An absent field gets its default, or stays absent if ``partial``. Idempotent. The result
        shares no list or dict with ``data``. Raises ``FieldError`` for a value that does not fit
        and for an absent field without default. Raises ``RecordError`` for an undeclared field,
        unless ``unknown`` says to ignore it.
        """
        plan = self._plan
        if (partial or len(data) == len(plan)) and self.fits(data):
            return dict(data)
        loaded: dict[str, Any] = {}
        for name, value in data.items():
            try:
                kind, verify, coerce = plan[name]
            except KeyError:
                if unknown == "refuse":
                    raise self.unknown(n for n in data if n not in plan) from None
                continue
            if type(value) is kind and (verify is None or verify(value)):
                loaded[name] = value
            else:
                loaded[name] = coerce(value)
        if not partial and len(loaded) < len(plan):
            for name, field in self.fields.items():
                if name not in loaded:
                    loaded[name] = self.default_for(field)
        return loaded

    def fits(self, data: Mapping[str, Any]) -> bool:
        """Return whether ``load`` would return ``data``, which may be partial, as they are.

        It also returns ``False`` where it cannot tell, as with lists and dicts. Thread-safe.
        """
        checks = self._checks_of(data)
        if checks is None:
            return False
        for name, verify in checks:  # noqa: SIM110  # a generator costs more than the checks
            if not verify(data[name]):
                return False
        return True

    def _checks_of(self, data: Mapping[Any, Any]) -> _Checks | None:
        """Return the checks for the values of ``data``; ``None`` if a field or a class is wrong."""
        # Thousands of bodies have one of a few layouts, so the checks of each are remembered.
        layout = (*data, *map(type, data.values()))
        try:
            return self._layouts[layout]
        except KeyError:
            checks = self._new_checks_of(data)
        if len(self._layouts) < _MAX_LAYOUTS:
            self._layouts[layout] = checks
        return checks

    def _new_checks_of(self, data: Mapping[Any, Any]) -> _Checks | None:
        checks = []
        for name, value in data.items():
            field = self.fields.get(name)
            if field is None or not field.scalar:
                return None
            if value is None and field.optional:
                continue
            if type(value) is not field.type:
                return None
            if field.verify is not None:
                checks.append((name, field.verify))
        return checks

    def coerce(self, field: Field | str, value: Any) -> Any:
        """Return the plain value for ``value`` in that field. Raises ``FieldError``."""
        return self._of(field).coerce(value)

    def default_for(self, field: Field | str) -> Any:
        """Return the default of a field. Raises ``FieldError`` if it has none."""
        field = self._of(field)
        if field.required:
            raise field.error(
                MISSING, field.expected, hint="the field has no default, so give it a value"
            )
        return field.make_default()

    def wire(self, record: Any) -> dict[str, Any]:
        """Return the plain values of ``record``, as ``record.raw()`` does."""
        plain: dict[str, Any] = record.raw()
        return plain

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a deep copy of a record's values, with its lists and dicts checked again.

        A program may have put invalid values into them. Raises ``FieldError``.
        """
        copied = dict(values)
        for name in self._containers:
            if name in copied:
                copied[name] = self.fields[name].coerce(copied[name])
        return copied

    def copied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a deep copy of a record's values, unchecked."""
        copied = dict(values)
        for name in self._containers:
            if name in copied:
                copied[name] = freeze(copied[name])
        return copied

    def make(
        self,
        data: Mapping[str, Any],
        *,
        partial: bool = False,
        stores: Iterable[Any] = (),
        unknown: Unknown = "refuse",
    ) -> Any:
        """Return a record as ``stores`` hold it; see ``Record.load``."""
        return self.cls.load(data, partial=partial, stores=stores, unknown=unknown)

    def unknown(self, names: Iterable[Any]) -> RecordError:
        """Return the error that these fields are not declared."""
        shown = ", ".join(repr(name) for name in names)
        hint = f"its fields are {', '.join(self.fields)}"
        return RecordError(f"{self.name} has no field {shown}", hint=hint)

    def _of(self, field: Field | str) -> Field:
        return field if isinstance(field, Field) else self.field(field)

    # -- keys ------------------------------------------------------------------------------------

    def key_text(self, values: Mapping[str, Any]) -> str:
        """Return the canonical key of a record with these values. Equal keys have equal texts.

        It joins the texts of the key fields by ``/``; in each of them ``%`` and ``/`` are
        percent-escaped. Raises ``FieldError`` for a value that is absent or does not fit, and for a
        key of more than 512 characters.
        """
        texts = []
        for field, encode, _ in self._coders:
            value = values.get(field.name, MISSING)
            try:
                if type(value) is not field.type or field.verify is not None:
                    value = field.coerce(value)
                texts.append(encode(value))
            except (ValueError, ArithmeticError):
                raise field.error(value, "a value that a key field can have") from None
        text = key.join(texts)
        if len(text) > key.MAX_LENGTH:
            raise self._key_error(text, f"a key of at most {key.MAX_LENGTH} characters")
        return text

    def key_of(self, value: Any) -> str:
        """Return the canonical key for ``value``.

        ``value``: the value of the only key field, a tuple or list of values in the order of
        ``keys``, or a mapping by field name. Raises ``FieldError``.
        """
        if isinstance(value, Mapping):
            return self.key_text(value)
        if len(self.keys) == 1 and not isinstance(value, tuple | list):
            return self.key_text({self.keys[0]: value})
        if not isinstance(value, tuple | list) or len(value) != len(self.keys):
            raise self._key_error(value, f"a value for each of {', '.join(self.keys)}")
        return self.key_text(dict(zip(self.keys, value, strict=True)))

    def key_values(self, text: str) -> dict[str, Any]:
        """Return the values of the key fields for a canonical key: the inverse of ``key_text``.

        Raises ``FieldError`` for a text that ``key_text`` never returns.
        """
        if type(text) is str and len(text) <= key.MAX_LENGTH:
            parts = key.split(text)
            if len(parts) == len(self._coders):
                try:
                    values = {
                        field.name: field.coerce(decode(part))
                        for part, (field, _, decode) in zip(parts, self._coders, strict=True)
                    }
                    # Other texts of a key are refused, or one record could have two versions.
                    if self.key_text(values) == text:
                        return values
                except (ValueError, ArithmeticError, LookupError, FieldError):
                    pass
        expected = " / ".join(f"{name}: {self.fields[name].expected}" for name in self.keys)
        raise self._key_error(text, f"a key ({expected})")

    def key_columns(self, texts: Sequence[str]) -> list[Sequence[Any]] | None:
        """Return for each key field its values in many keys, in less time than ``key_values``.

        Returns ``None`` if one of ``texts`` is no key, or must be read by itself.
        """
        columns: list[Sequence[Any]] = []
        try:
            if not texts or max(map(len, texts)) > key.MAX_LENGTH:
                return None
            parts = key.split_all(texts)
            encoded = []
            for column, (field, encode, decode) in zip(parts, self._coders, strict=True):
                values = list(map(decode, column))
                if set(map(type, values)) != {field.type}:
                    return None
                if field.verify is not None and not all(map(field.verify, values)):
                    return None
                columns.append(values)
                encoded.append(list(map(encode, values)))
            alike = key.join_all(encoded) == list(texts)
        except (ValueError, ArithmeticError, LookupError, TypeError):
            return None
        return columns if alike else None

    def _key_error(self, value: Any, expected: str) -> FieldError:
        return FieldError(self.name, "/".join(self.keys), value, expected)


def same(one: Any, other: Any) -> bool:
    """Return whether two plain values have the same class and are equal; 1 and 1.0 differ."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return len(one) == len(other) and all(
            name in other and same(value, other[name]) for name, value in one.items()
        )
    if kind is list:
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def content_hash(value: Any) -> int:
    """Return a hash of a plain value. Values that are the ``same`` have equal hashes."""
    if type(value) is dict:
        return hash(frozenset((name, content_hash(item)) for name, item in value.items()))
    if type(value) is list:
        return hash(tuple(map(content_hash, value)))
    return hash(value)
