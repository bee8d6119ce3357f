"""The base of all parts of the conformance suite: record types, stores, changes and inspection."""

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
"""The types of values that a record may carry."""


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
    """The base of the parts of the suite. ``StoreContract`` says what to override."""

    holds: ClassVar[frozenset[type]] = VALUE_TYPES
    """The types of values that the store can hold; a subset of ``VALUE_TYPES``."""

    odd_text: ClassVar[bool] = True
    """Whether text and keys with line breaks, control characters, and blanks at the beginning or
    end are stored unchanged. If this is false, the accessor should raise ``RejectedError`` for such
    text."""

    longest_key: ClassVar[int] = 500
    """How many characters a key in the store may have."""

    examples: ClassVar[int] = 15
    """How many random histories each test of convergence tries. Lower it for a slow store."""

    def accessor(
        self, record_type: type[Record], folder: Path, view: View | None = None
    ) -> Accessor[Any]:
        """Return a new accessor of the data in ``folder``. Every suite must implement this."""
        raise NotImplementedError

    def index(self, accessor: Accessor[Any], folder: Path) -> Index:
        """Return the version index of the store in ``folder``; ``accessor``: its first one."""
        return accessor.default_index()

    def steps(self, store: Store) -> Iterable[tuple[Any, str]]:
        """Return further places where the process may die during a write.

        Each is an object and the name of a method or function of it. The suite lets the process die
        before and after each call of it.
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
        """Create a new folder in ``folder`` and return it."""
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
        """Open the store in ``folder``. A second call opens it as another process would."""
        accessors = [self.accessor(record_type, folder, view) for record_type in record_types]
        index = self.index(accessors[0], folder)
        clock = Clock(now=self.time)
        store = Store(name, *accessors, index=index, publisher=bus, clock=clock)
        self._opened.append(store)
        return store.open()

    def release(self) -> None:
        """Close all stores, as if their processes had ended."""
        while self._opened:
            self._opened.pop().close()

    def send(self, store: Store, changes: Iterable[Change]) -> list[Settled]:
        """Apply changes after a round trip through messages."""
        return apply(store, decoded(changes), clock=store.clock)

    def scatter(self, store: Store, changes: Sequence[Change], rng: random.Random) -> None:
        """Apply changes shuffled, some of them twice, in batches of random size."""
        sent = [*changes, *rng.sample(changes, k=len(changes) // 2)]
        rng.shuffle(sent)
        while sent:
            size = rng.randint(1, 4)
            self.send(store, sent[:size])
            del sent[:size]

    def try_histories(self, check: Callable[[random.Random], None]) -> None:
        """Call ``check`` with several random sources, and simplify the choices that fail."""

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
        """Return the field values of all records, by key."""
        accessor = store.accessor(record_type)
        return {record.key: record.raw() for record in accessor.find(Query.parse(accessor.type))}

    @staticmethod
    def entries(store: Store, record_type: type[Record]) -> dict[str, Entry]:
        """Return the entries of the version index, by key."""
        return dict(store.index.scan(record_type.__record__.name))

    @staticmethod
    def captured(store: Store) -> list[Change]:
        """Return the changes that ``capture`` finds: edits made without eventsync."""
        return [change for changes in store.capture() for change in changes]

    def assert_no_edits(self, store: Store) -> None:
        """Assert that ``capture`` finds no edits, because no other program wrote to the data."""
        edits = self.captured(store)
        assert edits == [], (
            f"capture() of the store {store.name!r} reports eventsync's own writes as edits of "
            "another program. read_rows() and get() must return each record with exactly the "
            "values that read_back() returned after the last write."
        )

    def version(self, step: int) -> Version:
        """Return a version in the near past. A greater ``step`` gives a greater version.

        Step 100,000 is now, so edits of the store itself come after it.
        """
        return Version.of(int(self.time() * 1000) - 100_000 + step, 0, 7)


def changed(
    record_type: type[Record], key: str, op: Op, version: Version, data: dict[str, Any] | None
) -> Change:
    """Return a change of a record as another store would publish it."""
    return Change(
        type=record_type.__record__.name, key=key, op=op, version=version, data=data, source="other"
    )


def decoded(changes: Iterable[Change]) -> list[Change]:
    """Return the changes as a worker gets them from a message."""
    received = codec.decode_all([codec.encode(change) for change in changes])
    found = [change for change in received if isinstance(change, Change)]
    assert len(found) == len(received), "a change cannot be decoded from its own envelope"
    return found


def put(record: Record, version: Version) -> Change:
    """Return the put of a whole record as another store would publish it."""
    return changed(type(record), record.key, "put", version, record.raw())
