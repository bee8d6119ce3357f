"""The parser of filters: makes a tree of conditions from a mapping that people write.

The language is described in ``eventsync.records.query``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from eventsync.errors import FieldError, FilterError, RecordError
from eventsync.records.field import Field
from eventsync.records.filter_tree import (
    EVERYTHING,
    All,
    Compare,
    Either,
    Exists,
    Length,
    Node,
    Not,
    Op,
    json_of,
    like_to_regex,
)
from eventsync.records.record_type import RecordType, same

__all__ = ["parse"]

_ALIASES: Final[Mapping[str, str]] = {
    "=": "$eq",
    "==": "$eq",
    "$neq": "$ne",
    "!=": "$ne",
    "<": "$lt",
    "<=": "$lte",
    ">": "$gt",
    ">=": "$gte",
    "$ex": "$exists",
    "%": "$mod",
    "$size": "$len",
    "&&": "$and",
    "||": "$or",
    "!||": "$nor",
    "!": "$not",
}
_LOGIC: Final = ("$and", "$or", "$nor", "$not")
_ORDER: Final = ("$lt", "$lte", "$gt", "$gte")
_SAME: Final = ("$eq", "$ne", "$in", "$nin")
_OPERATORS: Final = (*_SAME, *_ORDER, "$like", "$re", "$exists", "$mod", "$len", *_LOGIC)

# A filter may come from an attacker. This limit keeps a deep filter from exhausting the stack.
_MAX_DEPTH: Final = 50


def parse(tree: Mapping[str, Any] | None, type: RecordType) -> Node:
    """Return the conditions that the filter ``tree`` describes, simplified.

    ``None`` and an empty mapping match every record. Raises ``FilterError`` if ``tree`` is not a
    valid filter for the record type.
    """
    return EVERYTHING if tree is None else _parse_filter(tree, type, 0)


# -- the simplest form -----------------------------------------------------------------------------


def _all(parts: list[Node]) -> Node:
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, All) else [part])
    return flat[0] if len(flat) == 1 else All(tuple(flat))


def _either(parts: list[Node]) -> Node:
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Either) else [part])
    return flat[0] if len(flat) == 1 else Either(tuple(flat))


def _not(part: Node) -> Node:
    return part.part if isinstance(part, Not) else Not(part)


# -- from a mapping --------------------------------------------------------------------------------


def _parse_filter(tree: Any, type: RecordType, depth: int) -> Node:
    if not isinstance(tree, Mapping):
        raise FilterError(
            f"{type.name}: the filter is {_shown(tree)}, not a mapping",
            hint='write a filter as {"field": {"operator": value}}',
        )
    _check_depth(type.name, depth)
    parts = []
    for name, condition in tree.items():
        operator = _ALIASES.get(name, name) if isinstance(name, str) else name
        field = type.fields.get(name)
        if field is not None:
            parts.append(_parse_field(field, condition, depth + 1))
        elif operator in _LOGIC:
            parts.append(
                _logic(
                    operator,
                    condition,
                    lambda inner: _parse_filter(inner, type, depth + 1),
                    type.name,
                )
            )
        else:
            raise FilterError(
                f"{type.name} has no field {name!r}",
                hint=f"the fields are {', '.join(type.fields)}; filters are combined with "
                f"{', '.join(_LOGIC)}",
            )
    return _all(parts)


def _logic(operator: str, operand: Any, parse_part: Callable[[Any], Node], where: str) -> Node:
    if operator == "$not":
        return _not(parse_part(operand))
    if not isinstance(operand, list | tuple) or not operand:
        raise FilterError(f"{where}: {operator} needs a list of at least one condition")
    parts = [parse_part(part) for part in operand]
    if operator == "$and":
        return _all(parts)
    return _either(parts) if operator == "$or" else _not(_either(parts))


def _parse_field(field: Field, condition: Any, depth: int) -> Node:
    where = f"{field.record}.{field.name}"
    _check_depth(where, depth)
    if not isinstance(condition, Mapping) or _is_value(field, condition):
        return _equal(field, condition)
    if not condition:
        raise FilterError(f"{where}: the condition is empty", hint=f"use {_allowed(field)}")
    parts: list[Node] = []
    for name, operand in condition.items():
        operator = _ALIASES.get(name, name)
        if operator in _LOGIC:
            parts.append(
                _logic(
                    operator, operand, lambda inner: _parse_field(field, inner, depth + 1), where
                )
            )
        elif operator not in _operators_of(field):
            unknown = operator not in _OPERATORS
            problem = "is not an operator" if unknown else "does not apply to this field"
            raise FilterError(f"{where}: {name!r} {problem}", hint=f"use {_allowed(field)}")
        else:
            parts.append(_parse_operator(field, operator, operand))
    return _all(parts)


def _is_value(field: Field, condition: Mapping[Any, Any]) -> bool:
    """Return whether ``condition`` is a value to compare with, and not a mapping of operators."""
    return field.type in (dict, object) and not any(
        isinstance(name, str) and (name.startswith("$") or name in _ALIASES) for name in condition
    )


def _operators_of(field: Field) -> tuple[str, ...]:
    operators = [*_SAME, "$exists"]
    if field.scalar:
        operators += _ORDER
    if field.type in (str, object):
        operators += ["$like", "$re"]
    if field.type is int:
        operators.append("$mod")
    if field.type in (str, bytes, list, dict, object):
        operators.append("$len")
    return tuple(operators)


def _allowed(field: Field) -> str:
    return ", ".join((*_operators_of(field), *_LOGIC))


def _parse_operator(field: Field, operator: str, operand: Any) -> Node:
    name = field.name
    if operator in ("$eq", "$ne"):
        equal = _equal(field, operand)
        return equal if operator == "$eq" else _not(equal)
    if operator in ("$in", "$nin"):
        among = _among(field, operand)
        return among if operator == "$in" else _not(among)
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise _wrong(field, operator, operand, "true or false")
        return Exists(name) if operand else Not(Exists(name))
    if operator == "$like":
        like_to_regex(_pattern(field, operator, operand))
        return Compare(name, "$like", operand)
    if operator == "$re":
        try:
            re.compile(_pattern(field, operator, operand))
        except (re.error, OverflowError, RecursionError) as error:
            raise FilterError(
                f"{field.record}.{name}: {_value(field, operand)} is not a valid regular "
                f"expression: {'***' if field.secret else error}"
            ) from None
        return Compare(name, "$re", operand)
    if operator == "$mod":
        return Compare(name, "$mod", _divisor_and_remainder(field, operand))
    if operator == "$len":
        return _length(field, operand)
    assert operator in _ORDER
    if operand is None:
        raise _wrong(field, operator, operand, field.coercion.expected)
    return Compare(name, cast("Op", operator), _operand(field, operand))


def _equal(field: Field, operand: Any) -> Node:
    if operand is None:
        return Not(Exists(field.name))
    return Compare(field.name, "$eq", _operand(field, operand))


def _among(field: Field, operand: Any) -> Node:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise _wrong(field, "$in", operand, "a list")
    known = Compare(
        field.name, "$in", tuple(_operand(field, item) for item in operand if item is not None)
    )
    if None not in operand:
        return known
    return Either((Not(Exists(field.name)), known))


def _divisor_and_remainder(field: Field, operand: Any) -> tuple[int, int]:
    match operand:
        case [int() as divisor, int() as remainder] if divisor and not (
            isinstance(divisor, bool) or isinstance(remainder, bool)
        ):
            return divisor, remainder
    raise _wrong(
        field, "$mod", operand, "two integers, [divisor, remainder] with a divisor other than 0"
    )


def _length(field: Field, operand: Any) -> Node:
    if not isinstance(operand, Mapping):
        return Length(field.name, "$eq", _whole(field, operand))
    if not operand:
        raise _wrong(field, "$len", operand, "a number or a comparison")
    parts: list[Node] = []
    for name, inner in operand.items():
        operator = _ALIASES.get(name, name)
        if operator in ("$eq", "$ne"):
            equal = Length(field.name, "$eq", _whole(field, inner))
            parts.append(equal if operator == "$eq" else Not(equal))
        elif operator in ("$in", "$nin"):
            if not isinstance(inner, list | tuple):
                raise _wrong(field, "$len", inner, "a list of numbers")
            among = Length(field.name, "$in", tuple(_whole(field, number) for number in inner))
            parts.append(among if operator == "$in" else Not(among))
        elif operator in _ORDER:
            parts.append(Length(field.name, cast("Op", operator), _whole(field, inner)))
        else:
            raise FilterError(
                f"{field.record}.{field.name}: {name!r} cannot be used inside $len",
                hint=f"use {', '.join((*_SAME, *_ORDER))}",
            )
    return _all(parts)


def _whole(field: Field, operand: Any) -> int:
    if type(operand) is not int:
        raise _wrong(field, "$len", operand, "an integer")
    return operand


def _pattern(field: Field, operator: str, operand: Any) -> str:
    if not isinstance(operand, str):
        raise _wrong(field, operator, operand, "a string")
    return operand


def _operand(field: Field, operand: Any) -> Any:
    if field.type is bytes and isinstance(operand, str):
        # JSON has no bytes.
        try:
            return bytes.fromhex(operand)
        except ValueError:
            raise _wrong(field, "$eq", operand, "bytes in hexadecimal digits") from None
    try:
        plain = field.operand(operand)
    except FieldError as error:
        raise FilterError(error.message, hint=error.hint) from None
    if not field.scalar and not _survives(field, plain):
        raise _wrong(field, "$eq", operand, "a value that JSON can express without loss")
    return plain


def _survives(field: Field, plain: Any) -> bool:
    """Return whether JSON can express ``plain``, a plain value of ``field``, without loss."""
    try:
        return same(field.operand(json_of(plain)), plain)
    except RecordError:
        return False


def _check_depth(where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise FilterError(f"{where}: the filter nests deeper than {_MAX_DEPTH} levels")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _value(field: Field, value: Any) -> str:
    return "***" if field.secret else _shown(value)


def _wrong(field: Field, operator: str, operand: Any, expected: str) -> FilterError:
    return FilterError(
        f"{field.record}.{field.name}: {operator} needs {expected}, not {_value(field, operand)}"
    )
