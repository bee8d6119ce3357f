"""The accessor: how one store reads and writes the records of one type.

It owns the contract that a new kind of store fulfils, and what every accessor gets from it: the
version gate, batch apply, local edits and the capture of edits made behind eventsync's back. It
knows nothing of queues, envelopes on the wire or of other stores, nor of how what was decided is
performed (``step``).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE
from eventsync.engine.edit import Edit, Editor, state_of
from eventsync.engine.fingerprint import echo_of
from eventsync.engine.gate import Decision, Verdict, decide, decide_one, decide_put_or_delete
from eventsync.engine.unit_of_work import UnitOfWork
from eventsync.engine.write import Puts, Write
from eventsync.errors import (
    ChangeRefusedError,
    ConfigError,
    DependencyError,
    RecordError,
    StoreUnavailableError,
)
from eventsync.index import Entry, Index, IndexTransaction, Presence
from eventsync.records.columnar import Reader
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View

__all__ = ["Accessor", "Edit", "Puts", "Write"]

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
        self.reader = Reader(self.type)
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

    def read_held(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Entry], dict[str, Mapping[str, Any]]]:
        """Of those of ``keys`` that are there, the index's entries and the field values."""
        return transaction.read(self.type.name, keys), self.read_rows(keys, transaction)

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

    def update_rows(
        self, writes: Sequence[Write], transaction: IndexTransaction
    ) -> Collection[str]:
        """Write changed fields of records, of those that are there; the keys of these.

        Asked only where the accessor is ``patchable``.
        """
        raise NotImplementedError

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

    @property
    def plain(self) -> bool:
        """Whether a put leaves nothing behind but its own values, and its stamp beside them.

        So it is under the per-record rule, where data and index share one transaction, and
        ``read_back`` leaves out every row of a put. Those that were read in bulk then come to
        ``write_rows`` as ``Puts``.
        """
        return False

    @property
    def patchable(self) -> bool:
        """Whether ``update_rows`` leaves nothing behind but the values it is given, and changes no
        other record; data and index share one transaction, and the view is all of every record.

        So patches under the per-field rule can be written without a look at the row.
        """
        return False

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

    def loss(self) -> str | None:
        """Return what shows that the store lost its records or versions as a whole, else ``None``.

        A lost store publishes no deletes. ``accept_loss`` and a synchronization fill it again.
        """
        return None

    def accept_loss(self) -> int:
        """Forget the versions of records that are not there any more, so that they can be copied
        here again; return how many. Publishes nothing. Idempotent.
        """
        return 0

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
    ) -> dict[str, Sequence[Verdict]]:
        """Pass changes through the version gate and write the winners, in one transaction.

        ``batch``: the changes of each record by its key, their values as the record type has them;
        under the per-record rule only the greatest of each. ``hold``: leave out the records that
        are ``waiting`` for others. Idempotent. Raises ``ChangeRefusedError`` or ``RejectedError``
        if any change cannot be applied, with nothing written where the store is transactional;
        retryable errors likewise.
        """
        name = self.type.name
        verdicts: dict[str, Sequence[Verdict]] = {}
        with self.index.transaction() as transaction:
            self.recover(transaction)
            step = UnitOfWork(self, transaction)
            # In the order that indexes have, so that neighbours are read and written together.
            # Where a batch can be cut short, those go first that came first.
            keys = sorted(batch) if self.atomic else list(batch)
            firsts = [batch[key][0] for key in keys]
            if self.plain and not hold and all(map(self.is_plain, firsts)):
                verdicts = step.put_newer(firsts, keys)
                keys = [key for key in keys if key not in verdicts]
            if self.type.rule == "record":
                stamps = transaction.stamps(name, keys) if keys else {}
                decisions = {
                    key: decide_put_or_delete(stamps.get(key), batch[key][0], self.view)
                    for key in keys
                }
            else:
                entries = transaction.read(name, keys)
                if self.patchable and not hold:
                    verdicts = step.patch_newer(batch, entries)
                    keys = [key for key in keys if key not in verdicts]
                rows = self.read_rows(keys, transaction)
                decisions = {
                    key: decide(entries.get(key), rows.get(key), batch[key], self.view, key)
                    for key in keys
                }
            if hold:
                step.hold_back(decisions)
            step.perform(decisions)
        for key, decision in decisions.items():
            verdicts[key] = decision.verdicts
        return verdicts

    def is_plain(self, change: Change) -> bool:
        """Whether nothing has to be decided about a record but if this change of it is newer.

        Such changes are best applied in batches of their own.
        """
        return self.plain and (change.row is not None or change.op == DELETE)

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
        editor = Editor(self.view, clock, source)
        with self.index.transaction() as transaction:
            self.recover(transaction)
            keys = list(dict.fromkeys(edit.key for edit in edits))
            entries, rows = self.read_held(keys, transaction)
            decisions: dict[str, Decision] = {}
            for edit in edits:
                if edit.key in decisions:
                    raise ConfigError(f"{name} {edit.key!r} is edited twice in one call")
                entry, row = entries.get(edit.key), rows.get(edit.key)
                change = editor.change_of(edit, entry, row)
                if change is not None:
                    changes.append(change)
                    decisions[edit.key] = decide_one(entry, row, change, self.view)
            bodies = [encode(change) for change in changes] if encode else []
            UnitOfWork(self, transaction).perform(decisions, bodies)
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
        editor = Editor(self.view, clock, source)
        with self.index.transaction() as transaction:
            self.recover(transaction)
            entries, rows = self.read_held(keys, transaction)
            updated: dict[str, Entry] = {}
            leaving: dict[str, Decision] = {}
            for key in dict.fromkeys(keys):
                entry, row = entries.get(key), rows.get(key)
                change = editor.captured(key, entry, row, forgets=self.forgets)
                if change is None:
                    continue
                changes.append(change)
                decision = decide_one(entry, row, change, self.view)
                if decision.entry is None:
                    continue
                if row is not None and decision.remove:
                    leaving[key] = decision
                    continue
                updated[key] = decision.entry
                if row is not None and decision.entry.presence is Presence.PRESENT:
                    decision.entry.echo = echo_of(decision.entry, row, self.view)
            # First, for it commits its intents at once, and nothing else may be half done then.
            UnitOfWork(self, transaction).perform(leaving)
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
            here = [k for k, entry in entries.items() if entry.presence is Presence.PRESENT]
            rows = self.read_rows(here, transaction)
        changes = []
        for key, entry in entries.items():
            change = state_of(key, entry, rows.get(key), self.view, source)
            if change is not None:
                changes.append(change)
        return changes

    @_until_done
    def complete(self, states: Mapping[str, Sequence[Change]]) -> int:
        """Write pending records with what other stores know of them; how many became whole.

        ``states``: by key, what each other store knows (``states``). What none of them knows has no
        value and takes its default. Idempotent.
        """
        with self.index.transaction() as transaction:
            self.recover(transaction)
            keys = list(states)
            entries, rows = self.read_held(keys, transaction)
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
            UnitOfWork(self, transaction).perform(decisions)
        return len(decisions)

    def recover(self, transaction: IndexTransaction) -> None:
        """Finish or undo what a writer that died left half done. Called under the index's lock."""
        UnitOfWork(self, transaction).recover()
