"""The record type: the fields and the key of records, and the check of their values."""

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
"""How concurrent edits of one record merge: as whole records, or field by field."""

Unknown: TypeAlias = Literal["refuse", "ignore"]
"""What to do with data for undeclared fields."""


_Checks: TypeAlias = list[tuple[str, Callable[[Any], bool]]]
"""Pairs of a field name and the check of its value, for the fields that need a check.

A check assumes that the value has the class of the field.
"""

# The limit on the layouts of data that a record type remembers: hostile data must not fill memory.
_MAX_LAYOUTS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


class RecordType:
    """The description of a record type. For a class ``Customer`` it is ``Customer.__record__``.

    Immutable, hence thread-safe. ``name``: the name on the wire. ``cls``: the class of the records.
    ``fields``: the fields by name, in the order of declaration. ``keys``: the names of the key
    fields. ``rule``: how concurrent edits merge. ``schema``: the schema number.
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
        """Make a record type. ``fields``: bound fields by name.

        Raises ``RecordError`` if the name, the rule, the schema number or a key field is invalid.
        """
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
                f"a record type cannot have the name {self.name!r}",
                hint="use up to 128 letters, digits, '_', '.' and '-', the first a letter or '_'",
            )
        if self.rule not in ("record", "field"):
            raise RecordError(
                f"the rule of record type {self.name} is {self.rule!r}; it must be 'record' or "
                "'field'"
            )
        if type(self.schema) is not int or self.schema < 0:
            raise RecordError(
                f"the schema number of record type {self.name} is {self.schema!r}; it must be an "
                "integer of at least 0"
            )
        if not self.keys:
            raise RecordError(
                f"the record type {self.name} has no key field, so nothing identifies its records",
                hint="declare a key field with Field(key=True), or declare the class with "
                "abstract=True",
            )
        for name in self.keys:
            field = self.fields[name]
            problem = ""
            if field.type not in key.CODERS:
                problem = f"a key field cannot be {field.expected}"
                hint = f"use one of {', '.join(kind.__name__ for kind in key.CODERS)}"
            elif field.optional:
                problem = "a key field cannot be optional"
                hint = "remove None from the type of the field"
            elif field.secret:
                problem = "a key field cannot be secret, because envelopes and logs show keys"
                hint = "remove secret=True, or choose another field as the key"
            if problem:
                raise RecordError(f"{self.name}.{name}: {problem}", hint=hint)

    def __repr__(self) -> str:
        return f"RecordType({self.name!r}, {', '.join(self.fields)})"

    # -- values ----------------------------------------------------------------------------------

    def field(self, name: str) -> Field:
        """Return the field with this name. Raises ``RecordError`` if there is none."""
        try:
            return self.fields[name]
        except KeyError:
            raise self.unknown([name]) from None

    def load(
        self, data: Mapping[str, Any], *, partial: bool = False, unknown: Unknown = "refuse"
    ) -> dict[str, Any]:
        """Return the field values in ``data`` as plain values: checked, and converted if necessary.

        ``partial``: whether fields that ``data`` lacks are left out; otherwise they get their
        defaults. ``unknown``: whether to refuse or ignore undeclared fields. Idempotent. The result
        is a new dict and shares no list or dict with ``data``. Raises ``FieldError`` if a value
        does not fit, or if a missing field has no default. Raises ``RecordError`` if an undeclared
        field is refused.
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
        """Return whether ``load`` would return ``data`` without converting a value. Thread-safe.

        ``data``: values of all fields or of some fields, by name. Always returns ``False`` if
        ``data`` contain a field that is not scalar (``Field.scalar``), such as a list.
        """
        checks = self._checks_of(data)
        if checks is None:
            return False
        for name, verify in checks:  # noqa: SIM110  # a generator costs more than the checks
            if not verify(data[name]):
                return False
        return True

    def _checks_of(self, data: Mapping[Any, Any]) -> _Checks | None:
        """Return the checks that the values of ``data`` must pass.

        Returns ``None`` if a field is unknown or not scalar, or if a value has the wrong class.
        """
        # Data have few different layouts (names and classes), so their checks are remembered.
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
        """Return ``value``, converted to a plain value of ``field`` if necessary.

        ``field``: a field or its name. Raises ``FieldError`` if the value does not fit.
        """
        return self._of(field).coerce(value)

    def default_for(self, field: Field | str) -> Any:
        """Return the default of ``field``, given as a field or its name.

        Raises ``FieldError`` if the field has no default.
        """
        field = self._of(field)
        if field.required:
            raise field.error(
                MISSING, field.expected, hint="the field has no default, so pass a value for it"
            )
        return field.make_default()

    def wire(self, record: Any) -> dict[str, Any]:
        """Return a copy of the plain values of ``record`` by field name: ``record.raw()``."""
        plain: dict[str, Any] = record.raw()
        return plain

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a deep copy of a record's plain values. Lists and dicts are checked again.

        Raises ``FieldError`` if a program put an invalid value into a list or dict.
        """
        copied = dict(values)
        for name in self._containers:
            if name in copied:
                copied[name] = self.fields[name].coerce(copied[name])
        return copied

    def copied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a deep copy of a record's plain values. Does not check them."""
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
        """Return a committed record of this type. Arguments and errors as in ``Record.load``."""
        return self.cls.load(data, partial=partial, stores=stores, unknown=unknown)

    def unknown(self, names: Iterable[Any]) -> RecordError:
        """Return, but do not raise, the error that this type has no fields with these names."""
        shown = ", ".join(repr(name) for name in names)
        hint = f"the fields are {', '.join(self.fields)}"
        return RecordError(f"{self.name} has no field {shown}", hint=hint)

    def _of(self, field: Field | str) -> Field:
        return field if isinstance(field, Field) else self.field(field)

    # -- keys ------------------------------------------------------------------------------------

    def key_text(self, values: Mapping[str, Any]) -> str:
        """Return the canonical key of a record. Equal keys have equal texts.

        ``values``: field values by name, which must contain the key fields. The key consists of the
        texts of the key fields, joined by ``/``; in each text, ``%`` and ``/`` are percent-escaped.
        Raises ``FieldError`` if a key field is missing or does not fit, or if the key has more than
        512 characters.
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
        """Return the canonical key that consists of the key field values in ``value``.

        ``value``: the value of the only key field, a tuple or list of values in the order of
        ``keys``, or a mapping of field names to values. Raises ``FieldError`` if a value is missing
        or does not fit.
        """
        if isinstance(value, Mapping):
            return self.key_text(value)
        if len(self.keys) == 1 and not isinstance(value, tuple | list):
            return self.key_text({self.keys[0]: value})
        if not isinstance(value, tuple | list) or len(value) != len(self.keys):
            raise self._key_error(value, f"a value for each of {', '.join(self.keys)}")
        return self.key_text(dict(zip(self.keys, value, strict=True)))

    def key_values(self, text: str) -> dict[str, Any]:
        """Return the values of the key fields in a canonical key. The inverse of ``key_text``.

        Raises ``FieldError`` if ``text`` is not a canonical key of this record type.
        """
        if type(text) is str and len(text) <= key.MAX_LENGTH:
            parts = key.split(text)
            if len(parts) == len(self._coders):
                try:
                    values = {
                        field.name: field.coerce(decode(part))
                        for part, (field, _, decode) in zip(parts, self._coders, strict=True)
                    }
                    # Only the canonical text is accepted. If a record had two keys, the index could
                    # hold two versions of it.
                    if self.key_text(values) == text:
                        return values
                except (ValueError, ArithmeticError, LookupError, FieldError):
                    pass
        expected = " / ".join(f"{name}: {self.fields[name].expected}" for name in self.keys)
        raise self._key_error(text, f"a key ({expected})")

    def key_columns(self, texts: Sequence[str]) -> list[Sequence[Any]] | None:
        """Return, for each key field, its values in many keys. Faster than ``key_values``.

        Returns ``None`` if ``texts`` is empty or contains a text that is not a canonical key, or
        that needs ``key_values``.
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
    """Return whether two plain values have the same class and are equal. 1 and 1.0 are not."""
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
    """Return a hash of a plain value. Two values for which ``same`` is true have equal hashes."""
    if type(value) is dict:
        return hash(frozenset((name, content_hash(item)) for name, item in value.items()))
    if type(value) is list:
        return hash(tuple(map(content_hash, value)))
    return hash(value)
