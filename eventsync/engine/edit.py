"""Changes made in a store: from edits, from foreign writes, and from whole records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, Op
from eventsync.engine.fingerprint import changed_fields, unset_fields, without_new_fields
from eventsync.engine.gate import UNVERSIONED, decide_one
from eventsync.errors import (
    AlreadyExistsError,
    ChangeRefusedError,
    ClockDriftError,
    NotFoundError,
)
from eventsync.index import Entry, Presence
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = ["ChangeFactory", "Edit"]


@dataclass(slots=True, frozen=True)
class Edit:
    """A request of a program to change one record.

    - ``op``: ``add`` fails if the record exists. ``update`` and ``remove`` fail if the record does
      not exist. ``upsert`` adds or updates the record.
    - ``key``: the canonical key of the record.
    - ``values``: the record's field values; ``None`` for ``remove``.
    - ``touched``: the names of the fields that the program changed; ``None`` for all in ``values``.
    """

    op: str
    key: str
    values: Mapping[str, Any] | None = None
    touched: frozenset[str] | None = None


@dataclass(slots=True, frozen=True)
class ChangeFactory:
    """Makes changes for the records of one type in one store.

    ``view``: the store's view of the record type. ``clock``: issues the versions of the changes.
    ``source``: the name of the store, which is the origin of the changes.
    """

    view: BoundView
    clock: Clock
    source: str

    def from_edit(
        self, edit: Edit, entry: Entry | None, row: Mapping[str, Any] | None
    ) -> Change | None:
        """Return ``edit`` as a change with a new version, or ``None`` if it would change nothing.

        ``entry``: the record's index entry; ``None`` if there is none. ``row``: the field values
        that the store holds; ``None`` if it does not hold the record. Raises ``AlreadyExistsError``
        if ``add`` finds a record, and ``NotFoundError`` if ``update`` or ``remove`` finds none.
        """
        type, key = self.view.record_type, edit.key
        if edit.op == "add" and row is not None:
            raise AlreadyExistsError(
                f"{type.name} {key!r} cannot be added, because the record exists already",
                hint="update the record instead",
            )
        if edit.op in ("update", "remove") and row is None:
            raise NotFoundError(f"{type.name} {key!r} does not exist in store {self.source!r}")
        if edit.values is None:
            return self._new(key, DELETE, None, entry)
        values = {n: edit.values[n] for n in self.view.fields if n in edit.values}
        if row is None:
            return self._new(key, PUT, values, entry)
        touched = values.keys() if edit.touched is None else edit.touched
        changed = {
            n: v
            for n, v in values.items()
            if n in touched and (n not in row or not same(row[n], v))
        }
        if not changed:
            return None
        if type.rule == "record":
            # A field that is only filled in has no value, so that no store takes it for one.
            held = None if entry is None else without_new_fields(entry, row, self.view)
            return self._new(key, PUT, {**(held or row), **changed}, entry)
        if entry is None:
            first = self._first(key, row)
            entry = decide_one(None, row, first, self.view).entry
            assert entry is not None
        change = self._new(key, PATCH, changed, entry)
        # Foreign writes since the last capture have no version yet, so they cannot be part of the
        # base state. The next capture gives them a version.
        foreign = changed_fields(entry, row, self.view)
        change.known = self._base_state(entry, row, without=[*changed, *foreign])
        return change

    def from_foreign_write(
        self,
        key: str,
        entry: Entry | None,
        row: Mapping[str, Any] | None,
        *,
        forgets: bool,
        moment: float | None = None,
    ) -> Change | None:
        """Return a foreign write as a change with a new version; ``None`` if there is none.

        ``entry`` and ``row``: as in ``from_edit``; a foreign write is a difference between these
        two. ``forgets``: whether records may expire in the store. A missing record is then not a
        delete. ``moment``: when the write was committed, in seconds since the epoch; ``None`` if
        that is unknown, and the version is that of now.
        """
        if row is None:
            if entry is None or entry.presence is not Presence.PRESENT or forgets:
                return None
            return self._new(key, DELETE, None, entry, moment)
        if (entry is None or entry.presence is not Presence.PRESENT) and self._is_outside(row):
            return None
        if entry is None:
            return self._first(key, row, moment)
        if entry.presence is not Presence.PRESENT:
            # The store did not hold the record at the last write of eventsync, and holds it now.
            return self._new(key, PUT, dict(row), entry, moment)
        changed = changed_fields(entry, row, self.view)
        if not changed:
            return None
        if self.view.record_type.rule == "record":
            return self._new(key, PUT, dict(row), entry, moment)
        change = self._new(key, PATCH, changed, entry, moment)
        change.known = self._base_state(entry, row, without=changed)
        return change

    def from_state(self, key: str, entry: Entry, row: Mapping[str, Any] | None) -> Change | None:
        """Return a record as a change that contains all its fields, with its current version.

        ``entry``: the record's index entry. ``row``: the field values that the store holds;
        ``None`` if it does not hold the record. Returns a delete if the record is deleted. Returns
        ``None`` if the record is filtered out, pending or missing in the store.
        """
        type = self.view.record_type
        common: dict[str, Any] = {
            "type": type.name,
            "key": key,
            "source": self.source,
            "schema": type.schema,
        }
        if entry.presence is Presence.DELETED:
            return Change(op=DELETE, version=entry.stamp.version, data=None, **common)
        if entry.presence is not Presence.PRESENT or row is None:
            return None
        if type.rule == "record":
            # The store may have altered the values, but the change must keep the record's stamp.
            # Therefore it leaves out fields that are newer than the record's put.
            written = without_new_fields(entry, row, self.view) or row
            return Change(
                op=PUT,
                version=entry.stamp.version,
                data=dict(written),
                digest=None if entry.echo is None else entry.stamp.digest,
                **common,
            )
        return Change(
            op=PATCH,
            version=Version(entry.version),
            data={},
            known=self._base_state(entry, row),
            **common,
        )

    def _is_outside(self, row: Mapping[str, Any]) -> bool:
        """Return whether the view's filter excludes ``row``, which eventsync did not write.

        An existing table may contain rows that do not match the filter. Capture ignores such rows.
        """
        return self.view.judged <= self.view.names.keys() and not self.view.matches(row)

    def _first(self, key: str, row: Mapping[str, Any], moment: float | None = None) -> Change:
        """Return the first change of a record that the store held before eventsync knew it.

        Under the per-record rule, the change is a put of the row. Under the per-field rule, a put
        would erase the fields that other stores hold and this store lacks. Therefore the change is
        a patch of all non-empty fields, with a base state whose stamp is smaller than all others.
        """
        type = self.view.record_type
        if type.rule == "record":
            return self._new(key, PUT, dict(row), None, moment)
        values = {n: value for n, value in row.items() if n not in type.keys}
        # An empty field must not override a value that another store has.
        empty = {n: None for n, value in values.items() if value is None}
        values = {n: value for n, value in values.items() if value is not None}
        change = self._new(key, PATCH, values, None, moment)
        change.known = BaseState(UNVERSIONED, empty, {})
        return change

    def _new(
        self,
        key: str,
        op: Op,
        data: dict[str, Any] | None,
        entry: Entry | None,
        moment: float | None = None,
    ) -> Change:
        """Return a change with a new version, greater than every version in ``entry``.

        ``moment``: when the change was made, in seconds since the epoch; ``None`` for now.
        Raises ``ChangeRefusedError`` if a version in ``entry`` lies too far in the future.
        """
        known = b"" if entry is None else entry.version
        if known:
            self._observe(key, Version(known))
        return Change(
            type=self.view.record_type.name,
            key=key,
            op=op,
            version=self.clock.tick() if moment is None else self.clock.at(moment, after=known),
            data=data,
            source=self.source,
            schema=self.view.record_type.schema,
        )

    def _observe(self, key: str, version: Version) -> None:
        """Advance the clock beyond ``version``, the greatest that the store has of the record.

        Raises ``ChangeRefusedError`` if ``version`` lies too far in the future. The store accepted
        it while a clock was wrong. A greater version would win here, but the other stores would
        refuse it, and with it every later change from this clock.
        """
        try:
            self.clock.observe(version)
        except ClockDriftError as error:
            raise ChangeRefusedError(
                f"{self.view.record_type.name} {key!r} cannot be changed in store "
                f"{self.source!r} now: its stored {error.message}",
                reason=error.reason,
                hint="correct the system clock of this machine if it is slow; otherwise the record "
                "can be changed when the time of that version has come",
            ) from error

    def _base_state(
        self, entry: Entry, row: Mapping[str, Any], *, without: Iterable[str] = ()
    ) -> BaseState:
        """Return the base state for a patch: the values and the versions that the store holds.

        ``without``: the names of the fields to leave out. Key fields and unset fields are always
        left out.
        """
        left_out = {*self.view.record_type.keys, *without, *unset_fields(entry, row, self.view)}
        values = {n: value for n, value in row.items() if n not in left_out}
        versions = {n: v for n, v in entry.versions.items() if n in values}
        return BaseState(entry.stamp, values, versions)
