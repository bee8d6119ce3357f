"""What all parts of the conformance suite share: record types, stores, and what stores hold.

It knows nothing of what is tested.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import Op
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import Settled, apply
from eventsync.engine.store import Store
from eventsync.envelope import codec
from eventsync.index import Entry, Index
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.testing.fake import FakeBus, FakeTime

__all__ = ["VALUE_TYPES", "Contact", "Harness", "Item", "Visit", "changed", "decoded", "put"]

VALUE_TYPES = frozenset(
    {bool, int, float, Decimal, str, bytes, dt.date, dt.time, dt.datetime, UUID, list, dict}
)
"""The types of values that a store may hold."""


class Item(Record):
    """Merged per record."""

    id: int = Field(key=True)
    name: str
    amount: int = 0
    note: str | None = None


class Contact(Record, rule="field"):
    """Merged per field."""

    id: int = Field(key=True)
    name: str = ""
    email: str | None = None
    city: str = "Paris"
    score: int = 0
    active: bool = True


class Visit(Record):
    """With a key of two fields."""

    place: str = Field(key=True)
    number: int = Field(key=True)
    guests: int = 0


class Harness:
    """How a part of the suite comes to its stores; see ``StoreContract`` for what to override."""

    holds: ClassVar[frozenset[type]] = VALUE_TYPES
    """The types of values that the store can hold; a subset of ``VALUE_TYPES``."""

    odd_text: ClassVar[bool] = True
    """Whether text with line breaks, control characters and blanks at its ends comes back as it
    was, also in keys. A store for which this is false should refuse such text."""

    longest_key: ClassVar[int] = 500
    """How many characters of a key the store can hold, if that is less than any key may have."""

    examples: ClassVar[int] = 15
    """How many random histories each property is tried on."""

    def accessor(
        self, record_type: type[Record], folder: Path, view: View | None = None
    ) -> Accessor[Any]:
        """An accessor on the data in ``folder``, not part of a store yet."""
        raise NotImplementedError

    def index(self, accessor: Accessor[Any], folder: Path) -> Index:
        """The version index of the store in ``folder``, of which ``accessor`` is the first."""
        return accessor.default_index()

    def steps(self, store: Store) -> Iterable[tuple[Any, str]]:
        """Objects with the names of methods around which the process may die while it writes."""
        return ()

    # -- stores ------------------------------------------------------------------------------------

    _opened: list[Store]
    _numbers: Any

    def setup_method(self) -> None:
        self._opened = []
        self._numbers = count()
        self.time = FakeTime()

    def teardown_method(self) -> None:
        for store in self._opened:
            store.close()

    def fresh(self, folder: Path) -> Path:
        """A new folder in ``folder``."""
        made = folder / f"store{next(self._numbers)}"
        made.mkdir()
        return made

    def store(
        self,
        folder: Path,
        *record_types: type[Record],
        view: View | None = None,
        name: str = "store",
        bus: FakeBus | None = None,
    ) -> Store:
        """The store in ``folder``, opened; again with the same folder, as another process would."""
        accessors = [self.accessor(record_type, folder, view) for record_type in record_types]
        index = self.index(accessors[0], folder)
        clock = Clock(now=self.time)
        store = Store(name, *accessors, index=index, publisher=bus, clock=clock)
        self._opened.append(store)
        return store.open()

    def release(self) -> None:
        """Close what was opened: the other process has ended."""
        while self._opened:
            self._opened.pop().close()

    def send(self, store: Store, changes: Iterable[Change]) -> list[Settled]:
        """Apply ``changes`` as they are decoded from messages."""
        return apply(store, decoded(changes), clock=store.clock)

    def scatter(self, store: Store, changes: Sequence[Change], rng: random.Random) -> None:
        """Apply ``changes`` shuffled, some twice, in batches of random size."""
        sent = [*changes, *rng.sample(changes, k=len(changes) // 2)]
        rng.shuffle(sent)
        while sent:
            size = rng.randint(1, 4)
            self.send(store, sent[:size])
            del sent[:size]

    def try_histories(self, check: Callable[[random.Random], None]) -> None:
        """Call ``check`` with many sources of random choices, and shrink one that fails."""

        @settings(
            max_examples=self.examples,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.randoms(use_true_random=False))
        def histories(rng: random.Random) -> None:
            check(rng)

        histories()

    # -- what they hold ----------------------------------------------------------------------------

    @staticmethod
    def rows(store: Store, record_type: type[Record]) -> dict[str, dict[str, Any]]:
        """By key, the field values of all records."""
        accessor = store.accessor(record_type)
        return {record.key: record.raw() for record in accessor.find(Query.parse(accessor.type))}

    @staticmethod
    def entries(store: Store, record_type: type[Record]) -> dict[str, Entry]:
        """By key, what the version index says."""
        return dict(store.index.scan(record_type.__record__.name))

    @staticmethod
    def captured(store: Store) -> list[Change]:
        """What ``capture`` takes for edits that somebody else made."""
        return [change for changes in store.capture() for change in changes]

    def version(self, step: int) -> Version:
        """A version in the near past; a greater ``step`` gives a greater one.

        The store's own edits come after step 100,000, which is now.
        """
        return Version.of(int(self.time() * 1000) - 100_000 + step, 0, 7)


def changed(
    record_type: type[Record], key: str, op: Op, version: Version, data: dict[str, Any] | None
) -> Change:
    """A change of a record as another store would publish it."""
    return Change(
        type=record_type.__record__.name, key=key, op=op, version=version, data=data, source="other"
    )


def decoded(changes: Iterable[Change]) -> list[Change]:
    """The changes as they come out of a message, with their values still to be read."""
    received = codec.decode_all([codec.encode(change) for change in changes])
    found = [change for change in received if isinstance(change, Change)]
    assert len(found) == len(received), "a change does not survive its envelope"
    return found


def put(record: Record, version: Version) -> Change:
    """The creation of a record by another store."""
    return changed(type(record), record.key, "put", version, record.raw())
