"""The order in which rows that depend on each other are written, and which of them must wait.

A pure function over a graph: its nodes are the rows to write and to remove, its links say that one
must come before another one. A circle is broken at a link whose columns may be empty for a moment.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from eventsync.errors import DependencyError

__all__ = ["Link", "Node", "Order", "Step", "arrange", "groups"]

Node: TypeAlias = tuple[str, str]
"""A row to write or to remove: its record type and its key."""


@dataclass(slots=True, frozen=True)
class Link:
    """The row ``first`` must be written or removed before the row ``then``.

    ``error``: why ``then`` waits if ``first`` cannot be written or removed now. ``postpone``: the
    fields of ``then`` that may be written after ``first`` instead. ``clear``: the fields of
    ``first`` that may be NULL before ``then``. ``ordered``: false if the database checks the
    constraint at the commit, so that any order will do.
    """

    first: Node
    then: Node
    error: DependencyError
    postpone: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()
    ordered: bool = True

    @property
    def breakable(self) -> bool:
        """Whether ``then`` can come before ``first``."""
        return bool(self.postpone or self.clear)


@dataclass(slots=True)
class Step:
    """Rows that can be written and removed together: ``nodes``.

    Before that, ``clear`` names the fields of other rows that become NULL.
    """

    nodes: list[Node]
    clear: dict[Node, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Order:
    """The steps in which rows are written, and the errors of the rows that must wait.

    ``later``: the fields of rows that are written only after all steps.
    """

    steps: list[Step] = field(default_factory=list)
    waiting: dict[Node, DependencyError] = field(default_factory=dict)
    later: dict[Node, tuple[str, ...]] = field(default_factory=dict)


def arrange(
    nodes: Iterable[Node], links: Sequence[Link], waiting: Mapping[Node, DependencyError]
) -> Order:
    """Return the order of ``nodes``.

    ``waiting``: the rows that must wait for rows outside ``nodes``. All that depends on a waiting
    row waits, too, and so do the rows of a circle that no link breaks.
    """
    following: dict[Node, list[Link]] = defaultdict(list)
    for link in links:
        following[link.first].append(link)
    errors = dict(waiting)
    _spread(errors, following, list(errors))
    while True:
        order = Order(waiting=errors)
        left = [node for node in nodes if node not in errors]
        stuck = _sort(order, left, [link for link in links if link.ordered])
        if not stuck:
            return order
        errors |= stuck
        _spread(errors, following, list(stuck))


def _spread(
    errors: dict[Node, DependencyError],
    following: Mapping[Node, Sequence[Link]],
    late: list[Node],
) -> None:
    """Add the errors of all rows that depend on the rows ``late`` to ``errors``."""
    while late:
        for link in following.get(late.pop(), ()):
            if link.then not in errors:
                errors[link.then] = link.error
                late.append(link.then)


def _sort(
    order: Order, nodes: Sequence[Node], links: Sequence[Link]
) -> dict[Node, DependencyError]:
    """Add the steps of ``nodes`` to ``order``. Return the errors of rows in a firm circle."""
    left = dict.fromkeys(nodes)
    incoming: dict[Node, list[Link]] = {node: [] for node in left}
    outgoing: dict[Node, list[Link]] = defaultdict(list)
    for link in links:
        if link.first in left and link.then in left:
            incoming[link.then].append(link)
            outgoing[link.first].append(link)
    firm = {node: sum(not link.breakable for link in ls) for node, ls in incoming.items()}
    loose = {node: len(ls) - firm[node] for node, ls in incoming.items()}
    ready = [node for node in left if not firm[node] and not loose[node]]
    breakable = deque(node for node in left if not firm[node] and loose[node])
    clear: dict[Node, tuple[str, ...]] = {}
    while left:
        if not ready:
            node = next(_from(breakable, left), None)
            if node is None:
                break
            for link in incoming[node]:
                if link.first in left:
                    if link.postpone:
                        order.later[node] = _merged(order.later.get(node, ()), link.postpone)
                    else:
                        clear[link.first] = _merged(clear.get(link.first, ()), link.clear)
            ready = [node]
        order.steps.append(Step(ready, clear))
        clear = {}
        for node in ready:
            left.pop(node)
        freed: list[Node] = []
        for node in ready:
            for link in outgoing[node]:
                if link.then in left:
                    counted = loose if link.breakable else firm
                    counted[link.then] -= 1
                    if not firm[link.then]:
                        (breakable if loose[link.then] else freed).append(link.then)
        ready = list(dict.fromkeys(freed))
    return {
        node: next(
            link.error for link in incoming[node] if link.first in left and not link.breakable
        )
        for node in left
    }


def _from(waiting: deque[Node], left: Mapping[Node, object]) -> Iterator[Node]:
    """Yield and remove the nodes of ``waiting`` that are still in ``left``."""
    while waiting:
        node = waiting.popleft()
        if node in left:
            yield node


def _merged(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def groups(nodes: Iterable[Node], links: Iterable[Link]) -> list[list[Node]]:
    """Return ``nodes`` in groups; no link leads from one group to another one."""
    above = {node: node for node in nodes}

    def top(node: Node) -> Node:
        while above[node] != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    for link in links:
        if link.first in above and link.then in above:
            above[top(link.first)] = top(link.then)
    found: dict[Node, list[Node]] = defaultdict(list)
    for node in above:
        found[top(node)].append(node)
    return list(found.values())
