"""The declaration of a record type: finds the fields of a class and binds them to the record type.

``Record`` calls these functions. The parameter ``root`` is always the class ``Record`` itself.
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
"""The declared fields: field name -> field and annotated type (``None`` without annotation)."""


def declared_in(cls: type[Any], scope: dict[str, Any], root: type[Any]) -> Declared:
    """Return the fields that the body of ``cls`` itself declares, with their types.

    ``scope``: local names that annotations may use besides the names of the module. Raises
    ``RecordError`` if a field has a reserved name, or if an annotation cannot be evaluated.
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
                f"{cls.__name__}.{name}: a field cannot have this name, because names with a "
                "leading underscore and the names of Record's own methods are reserved",
                hint="choose another name for the field, and map the field to its name in the "
                "store with View(rename={...})",
            )
    return declared


def inherited(cls: type[Any], scope: dict[str, Any], root: type[Any]) -> Declared:
    """Return the fields that the base classes of ``cls`` declare. A base need not be a record.

    Raises ``RecordError`` if an attribute of ``cls`` hides an inherited field, or if a declaration
    in a base is wrong.
    """
    found: dict[str, tuple[Field, Any]] = {}
    for base in reversed(cls.__mro__[1:]):
        if base is not root and base is not object:
            known = base.__dict__.get("__declared__")
            found |= declared_in(base, scope, root) if known is None else known
    for name in found:
        if name in cls.__dict__ and name not in cls.__declared__:
            raise RecordError(
                f"{cls.__name__}.{name} hides the inherited field {name!r}",
                hint="add an annotation to declare the field again, or choose another name for the "
                "attribute",
            )
    return found


def _evaluated(cls: type[Any], name: str, annotation: Any, scope: dict[str, Any]) -> Any:
    holder = type(cls.__name__, (), {"__annotations__": {name: annotation}})
    module = sys.modules.get(cls.__module__)
    try:
        return get_type_hints(holder, vars(module) if module else {}, scope)[name]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise RecordError(
            f"{cls.__name__}.{name}: the annotation {annotation!r} cannot be evaluated: {error}",
            hint="import or declare the names in the annotation before the class, outside of "
            "TYPE_CHECKING",
        ) from error


def bind(cls: type[Any], record: str, declared: Declared, root: type[Any]) -> dict[str, Field]:
    """Return the declared fields by name, bound to the record type with the name ``record``.

    ``cls``: the class of the records. Raises ``RecordError`` if a declaration contradicts itself or
    a type is not supported, and ``FieldError`` if a default does not fit its type.
    """
    keys = [name for name, (field, _) in declared.items() if field.key]
    identifiers = [name for name, (field, _) in declared.items() if field.identifier]
    if len(identifiers) > 1:
        raise RecordError(
            f"{record}: the fields {' and '.join(identifiers)} are all declared as the identifier",
            hint="keep identifier=True for one of these fields only",
        )
    keys = keys or identifiers
    bound: dict[str, Field] = {}

    def resolve(target: type[Any]) -> Coercion | None:
        if not issubclass(target, root):
            return None
        if target is not cls:
            known = getattr(target, "__record__", None)
            if known is None:
                raise RecordError(
                    f"{record} refers to {target.__name__}, which is abstract",
                    hint="refer to a class that is not declared with abstract=True",
                )
            fields = [known.fields[name] for name in known.keys]
            return _reference(target, known.name, fields, root)
        missing = [name for name in keys if name not in bound]
        if missing:
            raise RecordError(
                f"{record}.{missing[0]}: a key field cannot refer to its own record type",
                hint="declare the key field with a plain type, for example int or str",
            )
        return _reference(target, record, [bound[name] for name in keys], root)

    # Key fields come first, because another field may refer to a record of the same type.
    for name in [*keys, *(name for name in declared if name not in keys)]:
        field, annotation = declared[name]
        bound[name] = field.bind(record, name, annotation, resolve, key=name in keys)
    return {name: bound[name] for name in declared}


def _reference(target: type[Any], name: str, keys: list[Field], root: type[Any]) -> Coercion:
    """Return the coercion of a field that refers to a record of the class ``target``.

    It converts a record or a key to the value of the key field. If the key is composite, it
    converts to the canonical text of the key. ``name``: the record type. ``keys``: its key fields.
    """
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
        except RecordError:
            # The text of this error names the referenced record type. ``guard`` raises an error
            # that names this field instead.
            raise ValueError from None

    return Coercion(
        kind=str if single is None else single.type,
        convert=guard(key_value, expected),
        expected=expected,
        verify=_never if single is None else single.verify,
    )


def _never(value: Any) -> bool:
    """Return false, so that the text of a composite key is always checked by its record type."""
    return False
