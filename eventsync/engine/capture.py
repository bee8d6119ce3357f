"""The search for foreign writes in one store: which records are compared, and when."""

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
"""Receives the error of each record that cannot be read. ``None``: the first error is raised."""

_CHUNK: Final = 1000


class Capture:
    """Finds the foreign writes in one store.

    ``name``: the name of the store. ``monotonic``: a clock in seconds.
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
        """Yield the changes found among the records of one type, chunk by chunk.

        If all records were read within the last ``whole_every`` seconds, read only those that
        changed since, if the store can tell them. ``deletes``: see ``Store.capture``.
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
        """Return the foreign writes to the records of ``changes``, given a version.

        Leave out records that cannot be read: applying their changes reports that. If the store
        lacks suspiciously many records, leave out the missing ones, too: ``search`` reports that.
        """
        keys: dict[str, dict[str, None]] = {}
        for change in changes:
            if change.type in replicas:
                keys.setdefault(change.type, {})[change.key] = None
        return [
            captured
            for name, of_type in keys.items()
            for captured in self._compare(
                replicas[name], list(of_type), encode, lambda error: None, deletes=ALLOWED_DELETES
            )
        ]

    def _compare(
        self,
        replica: Replica,
        keys: Sequence[str],
        encode: Encode | None,
        unreadable: Unreadable,
        *,
        deletes: float,
    ) -> list[Change]:
        """Capture these records. Report those that cannot be read."""
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
        """Yield the changes among the records that changed since the last search.

        Return ``None`` if the store cannot tell them. The mark moves on only after all of them were
        read, so that an unreadable record is read again.
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
        """Return the keys of records that are in the index and no longer in the store."""
        entries = self._index.entries(replica.type.name, presence=Presence.PRESENT)
        return [key for key, _ in entries if key not in seen and not _exists(replica, key)]

    def _check_deletes(self, replica: Replica, missing: int, deletes: float) -> None:
        """Raise ``SuspiciousReadError`` if more records are missing than ``deletes`` allows."""
        if max(missing, replica.lacking) <= replica.allowed_deletes(deletes) or not missing:
            replica.lacking = 0
            return
        replica.lacking = max(missing, replica.lacking)
        type = replica.type.name
        known = self._index.counts(type)[Presence.PRESENT]
        raise SuspiciousReadError(
            f"store {self._name!r}: {missing} of {known} known records of type {type} are "
            "missing, so none was deleted",
            hint="if they were really deleted, allow it: --allow-deletes, or deletes=1.0",
        )


def _keys(replica: Replica, unreadable: Unreadable) -> Iterator[str]:
    """Yield the keys of all records that can be read."""
    query = Query.parse(replica.type, None, unreadable=unreadable)
    return (record.key for record in replica.accessor.find(query))


def _exists(replica: Replica, key: str) -> bool:
    """Return whether a record is in the store: it was added meanwhile, or cannot be read."""
    try:
        return replica.accessor.get(key) is not None
    except Exception as error:
        if concerns_all(error):
            raise
        return True
