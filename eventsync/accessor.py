"""The accessor: how one store reads and writes the records of one type.

It owns the contract that a new kind of store fulfils, and what every accessor gets from it: the
version gate, batch apply, local edits and the capture of edits made behind eventsync's back. It
knows nothing of queues, envelopes on the wire or of other stores.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

from eventsync import value
from eventsync.change import DELETE, PATCH, PUT, Change, Known
from eventsync.clock import Clock, Version
from eventsync.errors import (
    AlreadyExistsError,
    ChangeRefusedError,
    ConfigError,
    DependencyError,
    NotFoundError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.gate import UNVERSIONED, Decision, Outcome, Verdict, decide, decide_put_or_delete
from eventsync.index import Entry, Index, IndexTransaction, Intent, Presence
from eventsync.query import Query
from eventsync.record import Record
from eventsync.schema import same
from eventsync.view import View

__all__ = ["Accessor", "Edit", "Write"]

R = TypeVar("R", bound=Record)
A = TypeVar("A", bound="Accessor[Any]")
P = ParamSpec("P")
T = TypeVar("T")


def _until_done(method: Callable[Concatenate[A, P], T]) -> Callable[Concatenate[A, P], T]:
    """For a method that is one transaction of the index: see ``Index.until_done``."""

    @wraps(method)
    def until_done(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.index.until_done(lambda: method(self, *args, **kwargs))

    return until_done


@dataclass(slots=True, frozen=True)
class Write:
    """Field values to write to one record.

    ``whole``: ``values`` are all fields the store holds, so the record can be added if it is not
    there; otherwise they are the changed ones of a record that is.
    """

    key: str
    values: Mapping[str, Any]
    whole: bool


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


class Accessor(ABC, Generic[R]):
    """Reads and writes the records of one type in one store.

    To write one for a new kind of store, extend ``add``, ``update``, ``get``, ``find``, ``count``
    and ``remove``; override ``record_to_data`` and ``data_to_record`` if your store's records are
    not dicts. Everything else works from these. Override ``read_rows`` and ``write_rows`` where the
    store can do many at once.

    The six are called by one thread at a time in each process, under the index's lock when they
    write. Raise ``RejectedError`` for a record that the store will never take, and
    ``StoreUnavailableError`` (or any ``OSError``) for what may work later.
    """

    atomic: ClassVar[bool] = False
    """Whether ``write_rows`` takes effect whole or not at all, even if the process dies in it."""

    def __init__(self, record_type: type[R], *, view: View | None = None) -> None:
        self.record_class = record_type
        self.type = record_type.__record__
        self.view = (view or View()).bind(self.type)
        self.forgets = False
        """Whether records may leave the store by themselves (they expire), so that one which is not
        there any more was not deleted."""
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The version index that this accessor's records are in; the store provides it."""
        if self._index is None:
            raise ConfigError(
                f"the accessor of {self.type.name} is not part of a store yet",
                hint="pass it to Store(...)",
            )
        return self._index

    def bind(self, index: Index) -> None:
        """Become part of a store whose version index is ``index``. Called by ``Store``."""
        self._index = index

    def joined(self, index: Index) -> Accessor[R]:
        """This accessor with another index: for a transaction of the caller's."""
        joined = copy.copy(self)
        joined._index = index
        return joined

    # -- what a new kind of store implements ------------------------------------------------

    @abstractmethod
    def add(self, record: R) -> None:
        """Write a record that is not there. May overwrite one that is."""

    @abstractmethod
    def update(self, record: R) -> None:
        """Write ``record.dirty``, the changed fields (or all fields) of a record that is there."""

    @abstractmethod
    def get(self, key: str) -> R | None:
        """The record of that key, or ``None``. ``self.type.key_values(key)`` gives its parts."""

    @abstractmethod
    def find(self, query: Query) -> Iterable[R]:
        """The records that match, sorted and sliced; ``query.select`` does it in Python."""

    def count(self, query: Query) -> int:
        """How many records match."""
        return sum(1 for _ in self.find(query))

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the record of that key. Idempotent."""

    def record_to_data(self, record: R) -> Any:
        """What the store keeps for ``record``: by default a dict by the store's own names.

        The view's constants are in it for a record that is whole.
        """
        return dict(self.view.constant) | self.view.to_store(record.raw())

    def data_to_record(self, data: Any) -> R:
        """The record that the store's ``data`` hold; the inverse of ``record_to_data``.

        An optional field that the store holds, but of which ``data`` say nothing, is ``None``.
        """
        values = self.view.to_record(data)
        for name in self.view.optional:
            values.setdefault(name, None)
        return self.make(values)

    # -- what a store overrides if it can do many at once --------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        """The field values of those of ``keys`` that are in the store."""
        found = {}
        for key in keys:
            record = self.get(key)
            if record is not None:
                found[key] = record.raw()
        return found

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        """Write and remove records. Idempotent: the same call again leaves the same data."""
        for write in writes:
            record = self.get(write.key)
            if record is not None:
                for name, held in write.values.items():
                    record[name] = held
                if record.is_dirty:
                    self.update(record)
            elif write.whole:
                self.add(self.make(write.values))
            else:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} vanished while it was being updated"
                )
        for key in removals:
            self.remove(key)

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        """The rows just written, as the store gives them back.

        A row may be left out when it is known to read back as the very values that were written.
        """
        return self.read_rows(list(writes), transaction)

    @property
    def verbatim(self) -> bool:
        """Whether a row that ``read_back`` leaves out has the very form in which it was written.

        Otherwise its values are equal, but decimals may have other zeros at their end.
        """
        return True

    def default_index(self) -> Index:
        """The version index to use when the store is given none."""
        raise ConfigError(
            f"the store of {self.type.name} needs a version index",
            hint='pass one: Store(..., index=FileIndex("versions.db"))',
        )

    def depends_on(self, other: Accessor[Any]) -> bool:
        """Whether records here may refer to some of ``other``, which then have to be there first.

        The store refuses what comes too early with ``DependencyError``.
        """
        return False

    def waiting(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        removals: Sequence[str],
        transaction: IndexTransaction,
    ) -> Mapping[str, DependencyError]:
        """Which of these records cannot be written or removed yet, and for what each waits.

        ``rows``: what each record would hold. Asked when ``write_rows`` has refused them with
        ``DependencyError``. What the store cannot tell may be left out; it is found one by one.
        """
        return {}

    def ensure(self) -> None:
        """Create what the accessor needs in its store (a folder, a table). Idempotent."""

    def ping(self) -> None:
        """Raise ``StoreUnavailableError`` or ``ConfigError`` unless the store can be used now."""

    def close(self) -> None:
        """Let go of connections and files. Idempotent."""

    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        """The keys of all records that may have changed since ``mark``, and the mark for next time.

        ``mark``: what the last call gave, empty at first, for all records. ``unreadable`` as in a
        query. ``None``: the store cannot tell. Deletes need not be among them.
        """
        return None

    # -- what every accessor gets ----------------------------------------------------------------

    def make(self, values: Mapping[str, Any]) -> R:
        """A record of these values, which may be some of its fields only."""
        return self.record_class.load(values, partial=True)

    def read(self, data: Iterable[Any], query: Query) -> Iterator[R]:
        """The records that the store's ``data`` hold, for ``find`` to select from.

        What does not fit its fields raises ``FieldError``, or is told to ``query.unreadable``.
        """
        for held in data:
            try:
                yield self.data_to_record(held)
            except RecordError as error:
                if query.unreadable is None:
                    raise
                query.unreadable(error)

    @_until_done
    def apply(
        self, batch: Mapping[str, Sequence[Change]], *, hold: bool = False
    ) -> dict[str, list[Verdict]]:
        """Pass changes through the version gate and write the winners, in one transaction.

        ``batch``: the changes of each record by its key, their values as the record type has them;
        under the per-record rule only the greatest of each. ``hold``: leave out the records that
        are ``waiting`` for others. Idempotent. Raises ``ChangeRefusedError`` or ``RejectedError``
        if any change cannot be applied, with nothing written where the store is transactional;
        retryable errors likewise.
        """
        name = self.type.name
        with self.index.transaction() as transaction:
            self.recover(transaction)
            keys = list(batch)
            if self.type.rule == "record":
                stamps = transaction.stamps(name, keys)
                decisions = {
                    key: decide_put_or_delete(stamps.get(key), changes[0], self.view)
                    for key, changes in batch.items()
                }
            else:
                entries = transaction.read(name, keys)
                rows = self.read_rows(keys, transaction)
                decisions = {
                    key: decide(entries.get(key), rows.get(key), changes, self.view, key)
                    for key, changes in batch.items()
                }
            if hold:
                self._hold_back(decisions, transaction)
            self._perform(decisions, transaction)
        return {key: decision.verdicts for key, decision in decisions.items()}

    @_until_done
    def edit(
        self,
        edits: Sequence[Edit],
        clock: Clock,
        source: str,
        encode: Callable[[Change], bytes] | None,
    ) -> list[Change]:
        """Make local edits, each at a fresh version, and queue their envelopes, in one transaction.

        ``encode`` makes an envelope for the outbox; without it nothing is published. Returns the
        changes; an edit that changes nothing makes none. Where the store is not ``atomic`` each
        edit is its own transaction. Raises ``AlreadyExistsError``, ``NotFoundError``, and what the
        store raises; an edit that failed publishes nothing.
        """
        if not self.atomic and len(edits) > 1:
            return [change for edit in edits for change in self.edit([edit], clock, source, encode)]
        changes: list[Change] = []
        name = self.type.name
        with self.index.transaction() as transaction:
            self.recover(transaction)
            keys = list(dict.fromkeys(edit.key for edit in edits))
            entries = transaction.read(name, keys)
            rows = self.read_rows(keys, transaction)
            decisions: dict[str, Decision] = {}
            for edit in edits:
                if edit.key in decisions:
                    raise ConfigError(f"{name} {edit.key!r} is edited twice in one call")
                entry, row = entries.get(edit.key), rows.get(edit.key)
                change = self._change_of(edit, entry, row, clock, source)
                if change is not None:
                    changes.append(change)
                    decisions[edit.key] = self._decide(entry, row, change)
            bodies = [encode(change) for change in changes] if encode else []
            self._perform(decisions, transaction, bodies)
        return changes

    @_until_done
    def capture(
        self,
        keys: Sequence[str],
        clock: Clock,
        source: str,
        encode: Callable[[Change], bytes] | None,
    ) -> list[Change]:
        """Give a version to every edit of ``keys`` that was made behind eventsync's back.

        Compares what the store holds with the echo of what eventsync last wrote there, so its own
        writes are never taken for edits. The data stay as they are, except that a record which was
        edited so that it no longer matches the view's filter leaves the store. Idempotent.
        """
        name = self.type.name
        changes: list[Change] = []
        with self.index.transaction() as transaction:
            self.recover(transaction)
            entries = transaction.read(name, keys)
            rows = self.read_rows(keys, transaction)
            updated: dict[str, Entry] = {}
            leaving: dict[str, Decision] = {}
            for key in dict.fromkeys(keys):
                entry, row = entries.get(key), rows.get(key)
                change = self._captured(key, entry, row, clock, source)
                if change is None:
                    continue
                changes.append(change)
                decision = self._decide(entry, row, change)
                if decision.entry is None:
                    continue
                if row is not None and decision.remove:
                    leaving[key] = decision
                    continue
                updated[key] = decision.entry
                if row is not None and decision.entry.presence is Presence.HERE:
                    decision.entry.echo = self._echo(decision.entry, row)
            # First, for it commits its intents at once, and nothing else may be half done then.
            self._perform(leaving, transaction)
            transaction.write(name, updated)
            if encode and changes:
                transaction.send(name, [encode(change) for change in changes])
        return changes

    @_until_done
    def states(self, keys: Sequence[str], source: str) -> list[Change]:
        """The whole state of each record as a change at its own version: to copy it elsewhere.

        Records that the store knows only from afar (filtered out, pending) are left out.
        """
        name = self.type.name
        with self.index.transaction() as transaction:
            self.recover(transaction)
            entries = transaction.read(name, keys)
            here = [k for k, entry in entries.items() if entry.presence is Presence.HERE]
            rows = self.read_rows(here, transaction)
        changes = []
        for key, entry in entries.items():
            change = self._state(key, entry, rows.get(key), source)
            if change is not None:
                changes.append(change)
        return changes

    @_until_done
    def complete(self, states: Mapping[str, Sequence[Change]]) -> int:
        """Write pending records with what other stores know of them; how many became whole.

        ``states``: by key, what each other store knows (``states``). What none of them knows has no
        value and takes its default. Idempotent.
        """
        name = self.type.name
        with self.index.transaction() as transaction:
            self.recover(transaction)
            keys = list(states)
            entries = transaction.read(name, keys)
            rows = self.read_rows(keys, transaction)
            decisions = {}
            for key, changes in states.items():
                entry = entries.get(key)
                if entry is None or entry.presence is not Presence.PENDING:
                    continue
                try:
                    decision = decide(entry, rows.get(key), changes, self.view, key, final=True)
                except ChangeRefusedError:
                    continue  # a field without value and default: it goes on pending, and shows
                assert decision.entry is not None
                if decision.entry.presence is not Presence.PENDING:
                    decisions[key] = decision
            self._perform(decisions, transaction)
        return len(decisions)

    def recover(self, transaction: IndexTransaction) -> None:
        """Finish or undo what a writer that died left half done. Called under the index's lock."""
        name = self.type.name
        intents = transaction.open_intents(name)
        if not intents:
            return
        rows, unreadable = self._readable(list(intents), transaction)
        done = {}
        for key, intent in intents.items():
            row = rows.get(key)
            if key in unreadable:
                continue  # nobody can tell; the change comes again, and is refused by itself
            if (None if row is None else value.digest(row)) == intent.digest:
                if row is not None and intent.entry.presence is Presence.HERE:
                    intent.entry.echo = self._echo(intent.entry, row)
                done[key] = intent.entry
        transaction.write(name, done)
        transaction.settle(name, list(intents), send=True)

    # -- inside --------------------------------------------------------------------------------

    def _readable(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Mapping[str, Any]], set[str]]:
        """As ``read_rows``, and the keys of which the row cannot be read."""
        try:
            return self.read_rows(keys, transaction), set()
        except (RecordError, RejectedError):
            if len(keys) == 1:
                return {}, set(keys)
        rows: dict[str, Mapping[str, Any]] = {}
        unreadable: set[str] = set()
        for key in keys:
            row, without = self._readable([key], transaction)
            rows |= row
            unreadable |= without
        return rows, unreadable

    def _decide(
        self, entry: Entry | None, row: Mapping[str, Any] | None, change: Change
    ) -> Decision:
        if self.type.rule == "record":
            return decide_put_or_delete(None if entry is None else entry.stamp, change, self.view)
        return decide(entry, row, [change], self.view, change.key)

    def _hold_back(self, decisions: dict[str, Decision], transaction: IndexTransaction) -> None:
        """Leave the records as they are that wait for others."""
        rows = {
            key: d.write if d.row is None else {**d.row, **d.write}
            for key, d in decisions.items()
            if d.write is not None
        }
        removals = [key for key, d in decisions.items() if d.remove]
        for key, error in self.waiting(rows, removals, transaction).items():
            verdict = Verdict(Outcome.HELD, error=error)
            decisions[key] = Decision([verdict] * len(decisions[key].verdicts))

    def _perform(
        self,
        decisions: Mapping[str, Decision],
        transaction: IndexTransaction,
        bodies: Sequence[bytes] = (),
    ) -> None:
        """Write what was decided: intents, data, entries, in this order."""
        name = self.type.name
        entries = {k: d.entry for k, d in decisions.items() if d.entry is not None}
        if not entries:
            return
        writes = [
            Write(key, d.write, whole=d.row is None)
            for key, d in decisions.items()
            if d.write is not None
        ]
        removals = [key for key, d in decisions.items() if d.remove]
        intents = self._intents(decisions) if transaction.intents else {}
        transaction.intend(name, intents, bodies)
        try:
            if writes or removals:
                self.write_rows(writes, removals, transaction)
        except Exception as error:
            # What may have been written all the same stays open: who comes next looks.
            unsure = isinstance(error, StoreUnavailableError) and error.uncertain
            if not unsure and (self.atomic or len(decisions) == 1):
                # Nothing was written, so nothing of it is to be sent or finished.
                transaction.settle(name, list(decisions), send=False)
                transaction.keep()
            raise
        self._note_echoes(decisions, transaction)
        transaction.write(name, entries)

    def _intents(self, decisions: Mapping[str, Decision]) -> dict[str, Intent]:
        intents = {}
        for key, decision in decisions.items():
            if decision.entry is None:
                continue
            digest = None
            if decision.write is not None:
                held = {**(decision.row or {}), **decision.write}
                digest = value.digest({n: held[n] for n in self.view.fields if n in held})
            elif decision.row is not None and not decision.remove:
                digest = value.digest(decision.row)
            intents[key] = Intent(decision.entry, digest)
        return intents

    def _note_echoes(
        self, decisions: Mapping[str, Decision], transaction: IndexTransaction
    ) -> None:
        """Note how what was written looks in the store, which may keep it in a form of its own."""
        writes = {key: d.write for key, d in decisions.items() if d.write is not None}
        altered = self.read_back(writes, transaction) if writes else {}
        by_field = self.type.rule == "field"
        for key, decision in decisions.items():
            entry = decision.entry
            if entry is None or entry.presence is not Presence.HERE:
                continue
            if not by_field and self.verbatim and not decision.altered and key not in altered:
                continue  # the row is the body of the stamp
            row = altered.get(key)
            if row is None:
                held = {**(decision.row or {}), **(decision.write or {})}
                row = {n: held[n] for n in self.view.fields if n in held}
            if by_field:
                entry.echo = self._echo_of_fields(entry.echo, row, decision)
            elif self.verbatim or key in altered:
                entry.echo = self._echo(entry, row)
            else:
                entry.echo = value.digest(row)

    def _echo(self, entry: Entry, row: Mapping[str, Any]) -> bytes | None:
        """The trace by which a later capture recognises ``row`` as eventsync's own writing."""
        if self.type.rule == "record":
            packed = value.pack_body(row)
            same_body = value.digest_of_body(packed) == entry.stamp.digest
            return None if same_body else value.digest(row)
        return value.pack({name: _short_digest(held) for name, held in row.items()})

    def _echo_of_fields(
        self, before: bytes | None, row: Mapping[str, Any], decision: Decision
    ) -> bytes:
        """The echo after a write: that of ``row``, but for what somebody else changed before it.

        Such an edit, in a field that was not written now, is still to be captured.
        """
        old = value.unpack(before) if before is not None else {}
        seen, written = decision.row or {}, decision.write or {}
        echo = {}
        for name, held in row.items():
            known = old.get(name) if name in seen and name not in written else None
            if known is not None and not same(seen[name], held):
                # The store altered it by itself, unless it was no more what it had been.
                known = known if known != _short_digest(seen[name]) else None
            echo[name] = known if known is not None else _short_digest(held)
        return value.pack(echo)

    def _changed_since_echo(self, entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ``row`` that somebody else than eventsync has changed."""
        if self.type.rule == "record":
            if entry.echo is None:
                alike = value.digest_of_body(value.pack_body(row)) == entry.stamp.digest
            else:
                alike = value.digest(row) == entry.echo
            return {} if alike else dict(row)
        if entry.echo is None:
            return {}
        echo = value.unpack(entry.echo)
        return {
            name: held
            for name, held in row.items()
            # A field without an echo came with a later version of the view: it is no edit.
            if name in echo and echo[name] != _short_digest(held)
        }

    def _captured(
        self,
        key: str,
        entry: Entry | None,
        row: Mapping[str, Any] | None,
        clock: Clock,
        source: str,
    ) -> Change | None:
        if row is None:
            if entry is None or entry.presence is not Presence.HERE or self.forgets:
                return None
            return self._new(key, DELETE, None, entry, clock, source)
        if (entry is None or entry.presence is not Presence.HERE) and self._outside(row):
            return None
        if entry is None:
            return self._first(key, row, clock, source)
        if entry.presence is not Presence.HERE:
            # Somebody put a record where eventsync had left none.
            return self._new(key, PUT, dict(row), entry, clock, source)
        changed = self._changed_since_echo(entry, row)
        if not changed:
            return None
        if self.type.rule == "record":
            return self._new(key, PUT, dict(row), entry, clock, source)
        change = self._new(key, PATCH, changed, entry, clock, source)
        change.known = self._known(entry, row, changed)
        return change

    def _outside(self, row: Mapping[str, Any]) -> bool:
        """Whether a row that eventsync did not put there is none of its records.

        An existing table may hold more than the view's filter lets in; that is left alone.
        """
        return self.view.judged <= self.view.names.keys() and not self.view.matches(row)

    def _first(self, key: str, row: Mapping[str, Any], clock: Clock, source: str) -> Change:
        """The first version of a record that the store held before eventsync knew it.

        Under the per-field rule a put would hide what other stores hold in other fields, so every
        field gets its own version above a put that is older than all others.
        """
        if self.type.rule == "record":
            return self._new(key, PUT, dict(row), None, clock, source)
        values = {n: held for n, held in row.items() if n not in self.type.keys}
        # No value is no edit either: where another store has one, it stays.
        nothing = {n: None for n, held in values.items() if held is None}
        values = {n: held for n, held in values.items() if held is not None}
        change = self._new(key, PATCH, values, None, clock, source)
        change.known = Known(UNVERSIONED, nothing, {})
        return change

    def _change_of(
        self,
        edit: Edit,
        entry: Entry | None,
        row: Mapping[str, Any] | None,
        clock: Clock,
        source: str,
    ) -> Change | None:
        """The change that a local edit makes, or ``None`` if it changes nothing."""
        name, key = self.type.name, edit.key
        if edit.op == "add" and row is not None:
            raise AlreadyExistsError(f"{name} {key!r} is there already", hint="update it instead")
        if edit.op in ("update", "remove") and row is None:
            raise NotFoundError(f"{name} {key!r} is not there")
        if edit.values is None:
            return self._new(key, DELETE, None, entry, clock, source)
        held = {n: edit.values[n] for n in self.view.fields if n in edit.values}
        if row is None:
            return self._new(key, PUT, held, entry, clock, source)
        touched = held.keys() if edit.touched is None else edit.touched
        changed = {
            n: v for n, v in held.items() if n in touched and (n not in row or not same(row[n], v))
        }
        if not changed:
            return None
        if self.type.rule == "record":
            return self._new(key, PUT, {**row, **changed}, entry, clock, source)
        if entry is None:
            first = self._first(key, row, clock, source)
            entry = self._decide(None, row, first).entry
            assert entry is not None
        change = self._new(key, PATCH, changed, entry, clock, source)
        # What somebody else changed meanwhile has no version yet; capture will give it one.
        foreign = self._changed_since_echo(entry, row)
        change.known = self._known(entry, row, [*changed, *foreign])
        return change

    def _new(
        self,
        key: str,
        op: Any,
        data: dict[str, Any] | None,
        entry: Entry | None,
        clock: Clock,
        source: str,
    ) -> Change:
        """A change at a version above everything the store has seen of the record."""
        if entry is not None and entry.version:
            # The gate has let it in, so it counts, however far ahead it lies.
            clock.observe(Version(entry.version), max_drift=math.inf)
        return Change(
            type=self.type.name,
            key=key,
            op=op,
            version=clock.tick(),
            data=data,
            source=source,
            schema=self.type.schema,
        )

    def _known(self, entry: Entry, row: Mapping[str, Any], changed: Iterable[str] = ()) -> Known:
        """What this store holds beside the ``changed`` fields, with their versions."""
        left_out = {*self.type.keys, *changed}
        values = {n: held for n, held in row.items() if n not in left_out}
        versions = {n: v for n, v in entry.versions.items() if n in values}
        return Known(entry.stamp, values, versions)

    def _state(
        self, key: str, entry: Entry, row: Mapping[str, Any] | None, source: str
    ) -> Change | None:
        common: dict[str, Any] = {
            "type": self.type.name,
            "key": key,
            "source": source,
            "schema": self.type.schema,
        }
        if entry.presence is Presence.GONE:
            return Change(op=DELETE, version=entry.stamp.version, data=None, **common)
        if entry.presence is not Presence.HERE or row is None:
            return None
        if self.type.rule == "record":
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
            known=self._known(entry, row),
            **common,
        )


def _short_digest(held: Any) -> bytes:
    return hashlib.blake2b(value.digest({"": held}), digest_size=8).digest()
