"""The field: what a record type says of one of its values, and the check of such a value.

It knows nothing of records, keys or stores.
"""

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
    is_text,
)
from eventsync.values.packing import freeze

__all__ = ["MISSING", "Field"]

Class: TypeAlias = type[Any]


class Missing:
    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
"""In place of a default: there is none."""


class Secret:
    """What an error shows in place of a secret value."""

    def __repr__(self) -> str:
        return "***"


class Field:
    """One field of a record type. Immutable, hence thread-safe.

    Declared in a class, ``Field(...)`` stands where the default would: ``name: str =
    Field(length=120)``. The ``fields`` of a ``RecordType`` are *bound*: they know their name and
    type, and check values.

    Bound fields have all attributes that the constructor takes, with ``default`` checked, and:

    - ``record``, ``name``: of which record type, under which name;
    - ``type``: the class of its values as records hold them and stores see them: ``str`` for an
      enumeration of strings, the class of the key for a reference to a record, ``list`` for any
      list, ``object`` for any value;
    - ``annotation``: the type as it was declared, without ``None``;
    - ``optional``: whether ``None`` is a value of it;
    - ``scalar``: whether no value of it can hold others.
    """

    __slots__ = (
        "_convert",
        "annotation",
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
        "shape",
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
    shape: Coercion
    expected: str
    verify: Callable[[Any], bool] | None
    member: Callable[[Any], Any] | None
    _convert: Callable[[Any], Any]

    # Any is what it returns for a type checker, so that it can stand as the default of any type.
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
        """``type``: the type, where no annotation says it or where it shall say something else.

        ``default``, ``default_factory``: the value, or what makes it, when none is given; an
        optional field without either has ``None``. ``key``: part of what identifies a record.
        ``identifier``: the store's own id; the key when no field is one. ``length``: the most
        characters of a string, or bytes. ``minimum``, ``maximum``: of a number. ``zoned``: whether
        a time or datetime must (``True``) or must not (``False``) have an offset from UTC; by
        default each is kept as it comes, and the two are never equal. ``secret``: its values are
        shown by no ``repr`` and no error.
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
        """Whether there is a value when none is given."""
        return self.default is not MISSING or self.default_factory is not None

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return not self.has_default

    def __repr__(self) -> str:
        if not self.name:
            return f"Field(type={self.annotation!r})"
        shown = getattr(self.annotation, "__name__", None) or repr(self.annotation)
        return f"Field({self.record}.{self.name}: {shown}{' | None' if self.optional else ''})"

    def bind(
        self, record: str, name: str, annotation: Any, resolve: Resolve, *, key: bool | None = None
    ) -> Field:
        """This field as the field ``name`` of ``record``, of the type it was given or annotated.

        Raises ``RecordError`` for a declaration that contradicts itself, and ``FieldError`` for a
        default that is not of the type.
        """
        declared = self.annotation if self.annotation is not None else annotation
        bound = object.__new__(Field)
        for slot in _DECLARED:
            setattr(bound, slot, getattr(self, slot))
        bound.record, bound.name = record, name
        if key is not None:
            bound.key = key
        if declared is None:
            raise bound._wrong("it has no type", hint="annotate it, or pass Field(type=...)")
        try:
            shape = coercion_of(declared, resolve)
        except UnsupportedTypeError as error:
            raise bound._wrong(
                str(error),
                hint="see 'Types' in docs/concepts.md; declare a record type before it is "
                "referred to",
            ) from None
        bound.annotation = _without_none(declared, shape)
        bound.shape = shape
        bound.type = shape.kind
        bound.optional = shape.optional
        bound.scalar = shape.scalar
        bound.member = shape.member
        bound._limit()
        bound._settle_default()
        return bound

    def coerce(self, value: Any) -> Any:
        """The plain value that ``value`` stands for. Idempotent.

        Shares no list or dict with ``value``. Raises ``FieldError``.
        """
        if value is None and self.optional:
            return None
        verify = self.verify
        if type(value) is self.type and (verify is None or verify(value)):
            return value
        return self._converted(self._convert, value)

    def operand(self, value: Any) -> Any:
        """As ``coerce``, for a value to compare with: limits of length and size do not hold.

        Raises ``FieldError``.
        """
        return self._converted(self.shape.convert, value)

    def make_default(self) -> Any:
        """The value when none is given; a new one each time. Raises ``RecordError`` without one."""
        if self.default_factory is not None:
            return self.coerce(self.default_factory())
        if self.default is MISSING:
            raise RecordError(f"{self.record}.{self.name} has no default")
        return self.default if self.scalar else freeze(self.default)

    def error(self, value: Any, expected: str, *, path: str = "", hint: str = "") -> FieldError:
        """The error that ``value`` is not ``expected``; a secret value is not in it."""
        shown = Secret() if self.secret else value
        return FieldError(self.record, f"{self.name}{path}", shown, expected, hint=hint)

    def _converted(self, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except MisfitError as misfit:
            wrong = misfit
        # Outside the handler: a chained error would show a secret value.
        optional = " or None" if self.optional and not wrong.path else ""
        # The way to an element is made of dict keys, which are values too.
        path = "" if self.secret else wrong.path
        raise self.error(wrong.value, f"{wrong.expected}{optional}", path=path) from None

    def _wrong(self, message: str, *, hint: str = "") -> RecordError:
        return RecordError(f"{self.record}.{self.name}: {message}", hint=hint)

    def _limit(self) -> None:
        """Set ``verify``, ``_convert`` and ``expected``: those of the shape within the limits."""
        shape = self.shape
        fits: list[Callable[[Any], bool]] = []
        expected = shape.expected
        if self.length is not None:
            limit = self.length
            if shape.kind not in (str, bytes):
                raise self._wrong("length is for strings and bytes")
            if limit < 1:
                raise self._wrong("length must be at least 1")
            fits.append(lambda value: len(value) <= limit)
            expected += f" of at most {limit} {'characters' if shape.kind is str else 'bytes'}"
        if self.minimum is not None or self.maximum is not None:
            if shape.kind not in (int, float, Decimal):
                raise self._wrong("minimum and maximum are for numbers")
            low, high = self.minimum, self.maximum
            if low is not None:
                fits.append(lambda value: bool(value >= low))
                expected += f" of at least {low}"
            if high is not None:
                fits.append(lambda value: bool(value <= high))
                expected += f"{' and' if low is not None else ' of'} at most {high}"
        if self.zoned is not None:
            if shape.kind not in (dt.datetime, dt.time):
                raise self._wrong("zoned is for times and datetimes")
            zoned = self.zoned
            fits.append(lambda value: (value.utcoffset() is not None) is zoned)
            expected += f" {'with' if zoned else 'without'} an offset from UTC"
        self.expected = expected
        self.verify, self._convert = shape.verify, shape.convert
        if fits:
            self._convert = _within(shape.convert, fits, expected)
            self.verify = _all_of([shape.verify, *fits] if shape.verify else fits)
            if shape.kind is str and len(fits) == 1 and shape.member is None:
                # The most frequent limit by far: two calls instead of five.
                limit = self.length or 0
                self.verify = lambda value: len(value) <= limit and is_text(value)

    def _settle_default(self) -> None:
        if self.default is not MISSING and self.default_factory is not None:
            raise self._wrong("default and default_factory exclude each other")
        if self.default is MISSING and self.default_factory is None and self.optional:
            self.default = None
        if isinstance(self.default, list | dict | set | bytearray):
            raise self._wrong(
                "a default that can be altered would be shared by all records",
                hint="use Field(default_factory=...)",
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


def _without_none(declared: Any, shape: Coercion) -> Any:
    if not shape.optional:
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
