"""The contract of a version index, and what is in one.

It knows nothing of accessors, of what a store's data look like, or of how a change is judged.

An index entry is changed in the same step as the record's data. A store with transactions keeps its
index inside them. For every other store a transaction of the index (``IndexTransaction``) holds an
exclusive lock on the store's index from before the data are read until after they are written, and
a durable *intent* stands in between: whoever finds an open intent later knows that a writer died
half way, and reads the data back to learn how far it came.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
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
    """A transaction came to nothing since another was faster; begun again it may succeed."""

    reason = "undone"


class Presence(IntEnum):
    """Where the record of an entry is."""

    PRESENT = 1
    """In the store."""
    DELETED = 2
    """Deleted: the entry is its tombstone."""
    FILTERED_OUT = 3
    """Alive, but it does not match the store's filter."""
    PENDING = 4
    """Alive or not yet created, and not known whole: it waits for the rest."""


# By its number: an enumeration's own look-up takes many times as long.
_PRESENCE: Final = {int(presence): presence for presence in Presence}


@dataclass(slots=True)
class Entry:
    """What the index holds for one record.

    ``versions``: of fields patched above the stamp. ``deferred``: values that the store's own data
    do not hold (of a record that is not here). ``echo``: what the data looked like when eventsync
    last wrote them, as digests; ``None`` when that is exactly the body of the stamp.
    """

    stamp: Stamp
    presence: Presence
    versions: dict[str, Version] = field(default_factory=dict)
    deferred: dict[str, Any] = field(default_factory=dict)
    whole: bool = True
    echo: bytes | None = None

    def pack_detail(self) -> bytes | None:
        """The parts that most entries do not need, as bytes; ``None`` when there are none."""
        if not self.versions and not self.deferred and self.whole:
            return None
        if self.deferred:
            packing.check(self.deferred)
        return packing.pack_own(
            {"versions": self.versions, "parked": self.deferred, "whole": self.whole}
        )

    @classmethod
    def unpack(cls, stamp: bytes, presence: int, detail: bytes | None, echo: bytes | None) -> Entry:
        """The entry that these columns hold."""
        entry = cls(Stamp(stamp), _PRESENCE[presence], echo=echo)
        if detail is not None:
            parts = unpacking.unpack_own(detail)
            entry.versions = {name: Version(raw) for name, raw in parts["versions"].items()}
            entry.deferred = parts["parked"]
            entry.whole = parts["whole"]
        return entry

    @property
    def version(self) -> bytes:
        """The greatest version this store has seen of the record."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))


@dataclass(slots=True, frozen=True)
class Outgoing:
    """An envelope that waits in a store's outbox until the broker has confirmed it."""

    number: int
    type: str
    body: bytes


@dataclass(slots=True, frozen=True)
class Intent:
    """What a writer was about to do to one record: its entry then, and what the data become.

    ``digest`` is of the data to be read back when the write was done; ``None`` for a removal.
    """

    entry: Entry
    digest: bytes | None


class IndexTransaction(ABC):
    """Exclusive access to the entries of one store, until it commits or rolls back.

    Not thread-safe. All of it takes effect at once when the transaction's block ends without an
    error, except ``intend``, which is durable when it returns.
    """

    intents: ClassVar[bool] = True
    """Whether intents are of use: not where the data are part of the transaction."""

    @abstractmethod
    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those of ``keys`` that have one."""

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        """The stamps of those of ``keys`` that have an entry: all that the per-record rule needs.

        Called before anything is written.
        """
        return {key: entry.stamp for key, entry in self.read(type, keys).items()}

    @abstractmethod
    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        """Put these entries in place of what was there."""

    def claim(self, type: str, keys: Sequence[str], stamps: Sequence[Stamp]) -> Collection[str]:
        """Put these stamps, of whole records and deletes, in place of older ones; of which keys.

        ``keys``: all different, in order. Left as they are those of which a later version is held,
        or the same one: they take a closer look. An index that can do this in one step overrides
        it: the step is the per-record rule, but for what that says of equal versions.
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
        """Note durably what is about to be written, and the envelopes to send once it is.

        The intents stay open, and the envelopes held back, until this transaction commits. Where
        data and index share one transaction there are no intents: all of it waits for the commit.
        """

    @abstractmethod
    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        """Put envelopes in the outbox, with the commit."""

    @abstractmethod
    def open_intents(self, type: str) -> dict[str, Intent]:
        """What a writer that died left half done; empty where that cannot happen."""

    @abstractmethod
    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Close the open intents of ``keys``, which are all of the type; send the envelopes held
        back with them, or drop them.

        After a writer died, sending is right even if it wrote nothing: the store gets its own
        change back through its queue. After a write that failed, dropping is.
        """

    @abstractmethod
    def keep(self) -> None:
        """Make what was settled durable now, though the transaction is about to be rolled back."""


class Index(ABC):
    """The version entries and the outbox of one store. Thread-safe and process-safe."""

    attempts: ClassVar[int] = 1
    """How often a transaction is begun at most, where others may be faster."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[IndexTransaction]:
        """Begin; commit at the end of the block, or undo everything if it raises.

        Blocks while another writer is at work. Raises ``StoreUnavailableError`` when that lasts.
        """

    def until_done(self, call: Callable[[], T]) -> T:
        """The result of ``call``, a transaction from its beginning to its end.

        It is made again, up to ``attempts`` times, while it raises ``UndoneError``.
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
        """Up to ``limit`` entries of a type in the order of their keys, from after ``after`` on."""

    @abstractmethod
    def counts(self, type: str) -> dict[Presence, int]:
        """How many entries of a type there are, by presence."""

    @abstractmethod
    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        """The oldest envelopes in the outbox."""

    @abstractmethod
    def sent(self, numbers: Sequence[int]) -> None:
        """Take envelopes out of the outbox, which the broker has confirmed. Idempotent.

        A crash of the store may undo it: they are published again then, which does no harm.
        """

    def join(self, transaction: Any) -> AbstractContextManager[IndexTransaction]:
        """As ``transaction``, but as a part of the caller's own, which commits or undoes it.

        ``transaction``: what the store's database calls one (an SQLAlchemy session or connection).
        Of this part nothing is left when the block raises. Raises ``ConfigError`` where data and
        index do not share a transaction that a caller could have begun.
        """
        raise ConfigError(
            f"{type(self).__name__} has no transactions that others could take part in",
            hint="edit through the store itself; only SQL stores can join your transaction",
        )

    def waiting(self) -> int:
        """How many envelopes are in the outbox; counts up to 10,001 where it cannot do better."""
        return len(self.outgoing(10_001))

    @abstractmethod
    def load_mark(self, name: str) -> str:
        """The text kept under ``name`` (a checkpoint), or an empty one."""

    @abstractmethod
    def save_mark(self, name: str, text: str) -> None:
        """Keep ``text`` under ``name`` durably; an empty text removes it."""

    def close(self) -> None:  # noqa: B027  # an index in memory has nothing to let go of
        """Let go of what the index holds open. Idempotent; it opens again when used again."""
