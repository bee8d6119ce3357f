"""What foreign writers wrote last, per record and field, and what the stores may hold of it.

The model knows the writes of foreign writers in the order of their commits, and nothing of
eventsync. Under the per-record rule a record is one cell; under the per-field rule each field is
one, and the existence of the record is another. A cell is *settled* when all stores hold what was
written last. Writers of another store touch an unsettled cell only if they mean to conflict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["ABSENT", "EXISTENCE", "WHOLE", "LastWriter", "Row"]

Row = Mapping[str, Any]
WHOLE: Final = "*"
"""The only cell of a record under the per-record rule: its row, or ``None``."""
EXISTENCE: Final = "?"
"""The cell that says whether a record exists, under the per-field rule."""
ABSENT: Final = "(absent)"


@dataclass
class _Cell:
    """``written``: the settled value, then what was written since, each with its side."""

    written: list[tuple[str, Any]]
    rule: str = ""
    """The rule that allows more than the last value; empty if only that is allowed."""

    @property
    def last(self) -> Any:
        return self.written[-1][1]

    def owner(self) -> str | None:
        return self.written[-1][0] if len(self.written) > 1 or self.rule else None

    def allowed(self) -> list[Any]:
        """The values that the stores may hold in the end."""
        if not self.rule:
            return [self.last]
        if self.rule.startswith("conflict"):
            return list(dict(self.written[1:]).values())  # the last one of each side
        return [value for _, value in self.written]


@dataclass
class LastWriter:
    """The writes to the records of one type. ``fields``: its fields without the key."""

    name: str
    rule: str
    fields: tuple[str, ...]
    cells: dict[str, dict[str, _Cell]] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    """Keys of records that a writer has locked, so that no other one touches them."""
    unsettled: set[str] = field(default_factory=set)

    def present(self) -> list[str]:
        """The keys of the records that exist, as far as the writers know."""
        return [key for key in self.cells if self.row(key) is not None]

    def row(self, key: str) -> dict[str, Any] | None:
        """What was written last of a record; ``None`` if it does not exist."""
        cells = self.cells.get(key)
        if cells is None:
            return None
        if self.rule == "record":
            return cells[WHOLE].last
        if not cells[EXISTENCE].last:
            return None
        return {name: cells[name].last for name in self.fields}

    def is_free(self, key: str, side: str, names: Iterable[str] | None = None) -> bool:
        """Whether nobody of another side writes these fields, or (``None``) the record, now."""
        if key in self.reserved:
            return False
        cells = self.cells.get(key, {})
        whole = self.rule == "record" or names is None
        wanted = list(cells) if whole or names is None else [EXISTENCE, *names]
        return all(cells[n].owner() in (None, side) for n in wanted if n in cells)

    def wrote(self, key: str, side: str, row: Row | None, names: Iterable[str] | None) -> None:
        """A writer committed a record, or (``names``) some fields of it; ``None``: it is gone."""
        for name, value in self._split(row, names):
            cells = self.cells.setdefault(key, {})
            cell = cells.get(name)
            if cell is None:
                none = False if name == EXISTENCE else None
                cell = cells[name] = _Cell([("", none)])
            if cell.owner() not in (None, side) and not cell.rule:
                cell.rule = "conflict"
            cell.written.append((side, value))
        self.unsettled.add(key)

    def loosen(self, side: str, rule: str, keys: Iterable[str] | None = None) -> None:
        """What a side wrote last may be gone, because it has destroyed it itself."""
        for key in list(self.unsettled if keys is None else keys):
            for cell in self.cells.get(key, {}).values():
                if side in dict(cell.written):
                    cell.rule = rule

    def reverted(self, key: str, side: str, read: Row | None, found: Row | None) -> None:
        """A writer put back what it had read before somebody wrote ``found``."""
        old, new = dict(self._split(read, None)), dict(self._split(found, None))
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name) and name in self.cells.get(key, {}):
                cell = self.cells[key][name]
                cell.rule = "overwritten by an editor"
                cell.written += [(side, old.get(name)), (side, new.get(name)), ("", cell.last)]
                self.unsettled.add(key)

    def settle(self, sides: Mapping[str, Mapping[str, Row]], *, final: bool = False) -> None:
        """Take cells for settled that all sides show alike. ``final``: nothing is on its way."""
        for key in list(self.unsettled):
            shown = [dict(self._split(side.get(key), None)) for side in sides.values()]
            if self._is_gone(key, shown, final):
                for name, cell in self.cells[key].items():
                    cell.written, cell.rule = [("", False if name == EXISTENCE else None)], ""
                self.unsettled.discard(key)
                continue
            done = True
            for name, cell in self.cells[key].items():
                here = [self._shown(cells, name) for cells in shown]
                alike = all(value == here[0] for value in here)
                if final or (alike and not cell.rule and here[0] == cell.last):
                    value = here[0] if final else cell.last
                    cell.written, cell.rule = [("", value)], ""
                else:
                    done = False
            if done:
                self.unsettled.discard(key)

    def _is_gone(self, key: str, shown: list[dict[str, Any]], final: bool) -> bool:
        """Whether a record with a cell for each field is deleted, and all sides know."""
        if self.rule == "record" or any(side[EXISTENCE] for side in shown):
            return False
        cells = self.cells[key]
        strict = not cells[EXISTENCE].last and not any(cell.rule for cell in cells.values())
        return final or strict

    def check(self, sides: Mapping[str, Mapping[str, Row]]) -> tuple[list[str], Counter[str]]:
        """What is wrong in the sides, and how often which rule explains that a write is gone."""
        wrong, explained = [], Counter[str]()
        keys = self.cells.keys() | {key for side in sides.values() for key in side}
        for key in sorted(keys):
            shown = {name: dict(self._split(s.get(key), None)) for name, s in sides.items()}
            cells = self.cells.get(key)
            if cells is None:
                wrong.append(f"{self.name} {key}: nobody wrote it, found {shown}")
                continue
            if self.rule == "field" and all(not s.get(EXISTENCE) for s in shown.values()):
                cells = {EXISTENCE: cells[EXISTENCE]}
            for name, cell in cells.items():
                found = {side: self._shown(values, name) for side, values in shown.items()}
                allowed = cell.allowed()
                first = next(iter(found.values()))
                if first not in allowed or any(value != first for value in found.values()):
                    wrong.append(
                        f"{self.name} {key} {name}: found {found}, allowed {allowed}"
                        f" ({cell.rule or 'strict'}), written {cell.written[-6:]}"
                    )
                elif first != cell.last:
                    explained[cell.rule] += 1
        return wrong, explained

    def count(self) -> int:
        """How many cells are checked."""
        return sum(len(cells) for cells in self.cells.values())

    @staticmethod
    def _shown(values: Mapping[str, Any], name: str) -> Any:
        if name == EXISTENCE:
            return bool(values.get(EXISTENCE))
        return values.get(name)

    def _split(self, row: Row | None, names: Iterable[str] | None) -> Iterator[tuple[str, Any]]:
        """The cells of a row, or of some fields of it."""
        if self.rule == "record":
            yield WHOLE, None if row is None else {name: row[name] for name in self.fields}
            return
        if names is None:
            yield EXISTENCE, row is not None
        if row is not None:
            yield from ((name, row[name]) for name in (self.fields if names is None else names))
