"""The step: what was decided about records, performed in one transaction of their index.

It owns the order in which intents, data and entries are written, the shorter ways for what is only
newer, and what becomes of a step that was left half done. It knows nothing of how a store reads or
writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from eventsync.changes.change import Change, stamps
from eventsync.changes.stamp import DELETE, PUT
from eventsync.engine.fingerprint import echo_of, echo_of_fields, echoes_with
from eventsync.engine.gate import APPLIED, Decision, Outcome, Verdict, decide_patches
from eventsync.engine.write import Puts, Write
from eventsync.errors import RecordError, RejectedError, StoreUnavailableError
from eventsync.index import Entry, IndexTransaction, Intent, Presence
from eventsync.values import packing

if TYPE_CHECKING:
    from eventsync.engine.accessor import Accessor

__all__ = ["UnitOfWork"]

_APPLIED: Final = (APPLIED,)


class UnitOfWork:
    """One transaction of the index, in which records of one accessor are read and written.

    For one thread, and under the index's lock.
    """

    def __init__(self, accessor: Accessor[Any], transaction: IndexTransaction) -> None:
        self.accessor = accessor
        self.transaction = transaction

    def recover(self) -> None:
        """Finish or undo what a writer that died left half done."""
        name, transaction = self.accessor.type.name, self.transaction
        intents = transaction.open_intents(name)
        if not intents:
            return
        rows, unreadable = self._readable(list(intents))
        done = {}
        for key, intent in intents.items():
            row = rows.get(key)
            if key in unreadable:
                continue  # nobody can tell; the change comes again, and is refused by itself
            if (None if row is None else packing.digest(row)) == intent.digest:
                if row is not None and intent.entry.presence is Presence.PRESENT:
                    intent.entry.echo = echo_of(intent.entry, row, self.accessor.view)
                done[key] = intent.entry
        transaction.write(name, done)
        transaction.settle(name, list(intents), send=True)

    def put_newer(
        self, changes: Sequence[Change], keys: Sequence[str]
    ) -> dict[str, Sequence[Verdict]]:
        """Make of whole records and deletes those take effect that are newer than what is held.

        What ``decide_put_or_delete`` and ``perform`` come to where there is nothing else to decide
        or to note. The others are left for them, such as do without any verdict.
        """
        won = self.transaction.claim(self.accessor.type.name, keys, stamps(changes))
        if len(won) < len(keys):
            changes = [change for change in changes if change.key in won]
        removals = [change.key for change in changes if change.op == DELETE]
        puts = [change for change in changes if change.op == PUT] if removals else changes
        if changes:
            self.accessor.write_rows(Puts(puts), removals, self.transaction)
        return dict.fromkeys(won, _APPLIED)

    def patch_newer(
        self, batch: Mapping[str, Sequence[Change]], entries: Mapping[str, Entry]
    ) -> dict[str, Sequence[Verdict]]:
        """Write the patches that are newer in all their fields than what is held of a record.

        What ``decide`` and ``perform`` come to with these. The others are left for them, such as
        do without any verdict.
        """
        decided = {
            key: decision
            for key, entry in entries.items()
            if (decision := decide_patches(entry, batch[key], self.accessor.view)) is not None
        }
        if not decided:
            return {}
        echoes = echoes_with(
            [entries[key].echo for key in decided],
            self.accessor.view.fields,
            [decision.write or {} for decision in decided.values()],
        )
        patched: dict[str, Entry] = {}
        writes: list[Write] = []
        for (key, decision), echo in zip(decided.items(), echoes, strict=True):
            if echo is not None and decision.entry is not None and decision.write is not None:
                decision.entry.echo = echo
                patched[key] = decision.entry
                writes.append(Write(key, decision.write, whole=False))
        here = self.accessor.update_rows(writes, self.transaction)
        if len(here) < len(patched):
            patched = {key: patched[key] for key in here}
        self.transaction.write(self.accessor.type.name, patched)
        return {key: decided[key].verdicts for key in patched}

    def _readable(self, keys: Sequence[str]) -> tuple[dict[str, Mapping[str, Any]], set[str]]:
        """As ``read_rows``, and the keys of which the row cannot be read."""
        try:
            return self.accessor.read_rows(keys, self.transaction), set()
        except (RecordError, RejectedError):
            if len(keys) == 1:
                return {}, set(keys)
        rows: dict[str, Mapping[str, Any]] = {}
        unreadable: set[str] = set()
        for key in keys:
            row, without = self._readable([key])
            rows |= row
            unreadable |= without
        return rows, unreadable

    def hold_back(self, decisions: dict[str, Decision]) -> None:
        """Leave the records as they are that wait for others."""
        rows = {
            key: d.write if d.row is None else {**d.row, **d.write}
            for key, d in decisions.items()
            if d.write is not None
        }
        removals = [key for key, d in decisions.items() if d.remove]
        for key, error in self.accessor.waiting(rows, removals, self.transaction).items():
            verdict = Verdict(Outcome.HELD, error=error)
            decisions[key] = Decision([verdict] * len(decisions[key].verdicts))

    def perform(self, decisions: Mapping[str, Decision], bodies: Sequence[bytes] = ()) -> None:
        """Write what was decided: intents, data, entries, in this order.

        ``bodies``: envelopes that are to be sent once it is written.
        """
        name, transaction = self.accessor.type.name, self.transaction
        entries: dict[str, Entry] = {}
        writes: list[Write] = []
        removals: list[str] = []
        for key, decision in decisions.items():
            if decision.entry is not None:
                entries[key] = decision.entry
            if decision.write is not None:
                writes.append(Write(key, decision.write, decision.row is None))
            if decision.remove:
                removals.append(key)
        if not entries:
            return
        intents = self._intents(decisions) if transaction.intents else {}
        transaction.intend(name, intents, bodies)
        try:
            if writes or removals:
                self.accessor.write_rows(writes, removals, transaction)
        except Exception as error:
            # What may have been written all the same stays open: who comes next looks.
            unsure = isinstance(error, StoreUnavailableError) and error.uncertain
            if not unsure and (self.accessor.atomic or len(decisions) == 1):
                # Nothing was written, so nothing of it is to be sent or finished.
                transaction.settle(name, list(decisions), send=False)
                transaction.keep()
            raise
        self._note_echoes(decisions)
        transaction.write(name, entries)

    def _intents(self, decisions: Mapping[str, Decision]) -> dict[str, Intent]:
        intents = {}
        for key, decision in decisions.items():
            if decision.entry is None:
                continue
            digest = None
            if decision.write is not None:
                held = {**(decision.row or {}), **decision.write}
                digest = packing.digest(
                    {n: held[n] for n in self.accessor.view.fields if n in held}
                )
            elif decision.row is not None and not decision.remove:
                digest = packing.digest(decision.row)
            intents[key] = Intent(decision.entry, digest)
        return intents

    def _note_echoes(self, decisions: Mapping[str, Decision]) -> None:
        """Note how what was written looks in the store, which may keep it in a form of its own."""
        writes = {key: d.write for key, d in decisions.items() if d.write is not None}
        altered = self.accessor.read_back(writes, self.transaction) if writes else {}
        by_field, verbatim = self.accessor.type.rule == "field", self.accessor.verbatim
        here = Presence.PRESENT
        for key, decision in decisions.items():
            entry = decision.entry
            if entry is None or entry.presence is not here:
                continue
            if verbatim and not by_field and not decision.altered and key not in altered:
                continue  # the row is the body of the stamp
            row = altered.get(key)
            if row is None:
                held = {**(decision.row or {}), **(decision.write or {})}
                row = {n: held[n] for n in self.accessor.view.fields if n in held}
            if by_field:
                entry.echo = echo_of_fields(
                    entry.echo, row, seen=decision.row or {}, written=decision.write or {}
                )
            elif verbatim or key in altered:
                entry.echo = echo_of(entry, row, self.accessor.view)
            else:
                entry.echo = packing.digest(row)
