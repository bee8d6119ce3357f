"""The field: a typed attribute of a record type, and the check of its values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, TypeAlias

from eventsync.errors import FieldError, RecordError
from eventsync.records.coercion import (
    Coercion,
    MisfitError,
    Resolve,
    UnsupportedTypeError,
    coercion_of,
)
from eventsync.records.scalar import is_text
from eventsync.values.packing import freeze

__all__ = ["MISSING", "Field"]

Class: TypeAlias = type[Any]


class Missing:
    """The class of the marker ``MISSING``."""

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""The value of ``Field.default`` if the field has no default."""


class Secret:
    """An object that errors show as ``***`` in place of a secret value."""

    def __repr__(self) -> str:
        return "***"


class Field:
    """One field of a record type. Immutable, hence thread-safe.

    In a class, write ``Field(...)`` in place of the default: ``name: str = Field(length=120)``.
    The fields in ``RecordType.fields`` are *bound*: they have a name and a type and check values.

    A bound field has the attributes that the constructor takes, with ``default`` checked, and:

    - ``record``: the name of the record type;
    - ``name``: the name of the field;
    - ``type``: the class of the field's plain values: ``str`` for an enumeration of strings, the
      class of the key for a reference to a record, ``list`` for every list type, ``object`` for a
      field of any type;
    - ``annotation``: the declared type, without ``None``;
    - ``optional``: whether ``None`` is a valid value;
    - ``scalar``: false for lists, dicts and fields of any type;
    - ``expected``: a noun phrase for errors, such as "a string of at most 120 characters";
    - ``verify``: a function that returns whether a value of class ``type`` is valid without
      conversion; ``None`` if all are;
    - ``member``: a function that returns the enumeration member for a plain value, or ``None``.
    """

    __slots__ = (
        "_convert",
        "annotation",
        "coercion",
        "default",
        "default_factory",
        "description",
        "expected",
        "identifier",
        "key",
        "length",
        "maximum",
        "member",
        "minimum",
        "name",
        "optional",
        "record",
        "scalar",
        "secret",
        "type",
        "unique",
        "verify",
        "zoned",
    )

    record: str
    name: str
    type: Class
    annotation: Any
    optional: bool
    scalar: bool
    default: Any
    default_factory: Callable[[], Any] | None
    description: str
    key: bool
    unique: bool
    length: int | None
    identifier: bool
    minimum: Any
    maximum: Any
    zoned: bool | None
    secret: bool
    coercion: Coercion
    expected: str
    verify: Callable[[Any], bool] | None
    member: Callable[[Any], Any] | None
    _convert: Callable[[Any], Any]

    # The return type is Any, so that type checkers accept a field as default of any attribute.
    def __new__(
        cls,
        *,
        type: Any = None,
        default: Any = MISSING,
        default_factory: Callable[[], Any] | None = None,
        description: str = "",
        key: bool = False,
        unique: bool = False,
        length: int | None = None,
        identifier: bool = False,
        minimum: float | Decimal | None = None,
        maximum: float | Decimal | None = None,
        zoned: bool | None = None,
        secret: bool = False,
    ) -> Any:
        """Declare a field.

        - ``type``: the type of the field, if the attribute has no annotation.
        - ``default``: the value for a new record. ``default_factory``: a function that returns this
          value. An optional field without these two has the default ``None``.
        - ``description``: a text for people.
        - ``key``: whether the field is part of the record's key.
        - ``unique``: whether two records of a store must not have the same value.
        - ``length``: the maximal characters of a string, or bytes of a byte string.
        - ``identifier``: whether the field is the id that a store gives to its records. The
          identifier is the key if no field has ``key=True``.
        - ``minimum``, ``maximum``: the smallest and the greatest allowed number.
        - ``zoned``: ``True`` if a time or datetime must have an offset from UTC, ``False`` if it
          must not. By default both forms are allowed, and are never equal to each other.
        - ``secret``: whether ``repr`` and errors hide the value.
        """
        field = object.__new__(cls)
        field.record = field.name = ""
        field.annotation = type
        field.default = default
        field.default_factory = default_factory
        field.description = description
        field.key = key
        field.unique = unique
        field.length = length
        field.identifier = identifier
        field.minimum = minimum
        field.maximum = maximum
        field.zoned = zoned
        field.secret = secret
        return field

    @property
    def has_default(self) -> bool:
        """Whether the field has a default, so that a new record needs no value for it."""
        return self.default is not MISSING or self.default_factory is not None

    @property
    def required(self) -> bool:
        """Whether the field has no default, so that a new record needs a value for it."""
        return not self.has_default

    def __repr__(self) -> str:
        if not self.name:
            return f"Field(type={self.annotation!r})"
        shown = getattr(self.annotation, "__name__", None) or repr(self.annotation)
        return f"Field({self.record}.{self.name}: {shown}{' | None' if self.optional else ''})"

    def bind(
        self, record: str, name: str, annotation: Any, resolve: Resolve, *, key: bool | None = None
    ) -> Field:
        """Return a copy of this field that is bound to a name in a record type.

        ``record``: the name of the record type. ``annotation``: the type of the field, used if the
        field was declared without ``type``. ``resolve``: as in ``coercion_of``. ``key``: replaces
        the declared ``key``, unless it is ``None``. Raises ``RecordError`` if the declaration
        contradicts itself or the type is not supported, and ``FieldError`` if the default does not
        fit the type.
        """
        declared = self.annotation if self.annotation is not None else annotation
        bound = object.__new__(Field)
        for slot in _DECLARED:
            setattr(bound, slot, getattr(self, slot))
        bound.record, bound.name = record, name
        if key is not None:
            bound.key = key
        if declared is None:
            raise bound._wrong(
                "the field has no type",
                hint=f"declare the type: {name}: str = Field(...), or Field(type=str)",
            )
        try:
            coercion = coercion_of(declared, resolve)
        except UnsupportedTypeError as error:
            raise bound._wrong(
                str(error),
                hint="see 'Types' in docs/concepts.md for the possible types; to refer to a record "
                "type, declare that type first",
            ) from None
        bound.annotation = _without_none(declared, coercion)
        bound.coercion = coercion
        bound.type = coercion.kind
        bound.optional = coercion.optional
        bound.scalar = coercion.scalar
        bound.member = coercion.member
        bound._limit()
        bound._check_default()
        return bound

    def coerce(self, value: Any) -> Any:
        """Return ``value``, converted to a plain value of this field if necessary. Idempotent.

        The result shares no list or dict with ``value``. Raises ``FieldError`` if the value does
        not fit the field.
        """
        if value is None and self.optional:
            return None
        verify = self.verify
        if type(value) is self.type and (verify is None or verify(value)):
            return value
        return self._converted(self._convert, value)

    def operand(self, value: Any) -> Any:
        """Return ``value``, an operand of a filter, converted to a plain value of this field.

        Unlike ``coerce``, this method ignores the limits ``length``, ``minimum``, ``maximum`` and
        ``zoned``. Raises ``FieldError`` if the value cannot be converted.
        """
        return self._converted(self.coercion.convert, value)

    def make_default(self) -> Any:
        """Return the default, with new lists and dicts in each call.

        Raises ``RecordError`` if the field has no default, and ``FieldError`` if the value of
        ``default_factory`` does not fit the field.
        """
        if self.default_factory is not None:
            return self.coerce(self.default_factory())
        if self.default is MISSING:
            raise RecordError(
                f"{self.record}.{self.name} has no default", hint="pass a value for this field"
            )
        return self.default if self.scalar else freeze(self.default)

    def error(self, value: Any, expected: str, *, path: str = "", hint: str = "") -> FieldError:
        """Return, but do not raise, the error that ``value`` is not ``expected``.

        The error hides the value of a secret field. ``path``: as in ``MisfitError``.
        """
        shown = Secret() if self.secret else value
        return FieldError(self.record, f"{self.name}{path}", shown, expected, hint=hint)

    def _converted(self, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except MisfitError as misfit:
            wrong = misfit
        # Raised outside the ``except`` block: a chained exception could show a secret value.
        optional = " or None" if self.optional and not wrong.path else ""
        # The path of a secret value is hidden too, because keys of a dict can be secret.
        path = "" if self.secret else wrong.path
        raise self.error(wrong.value, f"{wrong.expected}{optional}", path=path) from None

    def _wrong(self, message: str, *, hint: str = "") -> RecordError:
        return RecordError(f"{self.record}.{self.name}: {message}", hint=hint)

    def _limit(self) -> None:
        """Set ``verify``, ``_convert`` and ``expected`` from the coercion and the limits.

        Raises ``RecordError`` if a limit does not apply to the type of the field.
        """
        coercion = self.coercion
        fits: list[Callable[[Any], bool]] = []
        expected = coercion.expected
        if self.length is not None:
            limit = self.length
            if coercion.kind not in (str, bytes):
                raise self._wrong(
                    f"the argument length is for str and bytes, not for {coercion.expected}"
                )
            if limit < 1:
                raise self._wrong(f"the argument length is {limit}; it must be at least 1")
            fits.append(lambda value: len(value) <= limit)
            expected += f" of at most {limit} {'characters' if coercion.kind is str else 'bytes'}"
        if self.minimum is not None or self.maximum is not None:
            if coercion.kind not in (int, float, Decimal):
                raise self._wrong(
                    f"the arguments minimum and maximum are for numbers, not for "
                    f"{coercion.expected}"
                )
            low, high = self.minimum, self.maximum
            if low is not None:
                fits.append(lambda value: bool(value >= low))
                expected += f" of at least {low}"
            if high is not None:
                fits.append(lambda value: bool(value <= high))
                expected += f"{' and' if low is not None else ' of'} at most {high}"
        if self.zoned is not None:
            if coercion.kind not in (dt.datetime, dt.time):
                raise self._wrong(
                    f"the argument zoned is for time and datetime, not for {coercion.expected}"
                )
            zoned = self.zoned
            fits.append(lambda value: (value.utcoffset() is not None) is zoned)
            expected += f" {'with' if zoned else 'without'} an offset from UTC"
        self.expected = expected
        self.verify, self._convert = coercion.verify, coercion.convert
        if fits:
            self._convert = _within(coercion.convert, fits, expected)
            self.verify = _all_of([coercion.verify, *fits] if coercion.verify else fits)
            if coercion.kind is str and len(fits) == 1 and coercion.member is None:
                # Faster for the most frequent limit: two function calls instead of five.
                limit = self.length or 0
                self.verify = lambda value: len(value) <= limit and is_text(value)

    def _check_default(self) -> None:
        if self.default is not MISSING and self.default_factory is not None:
            raise self._wrong(
                "the field has both a default and a default_factory",
                hint="remove one of these two arguments",
            )
        if self.default is MISSING and self.default_factory is None and self.optional:
            self.default = None
        if isinstance(self.default, list | dict | set | bytearray):
            raise self._wrong(
                f"all records would share the default, which is a {type(self.default).__name__}",
                hint="use Field(default_factory=...) with a function that returns a new object",
            )
        if self.default is not MISSING:
            self.default = self.coerce(self.default)


_DECLARED: Final = (
    "default",
    "default_factory",
    "description",
    "identifier",
    "key",
    "length",
    "maximum",
    "minimum",
    "secret",
    "unique",
    "zoned",
)


def _without_none(declared: Any, coercion: Coercion) -> Any:
    if not coercion.optional:
        return declared
    others = [arg for arg in getattr(declared, "__args__", ()) if arg is not type(None)]
    return others[0] if len(others) == 1 else declared


def _all_of(tests: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if len(tests) == 1:
        return tests[0]
    return lambda value: all(test(value) for test in tests)


def _within(
    convert: Callable[[Any], Any], fits: list[Callable[[Any], bool]], expected: str
) -> Callable[[Any], Any]:
    def limited(value: Any) -> Any:
        try:
            made = convert(value)
        except MisfitError:
            raise MisfitError(value, expected) from None
        if not all(fit(made) for fit in fits):
            raise MisfitError(value, expected)
        return made

    return limited
