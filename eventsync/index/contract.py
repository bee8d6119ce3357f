"""The contract of a version index, and the data types of its entries.

An index entry and the data of its record must change together. There are two ways:

- A store with transactions keeps its index in its own database. One transaction covers the entry
  and the data.
- For any other store, an ``IndexTransaction`` locks the index from before the data are read until
  after the data are written. Before a writer writes data, it stores a durable *intent* in the
  index. If the next writer finds an open intent, the previous writer died. The next writer then
  reads the data to learn whether the previous writer wrote them.
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
    "after_all",
]

T = TypeVar("T")


def after_all(prefix: str) -> str:
    """Return the least text that is greater than every text that begins with ``prefix``.

    ``prefix``: ends with "/".
    """
    return f"{prefix[:-1]}0"  # "0" comes right after "/"


class UndoneError(StoreUnavailableError):
    """A transaction was rolled back, because it conflicted with another one. Repeat all of it."""

    reason = "undone"


class Presence(IntEnum):
    """Whether the store holds the record of an entry, and if not, why."""

    PRESENT = 1
    """The store holds the record."""
    DELETED = 2
    """The record was deleted. The entry is the tombstone of the record."""
    FILTERED_OUT = 3
    """The record exists in other stores, but does not match the filter of this store."""
    PENDING = 4
    """The record is not written yet, because field values or its put have not arrived."""


# Looking up a number in a dict is many times faster than Presence(number).
_PRESENCE: Final = {int(presence): presence for presence in Presence}


@dataclass(slots=True)
class Entry:
    """What the index holds for one record.

    - ``stamp``: the stamp of the greatest put or delete that the store has seen.
    - ``versions``: the versions of the fields that were patched after this put.
    - ``deferred``: field values that the index keeps, because the store's data do not hold them.
    - ``whole``: whether the store has seen the put itself. If true, a field without a value was not
      part of the put.
    - ``echo``: the fingerprint of the record; ``None`` if the store's data are exactly the values
      of the put.
    """

    stamp: Stamp
    presence: Presence
    versions: dict[str, Version] = field(default_factory=dict)
    deferred: dict[str, Any] = field(default_factory=dict)
    whole: bool = True
    echo: bytes | None = None

    def pack_detail(self) -> bytes | None:
        """Return ``versions``, ``deferred`` and ``whole`` as bytes for one column of an index.

        Returns ``None`` if all three have their defaults, as in most entries. Raises
        ``ValueRefusedError`` if a deferred value may not travel.
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
        """Return the entry that these columns of an index describe.

        ``presence``: the number of a ``Presence``. ``detail``: the result of ``pack_detail``.
        """
        entry = cls(Stamp(stamp), _PRESENCE[presence], echo=echo)
        if detail is not None:
            parts = unpacking.unpack_own(detail)
            entry.versions = {name: Version(raw) for name, raw in parts["versions"].items()}
            entry.deferred = parts["parked"]
            entry.whole = parts["whole"]
        return entry

    @property
    def version(self) -> bytes:
        """The greatest version of the record that this store has seen."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))


@dataclass(slots=True, frozen=True)
class Outgoing:
    """An envelope in a store's outbox. It is removed after the broker has confirmed it.

    ``number``: identifies the envelope in the outbox; greater numbers are newer. ``type``: the
    record type. ``body``: the envelope.
    """

    number: int
    type: str
    body: bytes


@dataclass(slots=True, frozen=True)
class Intent:
    """A note of a write that is about to happen to one record.

    ``entry``: the index entry that the record will have after the write. ``digest``: the digest
    that the store's data will have after the write; ``None`` if the write removes the record.
    """

    entry: Entry
    digest: bytes | None


class IndexTransaction(ABC):
    """Exclusive access to the entries of one store. Ends with a commit or a rollback.

    Not thread-safe. All effects become visible together, when the ``with`` block ends without an
    error. Only the effects of ``intend`` are durable at once.
    """

    intents: ClassVar[bool] = True
    """Whether writers must store intents. False if the transaction also covers the store's data."""

    @abstractmethod
    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of the given ``keys``, by key. Keys without an entry are left out."""

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        """Return the stamps of the entries of ``keys``, by key. Keys without an entry are left out.

        The per-record rule needs only the stamps, and an index may read them faster than entries.
        Call this method before the transaction writes anything.
        """
        return {key: entry.stamp for key, entry in self.read(type, keys).items()}

    @abstractmethod
    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        """Insert ``entries``. An existing entry of the same key is replaced."""

    def claim(self, type: str, keys: Sequence[str], stamps: Sequence[Stamp]) -> Collection[str]:
        """Write each stamp whose key has no entry, or an entry whose stamp has an older version.

        Returns the keys whose stamps were written. Every other key has an entry with the same or a
        newer version; for these keys the caller must ask the gate.

        ``keys``: distinct and sorted. ``stamps``: one for each key, the stamp of a delete or of a
        put that the store has completely. An index that can compare and write in one statement
        overrides this method.
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
        """Remove the entries of the given ``keys``. Idempotent."""

    @abstractmethod
    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        """Store intents and the envelopes of the intended writes (``bodies``), durably and at once.

        The intents stay open until this transaction commits. Until then ``outgoing`` does not
        return the envelopes. If one transaction covers data and index, ``intents`` must be empty,
        and the envelopes are stored when the transaction commits.
        """

    @abstractmethod
    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        """Put the envelopes ``bodies`` into the outbox when this transaction commits."""

    @abstractmethod
    def open_intents(self, type: str) -> dict[str, Intent]:
        """Return the open intents of the type, by key. Their writer died before it committed."""

    @abstractmethod
    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Close the open intents of a type. Send or drop the envelopes that came with the intents.

        ``keys``: the keys of all open intents of the type. ``send``: whether to put the envelopes
        into the outbox, or to drop them. Send the envelopes if the writer died, even if it wrote no
        data: the store then receives the change through its own queue and writes it. Drop the
        envelopes if the write failed.
        """

    @abstractmethod
    def keep(self) -> None:
        """Commit the effects of ``settle``. Call this method before a rollback undoes the rest."""


class Index(ABC):
    """The version index of one store: entries, outbox and marks. Thread-safe and process-safe."""

    attempts: ClassVar[int] = 1
    """How often ``until_done`` tries a transaction. More than 1 if transactions can conflict."""

    marks_own: bool = False
    """Whether transactions should mark their writes as eventsync's own, for a change source.

    ``Store`` sets it if the store is declared with a change source. Where the database can do so,
    the source then leaves these writes out."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[IndexTransaction]:
        """Return a context manager that commits when its block ends, or rolls back if it raises.

        Blocks while another writer holds the index. Raises ``StoreUnavailableError`` if the wait
        exceeds the timeout of the index.
        """

    def until_done(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, a function that runs one whole transaction.

        If ``call`` raises ``UndoneError``, pause briefly and call it again. After ``attempts``
        calls the error is raised to the caller.
        """
        for number in range(self.attempts - 1):
            try:
                return call()
            except UndoneError:
                time.sleep(random.random() * 0.0005 * 2 ** min(number, 7))
        return call()

    def run(self, call: Callable[[IndexTransaction], T]) -> T:
        """Return the result of ``call``, which gets a new transaction. Repeat it as ``until_done``.

        ``call`` may run several times, so it must have no effect outside the transaction.
        """

        def attempt() -> T:
            with self.transaction() as transaction:
                return call(transaction)

        return self.until_done(attempt)

    @abstractmethod
    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        """Return one page of a type's entries as (key, entry) pairs, sorted by key.

        ``after``: return only entries whose key is greater than this key. ``limit``: the maximal
        number of entries. ``presence``: return only entries with this presence. The method
        ``entries`` iterates over all pages.
        """

    def entries(
        self, type: str, *, after: str = "", presence: Presence | None = None, page: int = 1000
    ) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of a type as (key, entry) pairs, sorted by key.

        ``page``: how many entries one read fetches. ``after`` and ``presence``: as in ``scan``. The
        caller may write to the index between two entries. An entry that is written meanwhile is
        yielded if its key is greater than all keys that were already fetched.
        """
        while found := self.scan(type, after=after, limit=page, presence=presence):
            yield from found
            after = found[-1][0]

    @abstractmethod
    def counts(self, type: str) -> dict[Presence, int]:
        """Return the number of a type's entries for every presence, including zeros."""

    @abstractmethod
    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        """Return the oldest envelopes of the outbox, oldest first, at most ``limit`` of them."""

    @abstractmethod
    def sent(self, numbers: Sequence[int]) -> None:
        """Remove envelopes from the outbox, because the broker has confirmed them. Idempotent.

        ``numbers``: the ``Outgoing.number`` of each envelope. A crash of the store's server may
        undo the removal. The envelopes are then published again, which is harmless.
        """

    def join(self, transaction: Any) -> AbstractContextManager[IndexTransaction]:
        """Return a context manager like ``transaction()``, but inside a transaction of the caller.

        ``transaction``: an SQLAlchemy session or connection, which the caller commits or rolls
        back. If the block raises, only the effects of the block are undone. Raises ``ConfigError``
        if the store cannot take part in a transaction of the caller.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot take part in a transaction of the caller",
            hint="only SQL stores can take part; make this edit with the methods of the store "
            "itself",
        )

    def waiting(self) -> int:
        """Return the number of envelopes in the outbox.

        This implementation returns at most 10,001. An index that can count exactly overrides it.
        """
        return len(self.outgoing(10_001))

    @abstractmethod
    def load_mark(self, name: str) -> str:
        """Return the mark (a checkpoint, as text) that was saved under ``name``, or ``""``."""

    @abstractmethod
    def marks(self, prefix: str) -> dict[str, str]:
        """Return the marks whose names begin with ``prefix``, by name. ``prefix`` ends with "/"."""

    @abstractmethod
    def save_marks(self, marks: Mapping[str, str]) -> None:
        """Save each text durably under its name. An empty text removes the mark of that name."""

    def save_mark(self, name: str, text: str) -> None:
        """Save the mark ``text`` durably under ``name``. An empty ``text`` removes the mark."""
        self.save_marks({name: text})

    def missing(self) -> str:
        """Return what the first use of this index would create; empty if it exists.

        Creates nothing. Raises ``ConfigError`` if it cannot be created.
        """
        return ""

    def close(self) -> None:  # noqa: B027  # an index in memory has nothing to close
        """Close connections and files. Idempotent. A later use of the index opens them again."""
