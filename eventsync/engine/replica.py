"""The replica: applies, edits, captures and completes the records of one type in one store."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE
from eventsync.engine.accessor import Accessor
from eventsync.engine.edit import ChangeFactory, Edit
from eventsync.engine.fingerprint import fields_without_digest, fingerprint_of, unset_fields
from eventsync.engine.gate import (
    Decision,
    Verdict,
    decide,
    decide_one,
    decide_put_or_delete,
    lacks_fields,
)
from eventsync.engine.unit_of_work import UnitOfWork
from eventsync.errors import ChangeRefusedError, ConfigError, RecordError
from eventsync.index import Entry, Index, IndexTransaction, Presence
from eventsync.records.query import Query

__all__ = ["MOST_DELETES", "NO_MOMENTS", "Encode", "Replica"]

MOST_DELETES: Final = 10
"""So many records of a type may always be missing, whatever share of them that is."""

Encode = Callable[[Change], bytes]
"""A function that returns the envelope of a change."""

NO_MOMENTS: Final[Mapping[str, float | None]] = {}
"""The moments of foreign writes of which no moment is known."""

S = TypeVar("S", bound="Replica")
P = ParamSpec("P")
T = TypeVar("T")


def _until_done(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Decorate ``method``: call it again if a conflict undid its transaction.

    See ``Index.until_done``.
    """

    @wraps(method)
    def until_done(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.index.until_done(lambda: method(self, *args, **kwargs))

    return until_done


class Replica:
    """The records of one type in one store, with their versions.

    A replica uses an accessor, which reads and writes the data, and the version index of the store.
    Each method is one transaction of the index: data and entries are read and written under the
    same lock. Each transaction begins with ``recover``, which finishes or undoes the writes of a
    writer that died.

    ``source``: the name of the store, which is the origin of its changes.

    Derive a class if the transactions of a store need other steps, and set
    ``Accessor.replica_class`` to that class. It may override ``apply``, ``edit``, ``capture``,
    ``recover`` and ``envelopes``.
    """

    def __init__(self, accessor: Accessor[Any], index: Index, clock: Clock, source: str) -> None:
        self.accessor = accessor
        self.index = index
        self.type = accessor.type
        self.source = source
        self._lacking_mark = f"lacking/{self.type.name}"
        self._changes = ChangeFactory(accessor.view, clock, source)

    def with_index(self: S, index: Index) -> S:
        """Return a copy of this replica that uses ``index``.

        ``index``: an index whose transactions are part of a transaction of the caller.
        """
        other = copy.copy(self)
        other.index = index
        return other

    # -- apply -------------------------------------------------------------------------------------

    @_until_done
    def apply(self, batch: Mapping[str, Sequence[Change]]) -> dict[str, Sequence[Verdict]]:
        """Decide about changes with the gate, and write those that win. Return verdicts by key.

        ``batch``: the changes of each record, by key. Their values must have the types of the
        record type. Under the per-record rule, only the first change of each record is applied;
        pass the greatest.

        Idempotent. Raises ``ChangeRefusedError`` or ``RejectedError`` if a change cannot be
        applied, ``DependencyError`` if a record must wait for another one, and a retryable error if
        the store is unreachable. If the accessor is ``atomic``, nothing was written in these cases.
        """
        batch = self._in_order(batch)
        verdicts: dict[str, Sequence[Verdict]] = {}
        with self._begin() as work:
            if self.type.rule == "record":
                firsts = {key: changes[0] for key, changes in batch.items()}
                if self.accessor.plain and all(map(self.is_plain, firsts.values())):
                    verdicts = work.put_newer(firsts)
                    firsts = {key: one for key, one in firsts.items() if key not in verdicts}
                decisions = self._decide_per_record(work, firsts)
            else:
                entries = work.transaction.read(self.type.name, list(batch))
                if self.accessor.patchable:
                    verdicts = work.patch_newer(batch, entries)
                    batch = {key: batch[key] for key in batch if key not in verdicts}
                decisions = self._decide_per_field(work, batch, entries)
            work.perform(decisions)
        return verdicts | {key: decision.verdicts for key, decision in decisions.items()}

    def decide(
        self, work: UnitOfWork, batch: Mapping[str, Sequence[Change]]
    ) -> dict[str, Decision]:
        """Decide about changes as ``apply`` does, in the transaction of ``work``. Write nothing."""
        batch = self._in_order(batch)
        if self.type.rule == "record":
            firsts = {key: changes[0] for key, changes in batch.items()}
            return self._decide_per_record(work, firsts)
        return self._decide_per_field(
            work, batch, work.transaction.read(self.type.name, list(batch))
        )

    def _in_order(self, batch: Mapping[str, Sequence[Change]]) -> Mapping[str, Sequence[Change]]:
        # Atomic batches are sorted by key, so that neighbouring rows are read and written together.
        # Other batches may fail in the middle, so they keep the order in which the changes arrived.
        return {key: batch[key] for key in sorted(batch)} if self.accessor.atomic else batch

    def is_plain(self, change: Change) -> bool:
        """Return whether ``change`` can be applied by comparing versions only.

        A batch that contains only such changes is applied much faster.
        """
        return self.accessor.plain and (change.row is not None or change.op == DELETE)

    def _decide_per_record(
        self, work: UnitOfWork, changes: Mapping[str, Change]
    ) -> dict[str, Decision]:
        """Decide about one put or delete of each record.

        Reads stamps, but rows only for incomplete puts.
        """
        view = self.accessor.view
        stamps = work.transaction.stamps(self.type.name, list(changes)) if changes else {}
        lacking = [key for key in stamps if lacks_fields(changes[key], view)]
        entries, rows = (
            self.accessor.read_with_entries(lacking, work.transaction) if lacking else ({}, {})
        )
        return {
            key: decide_put_or_delete(
                stamps.get(key), change, view, entry=entries.get(key), row=rows.get(key)
            )
            for key, change in changes.items()
        }

    def _decide_per_field(
        self,
        work: UnitOfWork,
        batch: Mapping[str, Sequence[Change]],
        entries: Mapping[str, Entry],
    ) -> dict[str, Decision]:
        """Merge all changes of each record with the fields that the store holds."""
        rows = self.accessor.read_rows(list(batch), work.transaction)
        return {
            key: decide(entries.get(key), rows.get(key), changes, self.accessor.view, key)
            for key, changes in batch.items()
        }

    # -- edits and foreign writes ------------------------------------------------------------------

    @_until_done
    def edit(self, edits: Sequence[Edit], encode: Encode | None) -> None:
        """Make edits, each with a new version, and put their envelopes into the outbox.

        An edit that does not alter the record makes no change. ``encode``: makes the envelopes;
        ``None`` to publish nothing. If the accessor is ``atomic``, all edits are one transaction;
        otherwise each edit is a transaction. Raises ``AlreadyExistsError`` or ``NotFoundError`` as
        ``ChangeFactory.from_edit`` does, ``ConfigError`` if a record is edited twice, and the
        errors of the store. An edit that fails publishes nothing.
        """
        if not self.accessor.atomic and len(edits) > 1:
            for edit in edits:
                self.edit([edit], encode)
            return
        keys = list(dict.fromkeys(edit.key for edit in edits))
        with self._begin() as work:
            entries, rows = self.accessor.read_with_entries(keys, work.transaction)
            changes: list[Change] = []
            decisions: dict[str, Decision] = {}
            for edit in edits:
                if edit.key in decisions:
                    raise ConfigError(
                        f"{self.type.name} {edit.key!r} is edited twice in one call",
                        hint="pass each record only once",
                    )
                entry, row = entries.get(edit.key), rows.get(edit.key)
                change = self._changes.from_edit(edit, entry, row)
                if change is not None:
                    changes.append(change)
                    decisions[edit.key] = decide_one(entry, row, change, self.accessor.view)
            work.perform(decisions, self.envelopes(changes, encode))

    @_until_done
    def capture(
        self,
        keys: Sequence[str],
        encode: Encode | None,
        *,
        deletes: float = 1.0,
        moments: Mapping[str, float | None] = NO_MOMENTS,
    ) -> list[Change]:
        """Find the foreign writes to the records with these keys. Return them as changes.

        Each change gets a new version, and its envelope is put into the outbox (see ``encode`` in
        ``edit``). A foreign write is found by comparing the data with their fingerprint, so writes
        of eventsync itself are not captured. A record that no longer matches the view's filter is
        removed from this store; other data are not altered. Idempotent.

        ``deletes``: the greatest share of the known records that may be missing. If the store lacks
        more of them, missing records are not captured as deletes, because a store that was emptied
        or restored looks just like that. ``lacking`` is set then. With 1 every missing record
        is captured as a delete. ``moments``: when records were written, by key, in seconds since
        the epoch; without a moment, the write gets the version of now.
        """
        changes: list[Change] = []
        updated: dict[str, Entry] = {}
        leaving: dict[str, Decision] = {}
        view = self.accessor.view
        lacking = 0
        with self._begin() as work:
            entries, rows = self.accessor.read_with_entries(keys, work.transaction)
            missing = {
                key
                for key, entry in entries.items()
                if entry.presence is Presence.PRESENT and key not in rows
            }
            lacking = self._suspicious(len(missing), deletes)
            if lacking:
                keys = [key for key in keys if key not in missing]
            for key in dict.fromkeys(keys):
                entry, row = entries.get(key), rows.get(key)
                change = self._changes.from_foreign_write(
                    key,
                    entry,
                    row,
                    forgets=self.accessor.forgets,
                    moment=moments.get(key),
                )
                unset = {} if entry is None or row is None else unset_fields(entry, row, view)
                if change is None:
                    if entry is not None and row is not None and unset:
                        updated |= self._noted(key, entry, row, unset)
                    continue
                changes.append(change)
                decision = decide_one(entry, row, change, view)
                if decision.entry is None:
                    continue
                if row is not None and decision.remove:
                    leaving[key] = decision
                    continue
                updated[key] = decision.entry
                if row is not None and decision.entry.presence is Presence.PRESENT:
                    decision.entry.echo = fingerprint_of(decision.entry, row, view, unset=unset)
            # Removals must come first, because storing their intents commits at once.
            work.perform(leaving)
            work.transaction.write(self.type.name, updated)
            envelopes = self.envelopes(changes, encode)
            if envelopes:
                work.transaction.send(self.type.name, envelopes)
        if lacking:
            self.lacking = lacking
        return changes

    def _noted(
        self, key: str, entry: Entry, row: Mapping[str, Any], unset: Mapping[str, Any]
    ) -> dict[str, Entry]:
        """Return the entry, by key, with the digests of unset fields; ``{}`` if it has them.

        A later foreign write to one of these fields is then found, even if it sets a default.
        """
        if not fields_without_digest(entry, row, self.accessor.view):
            return {}
        echo = fingerprint_of(entry, row, self.accessor.view, unset=unset)
        return {key: replace(entry, echo=echo)}

    @_until_done
    def absent(self, keys: Sequence[str]) -> list[str]:
        """Return those of ``keys`` that the index calls present and the store does not hold.

        Changes nothing. Raises the error of a record that cannot be read.
        """
        with self._begin() as work:
            entries, rows = self.accessor.read_with_entries(keys, work.transaction)
        return [
            key
            for key, entry in entries.items()
            if entry.presence is Presence.PRESENT and key not in rows
        ]

    @_until_done
    def forget_missing(self, keys: Sequence[str], *, deletes: float) -> int:
        """Make an emptied store take its missing records again, and return how many.

        Forget the entries of those of ``keys`` that are missing, if the store lacks more records
        than ``deletes`` allows (see ``capture``). Changes that carry these records then count as
        new. Otherwise they are duplicates, because the index says so. Do nothing
        if the store lacks few records: those were deleted there. Idempotent.
        """
        with self._begin() as work:
            entries, rows = self.accessor.read_with_entries(keys, work.transaction)
            missing = [
                key
                for key, entry in entries.items()
                if entry.presence is Presence.PRESENT and key not in rows
            ]
            lacking = self._suspicious(len(missing), deletes)
            if not lacking:
                return 0
            work.transaction.forget(self.type.name, missing)
        self.lacking = lacking
        return len(missing)

    @property
    def lacking(self) -> int:
        """How many records the store lacked when it was found to lack too many; 0 if it does not.

        Stored in the index, and kept until no record is missing or somebody allows the deletes.
        Meanwhile it counts as the number of missing records: changes that are applied fill the
        store again, and the rest of the missing records would no longer look suspicious.
        """
        return int(self.index.load_mark(self._lacking_mark) or 0)

    @lacking.setter
    def lacking(self, missing: int) -> None:
        if missing != self.lacking:
            self.index.save_mark(self._lacking_mark, str(missing) if missing else "")

    def allowed_deletes(self, deletes: float) -> float:
        """Return how many records may be missing at a share of ``deletes`` of the known ones."""
        known = self.index.counts(self.type.name)[Presence.PRESENT]
        return math.inf if deletes >= 1.0 else max(MOST_DELETES, deletes * known)

    def _suspicious(self, missing: int, deletes: float) -> int:
        """Return how many records the store lacks if these are too many, else 0.

        ``missing``: how many of the records that were read are missing. The store may lack others
        that were not read, so its records are counted.
        """
        if not missing or self.accessor.forgets or deletes >= 1.0:
            return 0
        allowed = self.allowed_deletes(deletes)
        missing = max(missing, self.lacking)
        if missing <= allowed:
            known = self.index.counts(self.type.name)[Presence.PRESENT]
            missing = max(missing, known - self.count())
        return missing if missing > allowed else 0

    def count(self) -> int:
        """Return how many records the store holds, unreadable ones included."""
        unreadable: list[RecordError] = []
        query = Query.parse(self.type, None, unreadable=unreadable.append)
        return self.accessor.count(query) + len(unreadable)

    def envelopes(self, changes: Sequence[Change], encode: Encode | None) -> list[bytes]:
        """Return the envelopes of ``changes`` for the outbox; none if ``encode`` is ``None``."""
        return [] if encode is None else [encode(change) for change in changes]

    # -- whole records -----------------------------------------------------------------------------

    @_until_done
    def states(self, keys: Sequence[str]) -> list[Change]:
        """Return records as changes with their current versions, to copy them to other stores.

        Each change contains all fields that the store holds; a deleted record becomes a delete.
        Records that are unknown, filtered out or pending are left out.
        """
        with self._begin() as work:
            entries = work.transaction.read(self.type.name, keys)
            present = [key for key, entry in entries.items() if entry.presence is Presence.PRESENT]
            rows = self.accessor.read_rows(present, work.transaction)
        changes = [
            self._changes.from_state(key, entry, rows.get(key)) for key, entry in entries.items()
        ]
        return [change for change in changes if change is not None]

    @_until_done
    def complete(self, states: Mapping[str, Sequence[Change]]) -> int:
        """Complete pending records with the values of other stores. Return how many were completed.

        ``states``: for each key, the changes that ``Replica.states`` of the other stores returned.
        A field that no store holds gets its default. A record stays pending if one of these fields
        has no default. Idempotent.
        """
        with self._begin() as work:
            entries, rows = self.accessor.read_with_entries(list(states), work.transaction)
            decisions = {}
            for key, changes in states.items():
                entry = entries.get(key)
                if entry is None or entry.presence is not Presence.PENDING:
                    continue
                try:
                    decision = decide(
                        entry, rows.get(key), changes, self.accessor.view, key, final=True
                    )
                except ChangeRefusedError:
                    continue  # a field has no value and no default
                assert decision.entry is not None
                if decision.entry.presence is not Presence.PENDING:
                    decisions[key] = decision
            work.perform(decisions)
        return len(decisions)

    # -- transactions ------------------------------------------------------------------------------

    def recover(self, transaction: IndexTransaction) -> None:
        """Finish or undo the writes of a writer that died.

        ``transaction``: an open transaction, which holds the lock of the index.
        """
        UnitOfWork(self.accessor, transaction).recover()

    @contextmanager
    def _begin(self) -> Iterator[UnitOfWork]:
        """Begin a transaction and call ``recover``. Commit when the block ends without an error."""
        with self.index.transaction() as transaction:
            self.recover(transaction)
            yield UnitOfWork(self.accessor, transaction)
