"""The search for foreign writes in one store: decides which records to compare, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from eventsync.changes.change import Change
from eventsync.engine.isolation import Done, Failed, isolate
from eventsync.engine.replica import Encode, Replica
from eventsync.engine.unreadable import Notice, Reading, UnreadableKeys, UnreadableNotes, error_of
from eventsync.errors import RecordError, SuspiciousReadError
from eventsync.index import Index, Presence
from eventsync.records.query import Query
from eventsync.values.chunk import chunked

__all__ = ["ALLOWED_DELETES", "SLICE", "Capture", "Unreadable"]

ALLOWED_DELETES: Final = 0.5
"""The share of the known records of a type that may be missing by default."""

Unreadable: TypeAlias = Callable[[RecordError], None] | None
"""A function that is called with the error of each record that cannot be read.

``None`` means that the first such error is raised.
"""

SLICE: Final = 1000
"""How many records a capture compares at a time by default."""


class Capture:
    """Finds the foreign writes in one store.

    ``index``: the version index of the store. ``name``: the name of the store, for errors.
    ``monotonic``: a function that returns seconds and never goes back.
    """

    def __init__(
        self, index: Index, name: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._index = index
        self._name = name
        self._notes = UnreadableNotes(index)
        self._monotonic = monotonic
        self._all_read_at: dict[str, float] = {}

    def search(
        self,
        replica: Replica,
        encode: Encode | None,
        *,
        whole_every: float,
        deletes: float,
        unreadable: Unreadable,
        notice: Notice | None = None,
        count: int = SLICE,
        after: str = "",
        reached: Callable[[str, int], None] | None = None,
    ) -> Iterator[list[Change]]:
        """Capture the foreign writes to the records of one type, in slices of ``count`` records.

        Yields the changes of each slice, often none. Between two slices nothing is locked, and the
        caller may write to the store or pause. A record that is missing is captured as a delete
        only after all slices were read without an error and the record was looked for again.

        ``encode``: makes the envelopes for the outbox; ``None`` to put nothing there.
        ``whole_every``: if all records were read during the last ``whole_every`` seconds, read only
        the records that changed since, provided that the store knows them. ``deletes``,
        ``unreadable``, ``notice``: as in ``Store.capture``. ``after``: continue a search of all
        records after the record with this key; needs an accessor that is ``resumable``.
        ``reached``: called after each slice of a search of all records, with its last key and the
        number of keys in it. Raises ``SuspiciousReadError`` if too
        many records are missing.
        """
        name = replica.type.name
        started = self._monotonic()
        if started - self._all_read_at.get(name, -math.inf) < whole_every:
            recent = self._search_recent(replica, encode, unreadable, deletes, notice, count)
            if recent is not None:
                yield from recent
                return
        # A search that was interrupted does not know what it saw before.
        seen: set[str] = set()
        reading = self._notes.reading(name, report=unreadable, notice=notice)
        report = None if unreadable is None else reading
        for keys in chunked(_keys(replica, report, after), count):
            seen.update(keys)
            found = self._compare(replica, keys, encode, report, deletes=deletes)
            reading.save()
            if reached is not None:
                reached(keys[-1], len(keys))
            yield found
        missing: list[str] = []
        if not replica.accessor.forgets:
            known = self._index.entries(name, presence=Presence.PRESENT)
            for number, entries in enumerate(chunked(known, count)):
                if number:
                    yield []
                unseen = [k for k, _ in entries if k not in seen and k not in reading.found]
                missing += _absent(replica, unseen, reading)
        reading.read_known(replica.accessor)
        reading.save(whole=True)
        if not replica.accessor.forgets:
            self._check_deletes(replica, len(missing), deletes)
            for keys in chunked(missing, count):
                yield self._compare(replica, keys, encode, unreadable, deletes=1.0)
        self._all_read_at[name] = started

    def recent(
        self, replica: Replica, encode: Encode, *, deletes: float, notice: Notice | None
    ) -> Iterator[list[Change]] | None:
        """Capture the foreign writes since the last search for recent ones, in slices.

        Finds no deletes. Returns ``None`` if the store does not know which records changed. The
        arguments: as in ``search``; the errors of unreadable records are only noted.
        """
        return self._search_recent(replica, encode, lambda error: None, deletes, notice, SLICE)

    def before(
        self,
        changes: Iterable[Change],
        replicas: Mapping[str, Replica],
        encode: Encode,
    ) -> tuple[list[Change], UnreadableKeys]:
        """Capture foreign writes to the records that ``changes`` are about. Return them as changes.

        Returns also the errors of the records that cannot be read. If the store lacks suspiciously
        many records, the missing ones are left out: ``search`` reports that. ``encode``: as in
        ``search``.
        """
        keys: dict[str, dict[str, None]] = {}
        for change in changes:
            if change.type in replicas:
                keys.setdefault(change.type, {})[change.key] = None
        captured: list[Change] = []
        unreadable: dict[tuple[str, str], RecordError] = {}
        for name, of_type in keys.items():
            for part in _capture_apart(replicas[name], list(of_type), encode, ALLOWED_DELETES, {}):
                if isinstance(part, Done):
                    captured += part.result
                else:
                    unreadable[name, part.item] = error_of(part, name)
        return captured, unreadable

    def known(
        self, replica: Replica, keys: Sequence[str], encode: Encode | None, *, deletes: float
    ) -> list[Change]:
        """Capture foreign writes to those of the records that have an entry in the index.

        A record without an entry was there before eventsync: it is older than every version.
        ``encode``, ``deletes`` and the result: as in ``search`` and ``before``.
        """
        known = list(self._index.run(lambda one: one.read(replica.type.name, keys)))
        return self._compare_readable(replica, known, encode, deletes=deletes) if known else []

    def dirty(
        self,
        replica: Replica,
        moments: Mapping[str, float | None],
        encode: Encode | None,
        reading: Reading,
        *,
        deletes: float,
    ) -> list[Change]:
        """Capture foreign writes to the records that a change source has told.

        ``moments``: as in ``Replica.capture``, for each of the records. ``reading``: takes in the
        errors of the records that cannot be read. ``encode``, ``deletes`` and the result: as in
        ``search`` and ``before``.
        """
        keys = list(moments)
        reading.begin_again(keys)
        changes = self._compare(replica, keys, encode, reading, deletes=deletes, moments=moments)
        reading.save(read=keys)
        return changes

    def reading(self, type: str, *, notice: Notice | None) -> Reading:
        """Return what takes in the errors of unreadable records in ``dirty``."""
        return self._notes.reading(type, notice=notice)

    def _compare_readable(
        self, replica: Replica, keys: Sequence[str], encode: Encode | None, *, deletes: float
    ) -> list[Change]:
        """Return what ``_compare`` returns, without the records that cannot be read."""
        return self._compare(replica, keys, encode, lambda error: None, deletes=deletes)

    def _compare(
        self,
        replica: Replica,
        keys: Sequence[str],
        encode: Encode | None,
        unreadable: Unreadable,
        *,
        deletes: float,
        moments: Mapping[str, float | None] | None = None,
    ) -> list[Change]:
        """Capture foreign writes to the records with these keys, and return them as changes.

        Call ``unreadable`` for each record that cannot be read.
        """
        if unreadable is None:
            return replica.capture(keys, encode, deletes=deletes)
        changes: list[Change] = []
        for part in _capture_apart(replica, keys, encode, deletes, moments or {}):
            if isinstance(part, Done):
                changes += part.result
            else:
                unreadable(error_of(part, replica.type.name))
        return changes

    def _search_recent(
        self,
        replica: Replica,
        encode: Encode | None,
        unreadable: Unreadable,
        deletes: float,
        notice: Notice | None,
        count: int,
    ) -> Iterator[list[Change]] | None:
        """Return an iterator that captures the records that changed since the last search.

        Returns ``None`` if the store does not know which records changed. Records that are noted as
        unreadable are read again, too: some become readable without a change. Those whose keys are
        not known are read again when they change, or with all others.
        """
        mark_name = f"capture/{replica.type.name}"
        reading = self._notes.reading(replica.type.name, report=unreadable, notice=notice)
        report = None if unreadable is None else reading
        mark = self._index.load_mark(mark_name)
        # What this call cannot read is noted when all records are read: its errors may be about
        # the time of a change only, and name the record in another way.
        changed = replica.accessor.changed_since(mark, unreadable)
        if changed is None:
            return None
        keys, next_mark = changed
        keys = list(dict.fromkeys([*keys, *reading.keys]))

        def captured() -> Iterator[list[Change]]:
            for chunk in chunked(keys, count):
                yield self._compare(replica, chunk, encode, report, deletes=deletes)
                reading.save(read=chunk)
            reading.save()
            if next_mark != mark:
                self._index.save_mark(mark_name, next_mark)

        return captured()

    def _check_deletes(self, replica: Replica, missing: int, deletes: float) -> None:
        """Raise ``SuspiciousReadError`` if more records are missing than ``deletes`` allows.

        ``missing``: the number of missing records. ``deletes``: as in ``Store.capture``.
        """
        if max(missing, replica.lacking) <= replica.allowed_deletes(deletes) or not missing:
            replica.lacking = 0
            return
        replica.lacking = max(missing, replica.lacking)
        raise self.lacks(replica, missing)

    def lacks(self, replica: Replica, missing: int) -> SuspiciousReadError:
        """Return the error of a type of which so many records are missing."""
        type = replica.type.name
        known = self._index.counts(type)[Presence.PRESENT]
        return SuspiciousReadError(
            f"store {self._name!r}: {missing} of {known} known records of type {type} are "
            "missing; this looks like a failed read, so none of them was deleted elsewhere",
            hint="to fill the store again, run: "
            f"eventsync sync --to {self._name} --records {type}; "
            "if somebody really deleted these records, run: "
            f"eventsync sync --from {self._name} --records {type} --allow-deletes",
        )


def _capture_apart(
    replica: Replica,
    keys: Sequence[str],
    encode: Encode | None,
    deletes: float,
    moments: Mapping[str, float | None],
) -> Iterator[Done[str, list[Change]] | Failed[str]]:
    return isolate(
        keys, lambda part: replica.capture(part, encode, deletes=deletes, moments=moments)
    )


def _keys(replica: Replica, unreadable: Unreadable, after: str = "") -> Iterator[str]:
    """Yield the keys of all records in the store. Call ``unreadable`` for unreadable records."""
    query = Query.parse(replica.type, None, unreadable=unreadable)
    if after:
        return replica.accessor.list_keys(query, after=after)
    return (record.key for record in replica.accessor.find(query))


def _absent(replica: Replica, keys: Sequence[str], reading: Reading) -> list[str]:
    """Return those of ``keys`` whose records the store should hold and does not hold.

    A record that cannot be read is not absent; ``reading`` takes in its error.
    """
    absent: list[str] = []
    for part in isolate(keys, replica.absent):
        if isinstance(part, Done):
            absent += part.result
        elif not reading.holds(replica.accessor, part.item):
            absent.append(part.item)
    return absent
