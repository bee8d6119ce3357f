"""The capture: edits of a store's records that somebody made behind eventsync's back, found.

It owns the order of the search: which records are read, and what a vanished one means. It knows
nothing of how an edit becomes a change (the accessor does), nor of brokers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from eventsync.changes.change import Change
from eventsync.engine.accessor import Accessor
from eventsync.errors import RecordError, SuspiciousReadError
from eventsync.index import Presence
from eventsync.records.query import Query

if TYPE_CHECKING:
    from eventsync.engine.publisher import Publisher
    from eventsync.engine.store import Store

__all__ = ["Capture"]

Unreadable: TypeAlias = Callable[[RecordError], None] | None

_CHUNK: Final = 1000


class Capture:
    """The capture of one store; see ``Store.capture`` and ``Store.capture_before``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._whole_at: dict[str, float] = {}

    def of(
        self,
        accessor: Accessor[Any],
        publisher: Publisher | None,
        *,
        whole: bool,
        deletes: float,
        unreadable: Unreadable,
    ) -> Iterator[list[Change]]:
        """The changes found among the records of one type, chunk by chunk."""
        index, name = self._store.index, accessor.type.name
        begun = time.monotonic()
        last = self._whole_at.get(name, -math.inf)
        if not whole and begun - last < self._store.capture_whole_every:
            recent = self._recent(accessor, publisher, unreadable)
            if recent is not None:
                yield from recent
                return
        seen: set[str] = set()
        chunk: list[str] = []
        query = Query.parse(accessor.type, None, unreadable=unreadable)
        for record in accessor.find(query):
            chunk.append(record.key)
            if len(chunk) == _CHUNK:
                seen.update(chunk)
                yield self.among(accessor, chunk, publisher, unreadable)
                chunk = []
        if chunk:
            seen.update(chunk)
            yield self.among(accessor, chunk, publisher, unreadable)
        if accessor.forgets:
            self._whole_at[name] = begun
            return
        vanished = self._vanished(accessor, seen)
        known = index.counts(name)[Presence.PRESENT]
        if len(vanished) > max(10, deletes * known):
            raise SuspiciousReadError(
                f"store {self._store.name!r}: {len(vanished)} of {known} known records of "
                f"{name} are not there any more",
                hint="if they were really deleted, allow it: --allow-deletes, or deletes=1.0",
            )
        for start in range(0, len(vanished), _CHUNK):
            chunk = vanished[start : start + _CHUNK]
            yield self.among(accessor, chunk, publisher, unreadable)
        self._whole_at[name] = begun

    def before(self, changes: Iterable[Change], publisher: Publisher) -> None:
        """Capture edits of the records that ``changes`` are about."""
        accessors = self._store.accessors
        keys: dict[str, dict[str, None]] = {}
        for change in changes:
            if change.type in accessors:
                keys.setdefault(change.type, {})[change.key] = None
        for name, of_type in keys.items():
            self.among(accessors[name], list(of_type), publisher, lambda error: None)

    def among(
        self,
        accessor: Accessor[Any],
        keys: Sequence[str],
        publisher: Publisher | None,
        unreadable: Unreadable,
    ) -> list[Change]:
        """Capture edits of these records, and publish them."""
        encode = publisher.encode if publisher else None
        try:
            changes = accessor.capture(keys, self._store.clock, self._store.name, encode)
        except RecordError as error:
            if unreadable is None:
                raise
            if len(keys) == 1:
                unreadable(error)
                return []
            # One that became unreadable since it was listed; the others have their turn.
            alone = [self.among(accessor, [key], publisher, unreadable) for key in keys]
            return [change for changes in alone for change in changes]
        if changes:
            self._store._try_flush(publisher)
        return changes

    def _recent(
        self, accessor: Accessor[Any], publisher: Publisher | None, unreadable: Unreadable
    ) -> Iterator[list[Change]] | None:
        """Capture what changed since the mark of the last time; ``None`` if that is not known.

        The mark moves on only once all of it is captured.
        """
        index = self._store.index
        name = f"capture/{accessor.type.name}"
        failed = False

        def note(error: RecordError) -> None:
            nonlocal failed
            failed = True
            if unreadable is None:
                raise error
            unreadable(error)

        mark = index.load_mark(name)
        changed = accessor.changed_since(mark, note)
        if changed is None:
            return None
        keys, following = changed

        def captured() -> Iterator[list[Change]]:
            for start in range(0, len(keys), _CHUNK):
                yield self.among(accessor, keys[start : start + _CHUNK], publisher, note)
            if not failed and following != mark:
                index.save_mark(name, following)

        return captured()

    def _vanished(self, accessor: Accessor[Any], seen: set[str]) -> list[str]:
        vanished, after = [], ""
        while entries := self._store.index.scan(
            accessor.type.name, after=after, presence=Presence.PRESENT, limit=_CHUNK
        ):
            vanished += [k for k, _ in entries if k not in seen and not _is_there(accessor, k)]
            after = entries[-1][0]
        return vanished


def _is_there(accessor: Accessor[Any], key: str) -> bool:
    """Whether a record is in the store after all: added since, or there and unreadable."""
    try:
        return accessor.get(key) is not None
    except RecordError:
        return True
