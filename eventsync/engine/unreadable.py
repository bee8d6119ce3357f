"""The unreadable records of a store: noted in its version index, so that each is reported once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from eventsync.changes.change import Change
from eventsync.engine.accessor import Accessor
from eventsync.engine.isolation import Done, Failed, concerns_all, isolate, record_error
from eventsync.engine.replica import Replica
from eventsync.errors import RecordError
from eventsync.index import Index
from eventsync.values.chunk import chunked

__all__ = [
    "Notice",
    "Reading",
    "UnreadableKeys",
    "UnreadableNotes",
    "UnreadableRecord",
    "error_of",
    "states_of",
]

UnreadableKeys: TypeAlias = Mapping[tuple[str, str], RecordError]
"""The errors of records that a store holds and cannot read, by record type and key."""

MOST_NOTED: Final = 10_000
"""How many unreadable records of one type are noted at most. The others are not listed."""

_PREFIX: Final = "unreadable/"
_CHUNK: Final = 1000
_LONGEST: Final = 512


@dataclass(slots=True, frozen=True)
class UnreadableRecord:
    """A note of one record that a store holds and that cannot be read.

    - ``name``: the key of the record, or the place of the record if its key cannot be read.
    - ``keyed``: whether ``name`` is the key.
    - ``reason``, ``error``, ``hint``: from the error; ``hint`` says what to do and may be empty.
    - ``since``: when the record was first found unreadable, in seconds since the epoch.
    - ``told``: whether a worker has logged this error.
    """

    type: str
    name: str
    keyed: bool
    reason: str
    error: str
    hint: str
    since: float
    told: bool = False


Notice = Callable[[UnreadableRecord, bool], None]
"""A function that is called when a record turns unreadable, when its error changes, and when the
record is readable again or gone. The second argument is whether the record is unreadable now."""


class UnreadableNotes:
    """The notes of the unreadable records of one store. They survive a restart if its index does.

    ``now``: returns the time in seconds since the epoch. Thread-safe.
    """

    def __init__(self, index: Index, *, now: Callable[[], float] = time.time) -> None:
        self._index = index
        self._now = now

    def of(self, type: str) -> dict[str, UnreadableRecord]:
        """Return the notes about the records of a type, by name, sorted by name."""
        marks = self._index.marks(_prefix_of(type))
        notes = (UnreadableRecord(**json.loads(text)) for text in marks.values() if text)
        return {note.name: note for note in sorted(notes, key=lambda note: note.name)}

    def count(self, type: str) -> int:
        """Return how many records of a type are noted."""
        return len(self._index.marks(_prefix_of(type)))

    def reading(
        self,
        type: str,
        *,
        report: Callable[[RecordError], None] | None = None,
        notice: Notice | None = None,
    ) -> Reading:
        """Begin to note the unreadable records that one read of a type meets.

        ``report``: called with the error of each unreadable record. ``notice``: see ``Notice``;
        without it, the notices are left to the next reading that has one.
        """
        return Reading(self, type, self.of(type), report, notice)

    def save(self, notes: Iterable[UnreadableRecord], cleared: Iterable[UnreadableRecord]) -> None:
        """Write ``notes`` and remove the notes ``cleared``. Idempotent."""
        marks = {_mark_of(note): json.dumps(asdict(note)) for note in notes}
        marks |= {_mark_of(note): "" for note in cleared}
        for names in chunked(marks, _CHUNK):
            self._index.save_marks({name: marks[name] for name in names})

    def note_of(self, type: str, error: RecordError) -> UnreadableRecord:
        """Return a new note of a record with this error."""
        name = _shortened(error.key or error.place or error.message)
        return UnreadableRecord(
            type=type,
            name=name,
            keyed=name == error.key,
            reason=error.reason,
            error=error.message[:1000],
            hint=error.hint,
            since=self._now(),
        )


class Reading:
    """One read of the records of a type. Collects the unreadable ones. See ``reading``."""

    def __init__(
        self,
        notes: UnreadableNotes,
        type: str,
        known: dict[str, UnreadableRecord],
        report: Callable[[RecordError], None] | None,
        notice: Notice | None,
    ) -> None:
        self.type = type
        self.found: dict[str, UnreadableRecord] = {}
        """The notes of the unreadable records that were met, by name."""
        self._notes = notes
        self._known = known
        self._report = report
        self._notice = notice
        self._unsaved: list[UnreadableRecord] = []
        self._nameless: list[str] = []

    def __call__(self, error: RecordError) -> None:
        """Take in the error of one record that cannot be read."""
        self._take_in(error)
        if self._report is not None:
            self._report(error)

    def _take_in(self, error: RecordError) -> None:
        new = self._notes.note_of(self.type, error)
        nameless = not error.key and not error.place
        if nameless and new.name in self.found:
            # Another record with the same error.
            new = replace(new, name=f"{new.name} ({len(self._nameless) + 1})")
        known = self._known.get(new.name)
        if new.name in self.found or (known is None and len(self.found) >= MOST_NOTED):
            return
        if known is None or (known.reason, known.error) != (new.reason, new.error):
            known = replace(new, since=new.since if known is None else known.since)
        self.found[known.name] = known
        if nameless:
            self._nameless.append(known.name)
        else:
            self._unsaved.append(known)

    def holds(self, accessor: Accessor[Any], key: str) -> bool:
        """Return whether the store holds the record with this key.

        A record that cannot be read counts, and its error is taken in.
        """
        try:
            return accessor.get(key) is not None
        except Exception as error:
            if concerns_all(error):
                raise
            if not self._is_met(error):
                if self._nameless:
                    # Most likely one of the records that were met without a name.
                    del self.found[self._nameless.pop()]
                    self._take_in(error_of(Failed(key, error), self.type))
                else:
                    self(error_of(Failed(key, error), self.type))
            return True

    def read_known(self, accessor: Accessor[Any]) -> None:
        """Read the records again that were noted before and not met by this read.

        A read of all records does not meet a record that the store shows in no list and refuses
        to show alone, as an issue that was moved away.
        """
        for key in self.keys:
            if key not in self.found:
                self.holds(accessor, key)

    def _is_met(self, error: Exception) -> bool:
        """Return whether ``error`` is that of content which was met without its key."""
        return isinstance(error, RecordError) and (error.key or error.place) in self.found

    @property
    def keys(self) -> list[str]:
        """The keys of the records that were noted before this read, as far as they are known."""
        return [note.name for note in self._known.values() if note.keyed]

    def begin_again(self, keys: Iterable[str]) -> None:
        """Forget what was met of the records with these keys: they are read once more."""
        for key in keys:
            self.found.pop(_shortened(key), None)

    def save(self, *, whole: bool = False, read: Iterable[str] = ()) -> None:
        """Save the notes of the records met so far, and call ``notice`` for what is new.

        Remove the notes of records that are readable again, or gone: with ``whole`` those of all
        records that were not met, otherwise those of the records with the keys ``read``. Records
        without a key or a place are saved only with ``whole``: their keys may turn up until then.
        """
        if whole:
            self._unsaved += [self.found[name] for name in self._nameless]
            self._nameless = []
        names = self._known.keys() if whole else {_shortened(key) for key in read}
        cleared = [
            note
            for name, note in self._known.items()
            if name in names and name not in self.found and (whole or note.keyed)
        ]
        news = [
            note
            for note in self._unsaved
            if note != self._known.get(note.name) or (self._notice is not None and not note.told)
        ]
        self._unsaved = []
        if self._notice is not None:
            for note in news:
                self._notice(note, True)
            for note in cleared:
                if note.told:
                    self._notice(note, False)
            news = [replace(note, told=True) for note in news]
        if news or cleared:
            self._notes.save(news, cleared)
        self._known |= {note.name: note for note in news}
        for note in cleared:
            del self._known[note.name]


def error_of(failed: Failed[str], type: str) -> RecordError:
    """Return the error of one record of a type that could not be read. The item is its key."""
    return record_error(failed.error, f"{type} {failed.item!r}", key=failed.item)


def states_of(
    replica: Replica, keys: Sequence[str], unreadable: Callable[[str, RecordError], None]
) -> Iterator[Change]:
    """Yield what ``Replica.states`` returns for ``keys``.

    ``unreadable``: called with the key and the error of each record that cannot be read.
    """
    for part in isolate(keys, replica.states):
        if isinstance(part, Done):
            yield from part.result
        else:
            unreadable(part.item, error_of(part, replica.type.name))


def _shortened(name: str) -> str:
    """Return ``name``, or its beginning and a digest if it is too long for a list."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 40]}… {_digest(name)}"


def _mark_of(note: UnreadableRecord) -> str:
    return f"{_prefix_of(note.type)}{_digest(note.name)}"


def _prefix_of(type: str) -> str:
    # Digests, because the name of a mark is at most 128 characters long in an SQL database.
    return f"{_PREFIX}{_digest(type)}/"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
