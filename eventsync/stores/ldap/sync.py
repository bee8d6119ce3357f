"""The change source of a directory: asks every second for what was written since.

These are hints: an entry that a replica delivers late, with the time of its write at another
server, may be missed, and is found by the capture that reads all entries.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Protocol

from eventsync.engine.change_source import Changes, ChangeSource, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.index import Index, Presence
from eventsync.records.record import RecordType

__all__ = ["LdapSync", "Synced"]

_EVERY: Final = 1.0
_GONE_EVERY: Final = 10.0
# A question is asked again after so many times the seconds that it took, at the earliest.
_REST: Final = 2.0


class Synced(Protocol):
    """What the source needs of an accessor."""

    type: RecordType

    @property
    def index(self) -> Index:
        """The version index of the store."""

    def ping(self) -> None:
        """Check that the directory answers."""

    def stamp(self) -> str | None:
        """Return the attribute that says when an entry was written; ``None`` if there is none."""

    def present_keys(self) -> Collection[str]:
        """Return the keys of all entries."""


class LdapSync(ChangeSource):
    """Tells that records of a type were written, and which entries are gone.

    ``every``: seconds between two questions for written entries. ``gone_every``: seconds between
    two lists of the names of all entries, by which deleted and renamed ones are found.
    """

    kind = "sync"
    complete = False

    def __init__(
        self,
        accessors: Sequence[Synced],
        *,
        every: float = _EVERY,
        gone_every: float = _GONE_EVERY,
    ) -> None:
        self._accessors = list(accessors)
        self._every = every
        self._gone_every = gone_every
        self._due = self._gone_due = 0.0
        self._told_at: float | None = None

    def open(self, mark: str) -> str:
        for accessor in self._accessors:
            accessor.ping()
        self._due = self._gone_due = 0.0
        self._told_at = None
        return mark

    def changes(self, mark: str, *, wait: float) -> Changes:
        now = time.monotonic()
        if self._told_at is not None:
            # The caller has asked the directory meanwhile.
            self._due = max(self._due, now + _REST * (now - self._told_at))
            self._told_at = None
        if (early := self._due - now) > 0:
            time.sleep(min(early, wait))
            if early > wait:
                return Changes(mark)
        keys: dict[str, dict[str, float | None]] = {}
        if (began := time.monotonic()) >= self._gone_due:
            keys = {one.type.name: dict.fromkeys(self._gone(one)) for one in self._accessors}
            took = time.monotonic() - began
            self._gone_due = time.monotonic() + max(self._gone_every, _REST * took)
        self._told_at = time.monotonic()
        self._due = self._told_at + self._every
        told = {type: some for type, some in keys.items() if some}
        return Changes(mark, told, recent=[one.type.name for one in self._accessors])

    @staticmethod
    def _gone(accessor: Synced) -> list[str]:
        """Return the keys of the records that the directory held, and does not hold now."""
        # In this order: an entry that is added in between counts as there.
        known = [
            key for key, _ in accessor.index.entries(accessor.type.name, presence=Presence.PRESENT)
        ]
        there = set(accessor.present_keys()) if known else set()
        return [key for key in known if key not in there]

    def close(self) -> None:
        """Do nothing: the accessors keep the connections."""

    def findings(self) -> Iterator[Finding]:
        for accessor in self._accessors:
            if accessor.stamp() is None:
                yield Finding(
                    Level.WRONG,
                    accessor.type.name,
                    "this user may read none of entryCSN, whenChanged and modifyTimestamp, so "
                    "the directory does not tell which were written; give it that right, or leave "
                    "out capture= and use capture_every=",
                )

    def state(self) -> SourceState:
        details = {one.type.name: one.stamp() or "no time of writes" for one in self._accessors}
        return SourceState(installed=all(one.stamp() for one in self._accessors), details=details)
