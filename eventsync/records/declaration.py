"""The declaration of a record type: its fields, read from a class and its bases, and bound.

It knows nothing of records' values, nor of stores. Of records it knows their common class, which
it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, get_origin, get_type_hints

from eventsync.errors import RecordError
from eventsync.records.coercion import Coercion, guard
from eventsync.records.field import MISSING, Field

__all__ = ["Declared", "bind", "declared_in", "inherited"]

Declared: TypeAlias = Mapping[str, tuple[Field, Any]]
"""Fields by name, each with the type of its annotation, which is ``None`` where there is none."""


def declared_in(cls: type[Any], scope: dict[str, Any], root: type[Any]) -> Declared:
    """The fields that the body of ``cls`` declares, with their types.

    ``scope``: names that annotations may use beside those of the module. ``root``: the class of all
    records. Raises ``RecordError``.
    """
    own = cls.__dict__
    declared: dict[str, tuple[Field, Any]] = {}
    for name, annotation in own.get("__annotations__", {}).items():
        declared_type = _evaluated(cls, name, annotation, scope)
        if declared_type is ClassVar or get_origin(declared_type) is ClassVar:
            continue
        default = own.get(name, MISSING)
        field = default if isinstance(default, Field) else Field(default=default)
        declared[name] = (field, declared_type)
    for name, field in own.items():
        if isinstance(field, Field) and name not in declared:
            declared[name] = (field, None)
    for name in declared:
        if name.startswith("_") or hasattr(root, name):
            raise RecordError(
                f"{cls.__name__}.{name}: no field can be declared under that name, which records "
                "use themselves",
                hint="declare another name, and map it to the store's with View(rename={...})",
            )
    return declared


def inherited(cls: type[Any], scope: dict[str, Any], root: type[Any]) -> Declared:
    """The fields that the bases of ``cls`` declare, be they records or not.

    Raises ``RecordError``.
    """
    found: dict[str, tuple[Field, Any]] = {}
    for base in reversed(cls.__mro__[1:]):
        if base is not root and base is not object:
            known = base.__dict__.get("__declared__")
            found |= declared_in(base, scope, root) if known is None else known
    for name in found:
        if name in cls.__dict__ and name not in cls.__declared__:
            raise RecordError(
                f"{cls.__name__}.{name} hides an inherited field",
                hint="annotate it to declare the field anew, or choose another name",
            )
    return found


def _evaluated(cls: type[Any], name: str, annotation: Any, scope: dict[str, Any]) -> Any:
    holder = type(cls.__name__, (), {"__annotations__": {name: annotation}})
    module = sys.modules.get(cls.__module__)
    try:
        return get_type_hints(holder, vars(module) if module else {}, scope)[name]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise RecordError(
            f"{cls.__name__}.{name}: its type {annotation!r} cannot be evaluated: {error}",
            hint="import or declare what it names before the record type, at run time too",
        ) from error


def bind(cls: type[Any], record: str, declared: Declared, root: type[Any]) -> dict[str, Field]:
    """The fields of the record type named ``record``, bound.

    Raises ``RecordError``, and ``FieldError`` for a default that does not fit.
    """
    keys = [name for name, (field, _) in declared.items() if field.key]
    identifiers = [name for name, (field, _) in declared.items() if field.identifier]
    if len(identifiers) > 1:
        raise RecordError(f"{record}: {' and '.join(identifiers)} cannot both be the identifier")
    keys = keys or identifiers
    bound: dict[str, Field] = {}

    def resolve(target: type[Any]) -> Coercion | None:
        if not issubclass(target, root):
            return None
        if target is not cls:
            known = getattr(target, "__record__", None)
            if known is None:
                raise RecordError(f"{record} refers to {target.__name__}, of which no records are")
            fields = [known.fields[name] for name in known.keys]
            return _reference(target, known.name, fields, root)
        missing = [name for name in keys if name not in bound]
        if missing:
            raise RecordError(f"{record}.{missing[0]}: a key cannot refer to its own record type")
        return _reference(target, record, [bound[name] for name in keys], root)

    # Keys first, since other fields may refer to records of this very type.
    for name in [*keys, *(name for name in declared if name not in keys)]:
        field, annotation = declared[name]
        bound[name] = field.bind(record, name, annotation, resolve, key=name in keys)
    return {name: bound[name] for name in declared}


def _reference(target: type[Any], name: str, keys: list[Field], root: type[Any]) -> Coercion:
    """The shape of a reference: the key's value, or the text of a composite key."""
    single = keys[0] if len(keys) == 1 else None
    expected = f"the key of a {name}"
    if single is not None:
        expected += f" ({single.expected})"

    def convert(value: Any) -> Any:
        if isinstance(value, root):
            if value.__record__.name != name:
                raise TypeError
            return value.key if single is None else value[single.name]
        if single is not None:
            return single.coerce(value)
        record_type = target.__record__
        if isinstance(value, tuple | list | Mapping):
            return record_type.key_of(value)
        text = bytes(value).decode() if isinstance(value, bytes) else value
        return record_type.key_text(record_type.key_values(text))

    def key_value(value: Any) -> Any:
        try:
            return convert(value)
        except RecordError:  # which speaks of the other record type
            raise ValueError from None

    return Coercion(
        kind=str if single is None else single.type,
        convert=guard(key_value, expected),
        expected=expected,
        verify=_never if single is None else single.verify,
    )


def _never(value: Any) -> bool:
    """A composite key's text is always checked by the type it belongs to."""
    return False
