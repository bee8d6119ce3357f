"""Conditions of a query as SQL, as far as a database judges values as Python does.

A condition that SQL cannot express is left out: the records that are found are checked again in
Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventsync.records.query import All, Compare, Either, Exists, Node, Not
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.table import Table

__all__ = ["Clause", "clause_of"]

_ORDERS: Final[Mapping[str, str]] = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_MAX_OPERANDS = 500
"""A longer list of operands would make the query too long."""


@dataclass(slots=True, frozen=True)
class Clause:
    """An SQL condition for ``WHERE``, with its parameters. It is never NULL.

    It is true of every record that fulfils the query's condition, and, if ``exact``, of no other.
    """

    sql: str
    parameters: tuple[Any, ...] = ()
    exact: bool = True


def clause_of(node: Node, table: Table, dialect: Dialect) -> Clause | None:
    """Return a condition as SQL, as far as SQL can express it; ``None`` if it cannot."""
    match node:
        case All(parts):
            found = [clause_of(part, table, dialect) for part in parts]
            said = [clause for clause in found if clause is not None]
            return _joined(" AND ", said, exact=len(said) == len(parts)) if said else None
        case Either(parts):
            found = [clause_of(part, table, dialect) for part in parts]
            said = [clause for clause in found if clause is not None]
            return _joined(" OR ", said) if said and len(said) == len(parts) else None
        case Not(part):
            inner = clause_of(part, table, dialect)
            if inner is None or not inner.exact:
                return None
            return Clause(f"NOT {inner.sql}", inner.parameters)
        case Exists(name):
            column = table.column_of(name)
            if column is None or not table.type.fields[name].scalar:
                return None
            return Clause(f"({table.quoted[column]} IS NOT NULL)")
        case Compare(name, op, operand):
            return _compared(name, op, operand, table, dialect)
        case _:
            return None


def _joined(word: str, clauses: list[Clause], *, exact: bool = True) -> Clause:
    return Clause(
        f"({word.join(clause.sql for clause in clauses)})",
        tuple(parameter for clause in clauses for parameter in clause.parameters),
        exact and all(clause.exact for clause in clauses),
    )


def _compared(name: str, op: str, operand: Any, table: Table, dialect: Dialect) -> Clause | None:
    column = table.column_of(name)
    if column is None:
        return None
    how = dialect.comparison(table.found.c[column].type, table.type.fields[name])
    if how is None or (op in _ORDERS and not how.ordered):
        return None
    if op not in ("$eq", "$in", *_ORDERS):
        return None
    operands = [how.operand(each) for each in (operand if op == "$in" else (operand,))]
    if not operands or len(operands) > _MAX_OPERANDS or None in operands:
        return None
    # A comparison with NULL gives NULL, so the negation would not find the row either.
    quoted = table.quoted[column]
    known = f"{quoted} IS NOT NULL AND {how.column.format(quoted)}"
    value = how.value.format(dialect.mark)
    if op == "$in":
        condition = f"IN ({', '.join([value] * len(operands))})"
    else:
        condition = f"{_ORDERS.get(op, '=')} {value}"
    return Clause(f"({known} {condition})", tuple(operands), how.exact)
