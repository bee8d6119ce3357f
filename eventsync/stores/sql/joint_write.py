"""The plan of a joint write to tables: rows in the order that their constraints require.

Constraints that the database can check at the commit are checked there. Otherwise a row is written
after the rows that it needs, and a circle is broken at a column that may be NULL for a moment.
Everything is one transaction, so nobody sees such a moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from eventsync.engine.plan import Part, Plan, RecordId
from eventsync.engine.write import Write
from eventsync.errors import DependencyError
from eventsync.stores.sql.member import Member
from eventsync.stores.sql.order import Link, Node, arrange, groups
from eventsync.stores.sql.reference import Dependents, Place
from eventsync.stores.sql.transaction import SqlTransaction
from eventsync.stores.sql.unique import unique_links

__all__ = ["JointWrite", "Participant"]

WriteRows: TypeAlias = Callable[[Sequence[Write], Sequence[str]], None]


@dataclass(slots=True, frozen=True)
class Participant:
    """One accessor in a joint write: its part, its rows, and how it writes them.

    ``write``: writes rows and removes rows, as ``Accessor.write_rows`` does. ``waiting``: errors of
    rows that must wait for other reasons than another row.
    """

    part: Part
    member: Member
    dependents: Dependents
    write: WriteRows
    waiting: Mapping[str, DependencyError]


class JointWrite(Plan):
    """Rows of one or several tables, in the order that their constraints require."""

    def __init__(self, participants: Sequence[Participant], transaction: SqlTransaction) -> None:
        self._transaction = transaction
        self._participants = {p.part.accessor.type.name: p for p in participants}
        self._links: list[Link] = []
        waiting: dict[Node, DependencyError] = {}
        places: dict[Place, list[Member]] = defaultdict(list)
        for one in participants:
            found = one.member.table.found
            places[found.schema, str(found.name)].append(one.member)
        dialect, connection = transaction.dialect, transaction.connection
        self._references = dialect.checks_references(connection)
        for one in participants:
            waiting |= {one.member.node(key): error for key, error in one.waiting.items()}
            found_links = list(unique_links(connection, dialect, one.member))
            if self._references:
                found_links += one.dependents.links(connection, one.member, places)
            for link in found_links:
                if isinstance(link, Link):
                    self._links.append(link)
                else:
                    waiting.setdefault(*link)
        self._order = arrange(self._nodes(), self._links, waiting)
        super().__init__([p.part for p in participants], transaction, self._order.waiting)

    def _nodes(self) -> list[RecordId]:
        return [
            one.member.node(key)
            for one in self._participants.values()
            for key in (*one.member.rows, *one.member.removals)
        ]

    def groups(self) -> list[list[RecordId]]:
        return groups(self._nodes(), self._links)

    def write(self) -> None:
        dialect, connection = self._transaction.dialect, self._transaction.connection
        deferred = any(not link.ordered for link in self._links)
        if deferred:
            dialect.defer_constraints(connection)
        writes = {
            one.member.node(write.key): self._known(one, write)
            for one in self._participants.values()
            for write in one.part.writes
        }
        later = self._order.later
        for step in self._order.steps:
            self._write([_emptied(node, fields) for node, fields in step.clear.items()])
            shortened = {
                n: _shortened(writes[n], later.get(n, ())) for n in step.nodes if n in writes
            }
            self._write([(node, shortened.get(node)) for node in step.nodes])
        self._write([(node, _rest(writes[node], fields)) for node, fields in later.items()])
        if deferred:
            dialect.check_constraints(connection)

    def _known(self, one: Participant, write: Write) -> Write:
        """Return ``write`` as the change of a row that is there, if it is there."""
        return Write(write.key, write.values, write.whole and write.key not in one.member.present)

    def _write(self, nodes: Sequence[tuple[Node, Write | None]]) -> None:
        """Make the writes of ``nodes``, and remove those without one."""
        by_type: dict[str, tuple[list[Write], list[str]]] = defaultdict(lambda: ([], []))
        for (type, key), write in nodes:
            if write is None:
                by_type[type][1].append(key)
            elif write.values:
                by_type[type][0].append(write)
        for type, (writes, removals) in by_type.items():
            self._participants[type].write(writes, removals)


def _emptied(node: Node, fields: Sequence[str]) -> tuple[Node, Write]:
    return node, Write(node[1], dict.fromkeys(fields), whole=False)


def _shortened(write: Write, fields: Sequence[str]) -> Write:
    """Return a write without the values of ``fields``; a new row is NULL there."""
    if not fields:
        return write
    values: dict[str, Any] = {n: v for n, v in write.values.items() if n not in fields}
    if write.whole:
        values |= dict.fromkeys(fields)
    return Write(write.key, values, write.whole)


def _rest(write: Write, fields: Sequence[str]) -> Write:
    """Return the write of the values of ``fields`` only."""
    return Write(write.key, {n: write.values[n] for n in fields if n in write.values}, whole=False)
