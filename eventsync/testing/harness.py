"""The base class of all parts of the conformance suite, and the record types of its tests.

The base class opens stores, sends changes to them, and inspects their records.
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
"""The types of the field values that a record may have."""


class Item(Record):
    """A record type with the per-record merge rule."""

    id: int = Field(key=True)
    name: str
    amount: int = 0
    note: str | None = None


class Contact(Record, rule="field"):
    """A record type with the per-field merge rule."""

    id: int = Field(key=True)
    name: str = ""
    email: str | None = None
    city: str = "Paris"
    score: int = 0
    active: bool = True


class Visit(Record):
    """A record type with a key of two fields."""

    place: str = Field(key=True)
    number: int = Field(key=True)
    guests: int = 0


class Harness:
    """The base class of all parts of the conformance suite.

    The documentation of ``StoreContract`` says what to override.
    """

    holds: ClassVar[frozenset[type]] = VALUE_TYPES
    """The types of values that the store can hold; a subset of ``VALUE_TYPES``."""

    odd_text: ClassVar[bool] = True
    """Whether the store keeps text and keys with odd characters unchanged: line breaks, control
    characters, and blanks at the beginning or end. If false, the accessor should raise
    ``RejectedError`` for such text."""

    longest_key: ClassVar[int] = 500
    """The largest number of characters that a key in the store may have."""

    examples: ClassVar[int] = 15
    """The number of random sequences of changes that each test of convergence tries. Choose fewer
    for a slow store."""

    def accessor(
        self, record_type: type[Record], folder: Path, view: View | None = None
    ) -> Accessor[Any]:
        """Return a new accessor of the records of one type in ``folder``.

        Each subclass must implement this method. ``view``: the view for the accessor.
        """
        raise NotImplementedError

    def index(self, accessor: Accessor[Any], folder: Path) -> Index:
        """Return the version index of the store in ``folder``.

        ``accessor``: the accessor of the first record type of this store.
        """
        return accessor.default_index()

    def steps(self, store: Store) -> Iterable[tuple[Any, str]]:
        """Return additional functions before and after which the suite lets the process die.

        Each is given as an object and the name of the object's method or function. Override this
        method if your accessor writes in several steps. The default is none.
        """
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
        """Create a folder with a new name in ``folder``, and return its path."""
        created = folder / f"store{next(self._numbers)}"
        created.mkdir()
        return created

    def store(
        self,
        folder: Path,
        *record_types: type[Record],
        view: View | None = None,
        name: str = "store",
        bus: FakeBus | None = None,
    ) -> Store:
        """Return the store in ``folder``, opened.

        A further call with the same folder makes a second ``Store`` of the same data, as another
        process would. ``bus``: the publisher of the store, or ``None`` for no publisher.
        """
        accessors = [self.accessor(record_type, folder, view) for record_type in record_types]
        index = self.index(accessors[0], folder)
        clock = Clock(now=self.time)
        store = Store(name, *accessors, index=index, publisher=bus, clock=clock)
        self._opened.append(store)
        return store.open()

    def release(self) -> None:
        """Close all stores that ``store`` has opened, as if their processes had ended."""
        while self._opened:
            self._opened.pop().close()

    def send(self, store: Store, changes: Iterable[Change]) -> list[Settled]:
        """Encode and decode the changes as a message does, then apply them to the store."""
        return apply(store, decoded(changes), clock=store.clock)

    def scatter(self, store: Store, changes: Sequence[Change], rng: random.Random) -> None:
        """Apply the changes in random order and in batches of random size, half of them twice."""
        sent = [*changes, *rng.sample(changes, k=len(changes) // 2)]
        rng.shuffle(sent)
        while sent:
            size = rng.randint(1, 4)
            self.send(store, sent[:size])
            del sent[:size]

    def try_histories(self, check: Callable[[random.Random], None]) -> None:
        """Call ``check`` with ``examples`` different random generators.

        If ``check`` fails, Hypothesis looks for a simpler case that fails too, and reports it.
        """

        @settings(
            max_examples=self.examples,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.randoms(use_true_random=False))
        def histories(rng: random.Random) -> None:
            check(rng)

        histories()

    # -- inspection --------------------------------------------------------------------------------

    @staticmethod
    def rows(store: Store, record_type: type[Record]) -> dict[str, dict[str, Any]]:
        """Return the field values of all records of a type in the store, by key."""
        accessor = store.accessor(record_type)
        return {record.key: record.raw() for record in accessor.find(Query.parse(accessor.type))}

    @staticmethod
    def entries(store: Store, record_type: type[Record]) -> dict[str, Entry]:
        """Return all entries of a record type in the version index of the store, by key."""
        return dict(store.index.scan(record_type.__record__.name))

    @staticmethod
    def captured(store: Store) -> list[Change]:
        """Call ``capture``, and return the changes for edits that were made without eventsync."""
        return [change for changes in store.capture() for change in changes]

    def assert_no_edits(self, store: Store) -> None:
        """Assert that ``capture`` finds no edits.

        Call this where no other program has written to the data since the last capture.
        """
        edits = self.captured(store)
        assert edits == [], (
            f"capture() of the store {store.name!r} reports eventsync's own writes as edits of "
            "another program. read_rows() and get() must return each record with exactly the "
            "values that read_back() returned after the last write."
        )

    def version(self, step: int) -> Version:
        """Return a version in the near past. A greater ``step`` gives a greater version.

        One step is a millisecond, and step 100,000 is the present time. An edit through the store
        gets a greater version than all smaller steps.
        """
        return Version.of(int(self.time() * 1000) - 100_000 + step, 0, 7)


def changed(
    record_type: type[Record], key: str, op: Op, version: Version, data: dict[str, Any] | None
) -> Change:
    """Return a change of a record, with the origin ``other``, as another store would publish it."""
    return Change(
        type=record_type.__record__.name, key=key, op=op, version=version, data=data, source="other"
    )


def decoded(changes: Iterable[Change]) -> list[Change]:
    """Encode the changes and return them decoded, as a worker gets them from a message."""
    received = codec.decode_all([codec.encode(change) for change in changes])
    found = [change for change in received if isinstance(change, Change)]
    assert len(found) == len(received), "a change cannot be decoded from its own envelope"
    return found


def put(record: Record, version: Version) -> Change:
    """Return a put of all fields of ``record``, as another store would publish it."""
    return changed(type(record), record.key, "put", version, record.raw())
