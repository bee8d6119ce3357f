"""The contract of a version index, and the data types of its entries.

An index entry and the data of its record change together. There are two ways:

- A store with transactions keeps its index in its own database. One transaction covers both.
- Any other store is protected by the index. An ``IndexTransaction`` locks the store's index from
  before the data are read until after they are written. Before it writes data, it notes a durable
  *intent*. An open intent tells the next writer that the one before it died. The next writer then
  reads the data back to learn whether they were written.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeVar

from eventsync.changes.clock import Version
from eventsync.changes.stamp import Stamp
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.values import packing, unpacking

__all__ = [
    "Entry",
    "Index",
    "IndexTransaction",
    "Intent",
    "Outgoing",
    "Presence",
    "UndoneError",
]

T = TypeVar("T")


class UndoneError(StoreUnavailableError):
    """A transaction was rolled back because it conflicted with another. Retry the whole of it."""

    reason = "undone"


class Presence(IntEnum):
    """Where the record of an entry is."""

    PRESENT = 1
    """The store holds the record."""
    DELETED = 2
    """The record was deleted. The entry is its tombstone."""
    FILTERED_OUT = 3
    """The record exists elsewhere. It does not match this store's filter."""
    PENDING = 4
    """Field values are missing, or the put that creates the record. It is not written yet."""


# A dict is many times faster than Presence(number).
_PRESENCE: Final = {int(presence): presence for presence in Presence}


@dataclass(slots=True)
class Entry:
    """What the index holds for one record.

    - ``stamp``: the stamp of the greatest put or delete that the store has seen.
    - ``versions``: the versions of the fields that were patched after that put.
    - ``deferred``: field values that the store's data do not hold now.
    - ``whole``: whether the store has seen the put itself. A field without a value then has no
      value at that version.
    - ``echo``: the fingerprint, the digests of the data as eventsync last wrote them. It is
      ``None`` when the data are exactly the body of the stamp.
    """

    stamp: Stamp
    presence: Presence
    versions: dict[str, Version] = field(default_factory=dict)
    deferred: dict[str, Any] = field(default_factory=dict)
    whole: bool = True
    echo: bytes | None = None

    def pack_detail(self) -> bytes | None:
        """Return ``versions``, ``deferred`` and ``whole`` as bytes.

        Return ``None`` when all three have their defaults, as in most entries.
        """
        if not self.versions and not self.deferred and self.whole:
            return None
        if self.deferred:
            packing.check(self.deferred)
        return packing.pack_own(
            {"versions": self.versions, "parked": self.deferred, "whole": self.whole}
        )

    @classmethod
    def unpack(cls, stamp: bytes, presence: int, detail: bytes | None, echo: bytes | None) -> Entry:
        """Return the entry that an index stores in these columns."""
        entry = cls(Stamp(stamp), _PRESENCE[presence], echo=echo)
        if detail is not None:
            parts = unpacking.unpack_own(detail)
            entry.versions = {name: Version(raw) for name, raw in parts["versions"].items()}
            entry.deferred = parts["parked"]
            entry.whole = parts["whole"]
        return entry

    @property
    def version(self) -> bytes:
        """The greatest version that this store has seen of the record."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))


@dataclass(slots=True, frozen=True)
class Outgoing:
    """An envelope in a store's outbox. It stays there until the broker has confirmed it."""

    number: int
    type: str
    body: bytes


@dataclass(slots=True, frozen=True)
class Intent:
    """What a writer is about to do to one record.

    ``entry``: the entry of the record after the write. ``digest``: the digest of the record's data
    after the write; ``None`` if the write removes the record.
    """

    entry: Entry
    digest: bytes | None


class IndexTransaction(ABC):
    """Exclusive access to the entries of one store, until it commits or rolls back.

    Not thread-safe. Its effects become visible together, when its ``with`` block ends without an
    error. ``intend`` is the exception: it is durable when it returns.
    """

    intents: ClassVar[bool] = True
    """Whether intents are needed. They are not where the transaction covers the data too."""

    @abstractmethod
    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of ``keys``. Keys without an entry are left out."""

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        """Return the stamps of ``keys``. Keys without an entry are left out.

        The per-record rule needs nothing else. Call it before this transaction writes anything.
        """
        return {key: entry.stamp for key, entry in self.read(type, keys).items()}

    @abstractmethod
    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        """Insert these entries, or replace those of the same keys."""

    def claim(self, type: str, keys: Sequence[str], stamps: Sequence[Stamp]) -> Collection[str]:
        """Write the stamps that have a newer version than the entries of their keys.

        Return the keys whose stamps were written. The others have an entry with an equal or a
        later version; the caller decides about these with the gate.

        ``keys``: distinct and sorted. ``stamps``: of puts of whole records and of deletes, one for
        each key. An index that can compare and write in one statement overrides this method.
        """
        held = self.stamps(type, keys)
        won = {
            key: Entry(stamp, Presence.DELETED if stamp.deleted else Presence.PRESENT)
            for key, stamp in zip(keys, stamps, strict=True)
            if key not in held or stamp[:16] > held[key][:16]
        }
        self.write(type, won)
        return won

    @abstractmethod
    def forget(self, type: str, keys: Sequence[str]) -> None:
        """Remove the entries of ``keys``. Idempotent."""

    @abstractmethod
    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        """Store intents, and the envelopes that announce the writes, durably and at once.

        The intents stay open until this transaction commits. The envelopes are withheld until then:
        ``outgoing`` does not return them. Where one transaction covers data and index, ``intents``
        is empty and the envelopes are stored with the commit.
        """

    @abstractmethod
    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        """Put envelopes in the outbox when this transaction commits."""

    @abstractmethod
    def open_intents(self, type: str) -> dict[str, Intent]:
        """Return the intents of writers that died before they committed, by key."""

    @abstractmethod
    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Close the open intents of a type, and send or drop the envelopes withheld with them.

        ``keys``: the keys of all open intents of the type.

        - After a writer died, send them, even if it wrote no data. The store receives its own
          change through its queue and writes it then.
        - After a write that failed, drop them.
        """

    @abstractmethod
    def keep(self) -> None:
        """Commit what ``settle`` did, because the rest is about to be rolled back."""


class Index(ABC):
    """The version entries and the outbox of one store. Thread-safe and process-safe."""

    attempts: ClassVar[int] = 1
    """How often ``until_done`` tries a transaction. More than 1 where transactions can conflict."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[IndexTransaction]:
        """Return a context manager that commits at its end, or rolls back if its block raises.

        Blocks while another writer holds the index. Raises ``StoreUnavailableError`` if that takes
        too long.
        """

    def until_done(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which opens a transaction and finishes it.

        Call it again while it raises ``UndoneError``, up to ``attempts`` times in all.
        """
        for number in range(self.attempts - 1):
            try:
                return call()
            except UndoneError:
                time.sleep(random.random() * 0.0005 * 2 ** min(number, 7))
        return call()

    @abstractmethod
    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        """Return one page of a type's entries: at most ``limit``, sorted by key.

        ``after``: return only keys greater than this. ``presence``: return only entries with this
        presence. ``entries`` iterates over all pages.
        """

    def entries(
        self, type: str, *, after: str = "", presence: Presence | None = None, page: int = 1000
    ) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of a type in the order of their keys, reading ``page`` at a time.

        Each page is a separate read, so the caller may write to the index between two entries: an
        entry written meanwhile is yielded if its key lies behind the pages that were read.
        ``after`` and ``presence`` as in ``scan``.
        """
        while found := self.scan(type, after=after, limit=page, presence=presence):
            yield from found
            after = found[-1][0]

    @abstractmethod
    def counts(self, type: str) -> dict[Presence, int]:
        """Return the number of entries of a type by presence, zeros included."""

    @abstractmethod
    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        """Return the oldest envelopes in the outbox, at most ``limit``, oldest first."""

    @abstractmethod
    def sent(self, numbers: Sequence[int]) -> None:
        """Remove envelopes that the broker has confirmed from the outbox. Idempotent.

        A crash of the store's server may undo this. The envelopes are then published again, which
        is harmless.
        """

    def join(self, transaction: Any) -> AbstractContextManager[IndexTransaction]:
        """Return a context manager as ``transaction`` does, inside a transaction of the caller.

        ``transaction``: an SQLAlchemy session or connection. The caller commits it or rolls it
        back. If the block raises, only the effects of the block are undone. Raises ``ConfigError``
        for a store that cannot share a transaction with its caller.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot take part in a transaction of the caller",
            hint="only SQL stores can; make this edit with the methods of the store itself",
        )

    def waiting(self) -> int:
        """Return the number of envelopes in the outbox.

        This default counts no further than 10,001. An index with a cheap exact count overrides it.
        """
        return len(self.outgoing(10_001))

    @abstractmethod
    def load_mark(self, name: str) -> str:
        """Return the text saved under ``name``, a checkpoint, or an empty string."""

    @abstractmethod
    def save_mark(self, name: str, text: str) -> None:
        """Save ``text`` under ``name`` durably. An empty text removes it."""

    def close(self) -> None:  # noqa: B027  # an index in memory has nothing to close
        """Close connections and files. Idempotent. The index opens them again when it is used."""
