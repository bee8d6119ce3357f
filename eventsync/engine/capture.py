"""The search for foreign writes in one store: decides which records to compare, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from eventsync.changes.change import Change
from eventsync.engine.isolation import Done, concerns_all, isolate, record_error
from eventsync.engine.replica import Encode, Replica
from eventsync.errors import RecordError, SuspiciousReadError
from eventsync.index import Index, Presence
from eventsync.records.query import Query
from eventsync.values.chunk import chunked

__all__ = ["ALLOWED_DELETES", "Capture", "Unreadable"]

ALLOWED_DELETES: Final = 0.5
"""The share of the known records of a type that may be missing by default."""

Unreadable: TypeAlias = Callable[[RecordError], None] | None
"""A function that is called with the error of each record that cannot be read.

``None`` means that the first such error is raised.
"""

_CHUNK: Final = 1000


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
    ) -> Iterator[list[Change]]:
        """Capture the foreign writes to the records of one type. Yield the changes in chunks.

        ``encode``: makes the envelopes for the outbox; ``None`` to put nothing there.
        ``whole_every``: if all records were read during the last ``whole_every`` seconds, read only
        the records that changed since, provided that the store knows them. ``deletes``: as in
        ``Store.capture``. Raises ``SuspiciousReadError`` if too many records are missing.
        """
        name = replica.type.name
        started = self._monotonic()
        if started - self._all_read_at.get(name, -math.inf) < whole_every:
            recent = self._search_recent(replica, encode, unreadable, deletes)
            if recent is not None:
                yield from recent
                return
        seen: set[str] = set()
        for keys in chunked(_keys(replica, unreadable), _CHUNK):
            seen.update(keys)
            yield self._compare(replica, keys, encode, unreadable, deletes=deletes)
        if not replica.accessor.forgets:
            missing = self._missing(replica, seen)
            self._check_deletes(replica, len(missing), deletes)
            for keys in chunked(missing, _CHUNK):
                yield self._compare(replica, keys, encode, unreadable, deletes=1.0)
        self._all_read_at[name] = started

    def before(
        self, changes: Iterable[Change], replicas: Mapping[str, Replica], encode: Encode
    ) -> list[Change]:
        """Capture foreign writes to the records that ``changes`` are about. Return them as changes.

        Records that cannot be read are left out, because applying their changes will raise the
        error anyway. If the store lacks suspiciously many records, the missing ones are left out,
        too: ``search`` reports that. ``encode``: as in ``search``.
        """
        keys: dict[str, dict[str, None]] = {}
        for change in changes:
            if change.type in replicas:
                keys.setdefault(change.type, {})[change.key] = None
        return [
            captured
            for name, of_type in keys.items()
            for captured in self._compare_readable(
                replicas[name], list(of_type), encode, deletes=ALLOWED_DELETES
            )
        ]

    def known(
        self, replica: Replica, keys: Sequence[str], encode: Encode | None, *, deletes: float
    ) -> list[Change]:
        """Capture foreign writes to those of the records that have an entry in the index.

        A record without an entry was there before eventsync: it is older than every version.
        ``encode``, ``deletes`` and the result: as in ``search`` and ``before``.
        """
        with self._index.transaction() as transaction:
            known = list(transaction.read(replica.type.name, keys))
        return self._compare_readable(replica, known, encode, deletes=deletes) if known else []

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
    ) -> list[Change]:
        """Capture foreign writes to the records with these keys, and return them as changes.

        Call ``unreadable`` for each record that cannot be read.
        """
        if unreadable is None:
            return replica.capture(keys, encode, deletes=deletes)
        changes: list[Change] = []
        for part in isolate(keys, lambda part: replica.capture(part, encode, deletes=deletes)):
            if isinstance(part, Done):
                changes += part.result
            else:
                unreadable(record_error(part.error, f"{replica.type.name} {part.item!r}"))
        return changes

    def _search_recent(
        self, replica: Replica, encode: Encode | None, unreadable: Unreadable, deletes: float
    ) -> Iterator[list[Change]] | None:
        """Return an iterator that captures the records that changed since the last search.

        Returns ``None`` if the store does not know which records changed. The store's mark is saved
        only after all these records were read, so an unreadable record is read again next time.
        """
        mark_name = f"capture/{replica.type.name}"
        errors: list[RecordError] = []

        def report(error: RecordError) -> None:
            errors.append(error)
            if unreadable is not None:
                unreadable(error)

        reporting = None if unreadable is None else report
        mark = self._index.load_mark(mark_name)
        changed = replica.accessor.changed_since(mark, reporting)
        if changed is None:
            return None
        keys, next_mark = changed

        def captured() -> Iterator[list[Change]]:
            for chunk in chunked(keys, _CHUNK):
                yield self._compare(replica, chunk, encode, reporting, deletes=deletes)
            if not errors and next_mark != mark:
                self._index.save_mark(mark_name, next_mark)

        return captured()

    def _missing(self, replica: Replica, seen: set[str]) -> list[str]:
        """Return the keys of the records that the index has and the store no longer has.

        ``seen``: the keys that were found in the store.
        """
        entries = self._index.entries(replica.type.name, presence=Presence.PRESENT)
        return [key for key, _ in entries if key not in seen and not _exists(replica, key)]

    def _check_deletes(self, replica: Replica, missing: int, deletes: float) -> None:
        """Raise ``SuspiciousReadError`` if more records are missing than ``deletes`` allows.

        ``missing``: the number of missing records. ``deletes``: as in ``Store.capture``.
        """
        if max(missing, replica.lacking) <= replica.allowed_deletes(deletes) or not missing:
            replica.lacking = 0
            return
        replica.lacking = max(missing, replica.lacking)
        type = replica.type.name
        known = self._index.counts(type)[Presence.PRESENT]
        raise SuspiciousReadError(
            f"store {self._name!r}: {missing} of {known} known records of type {type} are "
            "missing; this looks like a failed read, so none of them was deleted elsewhere",
            hint="if the records were really deleted, repeat the command with --allow-deletes, "
            "or the call with deletes=1.0; to fill the store again, run eventsync sync",
        )


def _keys(replica: Replica, unreadable: Unreadable) -> Iterator[str]:
    """Yield the keys of all records in the store. Call ``unreadable`` for unreadable records."""
    query = Query.parse(replica.type, None, unreadable=unreadable)
    return (record.key for record in replica.accessor.find(query))


def _exists(replica: Replica, key: str) -> bool:
    """Return whether the store holds the record with this key. An unreadable record counts."""
    try:
        return replica.accessor.get(key) is not None
    except Exception as error:
        if concerns_all(error):
            raise
        return True
