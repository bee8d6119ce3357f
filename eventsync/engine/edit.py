"""The edit: which change it makes, whether a user of the store makes it or it is found there.

This module is pure but for the clock: it makes changes from what a store holds of a record. It
knows nothing of how a store reads or writes, nor of transactions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, Op
from eventsync.engine.fingerprint import changed_since
from eventsync.engine.gate import UNVERSIONED, decide_one
from eventsync.errors import AlreadyExistsError, NotFoundError
from eventsync.index import Entry, Presence
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = ["Edit", "Editor", "known_of", "state_of"]


@dataclass(slots=True, frozen=True)
class Edit:
    """A local edit: what a user of the store wants to happen to one record.

    ``op`` is what was asked: ``add`` fails when the record is there, ``update`` when it is not,
    ``upsert`` never, ``remove`` when it is not. ``values``: the record's field values; ``None`` for
    ``remove``. ``touched``: the fields that an update is about, ``None`` for all of ``values``.
    """

    op: str
    key: str
    values: Mapping[str, Any] | None = None
    touched: frozenset[str] | None = None


@dataclass(slots=True, frozen=True)
class Editor:
    """Who makes the changes of one store's records: with its view, its clock and its name."""

    view: BoundView
    clock: Clock
    source: str

    def change_of(
        self, edit: Edit, entry: Entry | None, row: Mapping[str, Any] | None
    ) -> Change | None:
        """The change that a local edit makes, or ``None`` if it changes nothing.

        ``entry`` and ``row``: what the store holds of the record, ``None`` if nothing. Raises
        ``AlreadyExistsError``, ``NotFoundError``.
        """
        type, key = self.view.record_type, edit.key
        if edit.op == "add" and row is not None:
            raise AlreadyExistsError(
                f"{type.name} {key!r} is there already", hint="update it instead"
            )
        if edit.op in ("update", "remove") and row is None:
            raise NotFoundError(f"{type.name} {key!r} is not there")
        if edit.values is None:
            return self._new(key, DELETE, None, entry)
        held = {n: edit.values[n] for n in self.view.fields if n in edit.values}
        if row is None:
            return self._new(key, PUT, held, entry)
        touched = held.keys() if edit.touched is None else edit.touched
        changed = {
            n: v for n, v in held.items() if n in touched and (n not in row or not same(row[n], v))
        }
        if not changed:
            return None
        if type.rule == "record":
            return self._new(key, PUT, {**row, **changed}, entry)
        if entry is None:
            first = self._first(key, row)
            entry = decide_one(None, row, first, self.view).entry
            assert entry is not None
        change = self._new(key, PATCH, changed, entry)
        # What somebody else changed meanwhile has no version yet; capture will give it one.
        foreign = changed_since(entry, row, self.view)
        change.known = known_of(entry, row, self.view, [*changed, *foreign])
        return change

    def captured(
        self, key: str, entry: Entry | None, row: Mapping[str, Any] | None, *, forgets: bool
    ) -> Change | None:
        """The change that somebody made behind eventsync's back, or ``None`` if nobody did.

        ``forgets``: records may leave the store by themselves.
        """
        if row is None:
            if entry is None or entry.presence is not Presence.PRESENT or forgets:
                return None
            return self._new(key, DELETE, None, entry)
        if (entry is None or entry.presence is not Presence.PRESENT) and self._outside(row):
            return None
        if entry is None:
            return self._first(key, row)
        if entry.presence is not Presence.PRESENT:
            # Somebody put a record where eventsync had left none.
            return self._new(key, PUT, dict(row), entry)
        changed = changed_since(entry, row, self.view)
        if not changed:
            return None
        if self.view.record_type.rule == "record":
            return self._new(key, PUT, dict(row), entry)
        change = self._new(key, PATCH, changed, entry)
        change.known = known_of(entry, row, self.view, changed)
        return change

    def _outside(self, row: Mapping[str, Any]) -> bool:
        """Whether a row that eventsync did not put there is none of its records.

        An existing table may hold more than the view's filter lets in; that is left alone.
        """
        return self.view.judged <= self.view.names.keys() and not self.view.matches(row)

    def _first(self, key: str, row: Mapping[str, Any]) -> Change:
        """The first version of a record that the store held before eventsync knew it.

        Under the per-field rule a put would hide what other stores hold in other fields, so every
        field gets its own version above a put that is older than all others.
        """
        type = self.view.record_type
        if type.rule == "record":
            return self._new(key, PUT, dict(row), None)
        values = {n: held for n, held in row.items() if n not in type.keys}
        # No value is no edit either: where another store has one, it stays.
        nothing = {n: None for n, held in values.items() if held is None}
        values = {n: held for n, held in values.items() if held is not None}
        change = self._new(key, PATCH, values, None)
        change.known = BaseState(UNVERSIONED, nothing, {})
        return change

    def _new(self, key: str, op: Op, data: dict[str, Any] | None, entry: Entry | None) -> Change:
        """A change at a version above everything the store has seen of the record."""
        if entry is not None and entry.version:
            # The gate has let it in, so it counts, however far ahead it lies.
            self.clock.observe(Version(entry.version), max_drift=math.inf)
        return Change(
            type=self.view.record_type.name,
            key=key,
            op=op,
            version=self.clock.tick(),
            data=data,
            source=self.source,
            schema=self.view.record_type.schema,
        )


def known_of(
    entry: Entry, row: Mapping[str, Any], view: BoundView, changed: Iterable[str] = ()
) -> BaseState:
    """What a store holds beside the ``changed`` fields, with their versions."""
    left_out = {*view.record_type.keys, *changed}
    values = {n: held for n, held in row.items() if n not in left_out}
    versions = {n: v for n, v in entry.versions.items() if n in values}
    return BaseState(entry.stamp, values, versions)


def state_of(
    key: str, entry: Entry, row: Mapping[str, Any] | None, view: BoundView, source: str
) -> Change | None:
    """The whole state of a record as a change at its own version; ``None`` if it is not here."""
    type = view.record_type
    common: dict[str, Any] = {
        "type": type.name,
        "key": key,
        "source": source,
        "schema": type.schema,
    }
    if entry.presence is Presence.DELETED:
        return Change(op=DELETE, version=entry.stamp.version, data=None, **common)
    if entry.presence is not Presence.PRESENT or row is None:
        return None
    if type.rule == "record":
        # The digest stays that of the change as it was made, whatever the store made of it.
        return Change(
            op=PUT,
            version=entry.stamp.version,
            data=dict(row),
            digest=None if entry.echo is None else entry.stamp.digest,
            **common,
        )
    return Change(
        op=PATCH,
        version=Version(entry.version),
        data={},
        known=known_of(entry, row, view),
        **common,
    )
