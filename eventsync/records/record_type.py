"""The schema of a record type: its fields and keys, and the check of a whole record's values.

It knows nothing of the records themselves, of stores or of versions.
"""

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
"""By what concurrent edits of one record merge: the whole record, or each of its fields."""

Unknown: TypeAlias = Literal["refuse", "ignore"]
"""What becomes of data for fields that are not declared."""


_Checks: TypeAlias = list[tuple[str, Callable[[Any], bool]]]
"""What to check, by field, of values whose classes are right."""

# How many shapes of data a record type remembers; hostile ones must not fill the memory.
_SHAPES: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


class RecordType:
    """The description of a record type, reachable as ``Customer.__record__``.

    Immutable, hence thread-safe. ``name``: the type's name on the wire. ``cls``: the class of its
    records. ``fields``: its fields by name, in the order of their declaration. ``keys``: the names
    of those that identify a record. ``rule``: how concurrent edits merge. ``schema``: its version.
    """

    __slots__ = (
        "_coders",
        "_containers",
        "_plan",
        "_shapes",
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
        """``fields``: bound. Raises ``RecordError`` for what cannot be a record type."""
        self.cls = cls
        self.name = name
        self.fields = MappingProxyType(dict(fields))
        self.keys = tuple(field.name for field in fields.values() if field.key)
        self.rule = rule
        self.schema = schema
        self._check()
        self._plan = {f.name: (f.type, f.verify, f.coerce) for f in fields.values()}
        self._coders = tuple((self.fields[n], *key.CODERS[self.fields[n].type]) for n in self.keys)
        self._shapes: dict[tuple[Any, ...], _Checks | None] = {}
        self._containers = tuple(field.name for field in fields.values() if not field.scalar)

    def _check(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RecordError(
                f"{self.name!r} cannot name a record type",
                hint="use up to 128 letters, digits, '_', '.' and '-', the first a letter or '_'",
            )
        if self.rule not in ("record", "field"):
            raise RecordError(f"{self.name}: rule {self.rule!r} is neither 'record' nor 'field'")
        if type(self.schema) is not int or self.schema < 0:
            raise RecordError(f"{self.name}: the schema {self.schema!r} is not a number from 0 on")
        if not self.keys:
            raise RecordError(
                f"{self.name} has no key field, so its records cannot be told apart",
                hint="declare one with Field(key=True), or the class with abstract=True",
            )
        for name in self.keys:
            field = self.fields[name]
            problem = ""
            if field.type not in key.CODERS:
                problem = f"a key cannot be {field.expected}"
            elif field.optional:
                problem = "a key cannot be optional"
            elif field.secret:
                problem = "a key cannot be secret: it is in every envelope and log"
            if problem:
                raise RecordError(f"{self.name}.{name}: {problem}")

    def __repr__(self) -> str:
        return f"RecordType({self.name!r}, {', '.join(self.fields)})"

    # -- values ----------------------------------------------------------------------------------

    def field(self, name: str) -> Field:
        """The field of that name. Raises ``RecordError`` naming those there are."""
        try:
            return self.fields[name]
        except KeyError:
            raise self.unknown([name]) from None

    def load(
        self, data: Mapping[str, Any], *, partial: bool = False, unknown: Unknown = "refuse"
    ) -> dict[str, Any]:
        """The plain values that ``data`` stand for, checked, with the defaults of absent fields.

        ``partial``: absent fields stay absent. Idempotent; the result shares no list or dict with
        ``data``. Raises ``FieldError`` for a value that does not fit or a field without value and
        default, and ``RecordError`` for a field that is not declared, unless that is ignored.
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
        """Whether ``data``, which may be partial, are just what ``load`` would make of them.

        ``False`` when it takes a closer look to tell, as with lists and dicts. Thread-safe.
        """
        checks = self._checks_of(data)
        if checks is None:
            return False
        for name, verify in checks:  # noqa: SIM110  # a generator costs more than the checks
            if not verify(data[name]):
                return False
        return True

    def _checks_of(self, data: Mapping[Any, Any]) -> _Checks | None:
        """What to check of the values of ``data``, if their fields and classes are right."""
        # Bodies of a few shapes come by the thousand: what there is to check is found out once.
        shape = (*data, *map(type, data.values()))
        try:
            return self._shapes[shape]
        except KeyError:
            checks = self._new_checks_of(data)
        if len(self._shapes) < _SHAPES:
            self._shapes[shape] = checks
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
        """The plain value that ``value`` stands for in that field. Raises ``FieldError``."""
        return self._of(field).coerce(value)

    def default_for(self, field: Field | str) -> Any:
        """The value of a field for which none is given. Raises ``FieldError`` if it is required."""
        field = self._of(field)
        if field.required:
            raise field.error(MISSING, field.expected, hint="it has no default, so give a value")
        return field.make_default()

    def wire(self, record: Any) -> dict[str, Any]:
        """The plain values of ``record`` as they may travel: ``record.raw()``."""
        plain: dict[str, Any] = record.raw()
        return plain

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a record's values, deep, with its lists and dicts checked.

        What was put into them since they were set is checked here. Raises ``FieldError``.
        """
        copied = dict(values)
        for name in self._containers:
            if name in copied:
                copied[name] = self.fields[name].coerce(copied[name])
        return copied

    def copied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a record's values, deep, as they are."""
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
        """A record as ``stores`` hold it: ``cls.load``."""
        return self.cls.load(data, partial=partial, stores=stores, unknown=unknown)

    def unknown(self, names: Iterable[Any]) -> RecordError:
        """The error that these fields are not declared."""
        shown = ", ".join(repr(name) for name in names)
        hint = f"it has {', '.join(self.fields)}"
        return RecordError(f"{self.name} has no field {shown}", hint=hint)

    def _of(self, field: Field | str) -> Field:
        return field if isinstance(field, Field) else self.field(field)

    # -- keys ------------------------------------------------------------------------------------

    def key_text(self, values: Mapping[str, Any]) -> str:
        """The canonical key of a record of these values: equal keys have equal texts.

        The key fields' texts, joined by ``/``; in each, ``%`` and ``/`` are percent-escaped. Raises
        ``FieldError`` for a value that does not fit or is absent, and for a key beyond 512
        characters.
        """
        texts = []
        for field, encode, _ in self._coders:
            value = values.get(field.name, MISSING)
            try:
                if type(value) is not field.type or field.verify is not None:
                    value = field.coerce(value)
                texts.append(encode(value))
            except (ValueError, ArithmeticError):
                raise field.error(value, "a value that a key can have") from None
        text = key.join(texts)
        if len(text) > key.MAX_LENGTH:
            raise self._key_error(text, f"a key of at most {key.MAX_LENGTH} characters")
        return text

    def key_of(self, value: Any) -> str:
        """The canonical key that ``value`` says.

        A single key's value, or a tuple or list of the values in the order of ``keys``, or a
        mapping by field name. Raises ``FieldError``.
        """
        if isinstance(value, Mapping):
            return self.key_text(value)
        if len(self.keys) == 1 and not isinstance(value, tuple | list):
            return self.key_text({self.keys[0]: value})
        if not isinstance(value, tuple | list) or len(value) != len(self.keys):
            raise self._key_error(value, f"a value for each of {', '.join(self.keys)}")
        return self.key_text(dict(zip(self.keys, value, strict=True)))

    def key_values(self, text: str) -> dict[str, Any]:
        """The values of the key fields: the inverse of ``key_text``.

        Raises ``FieldError`` for a text that no record of this type has as its key.
        """
        if type(text) is str and len(text) <= key.MAX_LENGTH:
            parts = key.split(text)
            if len(parts) == len(self._coders):
                try:
                    values = {
                        field.name: field.coerce(decode(part))
                        for part, (field, _, decode) in zip(parts, self._coders, strict=True)
                    }
                    # Only one text of each key is accepted, or one record could have two versions.
                    if self.key_text(values) == text:
                        return values
                except (ValueError, ArithmeticError, LookupError, FieldError):
                    pass
        expected = " / ".join(f"{name}: {self.fields[name].expected}" for name in self.keys)
        raise self._key_error(text, f"a key ({expected})")

    def key_columns(self, texts: Sequence[str]) -> list[Sequence[Any]] | None:
        """By key field its values in many keys, as ``key_values`` gives them, in less time.

        ``None`` where one of ``texts`` is no key, or takes a closer look.
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
    """Whether two plain values are the same, classes included: 1, 1.0 and ``True`` are not."""
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
    """A hash of a plain value; values that are the ``same`` have the same hash."""
    if type(value) is dict:
        return hash(frozenset((name, content_hash(item)) for name, item in value.items()))
    if type(value) is list:
        return hash(tuple(map(content_hash, value)))
    return hash(value)
