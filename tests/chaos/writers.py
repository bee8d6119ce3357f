"""The foreign writers of ``foreign_writers.py``: who writes what, where and when."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from last_writer import LastWriter
from side import Cache, Documents, Rows

__all__ = ["Writers"]


class Writers:
    """Those who write on all sides, with the models of what they wrote last, by type.

    ``keys``: how many records of each type there may be. ``log``: a file that gets a line for each
    write.
    """

    def __init__(
        self,
        rng: random.Random,
        models: dict[str, LastWriter],
        rows: Rows,
        files: Documents,
        cache: Cache,
        *,
        keys: int,
        log: Path,
    ) -> None:
        self.models, self.rows, self.files, self.cache = models, rows, files, cache
        self.sides: dict[str, Rows | Documents | Cache] = {
            side.name: side for side in (rows, files, cache)
        }
        self.blocked: set[tuple[str, str]] = set()
        """Sides and types that nobody can write to just now."""
        self.closed: set[tuple[str, str]] = set()
        """Types and keys of documents that nobody can write to just now."""
        self.writes: Counter[str] = Counter()
        """How many were committed, by side and kind."""
        self._rng, self._keys, self._log = rng, keys, log
        self._number = 0

    def note(self, text: str) -> None:
        """Write down what happens, for whoever looks into a run that went wrong."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{dt.datetime.now(dt.UTC):%H:%M:%S.%f} {text}\n")

    def new(self) -> int:
        """A number that was not used before."""
        self._number += 1
        return self._number

    def values(self, type: str, names: Iterable[str]) -> dict[str, Any]:
        """Values that nobody has written before."""
        made: dict[str, Any] = {}
        for name in names:
            number = self.new()
            if name in ("score", "pages"):
                made[name] = number
            elif name == "email":
                made[name] = f"{number}@example.org" if self._rng.random() < 0.8 else None
            else:
                long = self._rng.random() < 0.1 and self.rows.widened
                made[name] = f"Żółć {number}" + (" wide" * 20 if long else "")
        return made

    def write(self) -> None:
        """One writer does one thing, on a side and to a record of the seed's choice."""
        rng = self._rng
        type, side = rng.choice(sorted(self.models)), rng.choice(sorted(self.sides))
        key = str(rng.randrange(1, self._keys + 1))
        if (side, type) in self.blocked or (side == "docs" and (type, key) in self.closed):
            return
        model = self.models[type]
        held = model.row(key)
        if side == "sql" and rng.random() < 0.1:
            if held is not None and model.is_free(key, side):
                self.writes["sql remark"] += self.rows.remark(type, key, str(self.new()))
            return
        # One record in ten is one that two sides may write to at the same moment.
        meant = int(key) % 10 == 0
        names = sorted(rng.sample(model.fields, rng.randint(1, 2)))
        whole = held is None or rng.random() < 0.06
        if key in model.reserved:
            return
        if not meant and not model.is_free(key, side, None if whole else names):
            return
        if held is None:
            self._insert(side, type, key)
        elif whole:
            self._delete(side, type, key)
        else:
            self.edit(side, type, key, self.values(type, names))

    def edit(self, side: str, type: str, key: str, values: dict[str, Any]) -> bool:
        """Edit fields of a record; return whether that was committed."""
        row = self.sides[side].edit(type, key, values, self.met)
        if row is not None:
            self.committed(side, "edit", type, key, row, list(values))
        return row is not None

    def committed(
        self,
        side: str,
        kind: str,
        type: str,
        key: str,
        row: dict[str, Any] | None,
        names: list[str] | None = None,
    ) -> None:
        """Take note of a write; ``names``: the fields written, ``None`` for the whole record."""
        self.models[type].wrote(key, side, row, names)
        self.writes[f"{side} {kind}"] += 1
        self.note(f"{side} {kind} {type} {key}: {row}")
        if names is None:
            self.rows.remarks.pop((type, key), None)

    def _insert(self, side: str, type: str, key: str) -> None:
        row = self.values(type, self.models[type].fields)
        if self.sides[side].insert(type, key, row) is not None:
            self.committed(side, "insert", type, key, row)

    def _delete(self, side: str, type: str, key: str) -> None:
        if self.sides[side].delete(type, key, self.met):
            self.committed(side, "delete", type, key, None)

    def met(self, type: str, key: str, read: Any, found: Any) -> None:
        """An editor put back what it had read over what somebody wrote meanwhile."""
        self.writes["docs overwrote what it had not seen"] += 1
        self.note(f"docs overwrote {type} {key}: {read} over {found}")
        self.models[type].reverted(key, "docs", read, found)

    def read(self, type: str) -> dict[str, dict[str, Any]]:
        """What all sides hold of a type, by side and key."""
        return {name: side.read(type) for name, side in self.sides.items()}

    def settle(self) -> None:
        """Look which writes have arrived everywhere."""
        for type, model in self.models.items():
            if not any(blocked[1] == type for blocked in self.blocked):
                model.settle(self.read(type))
