"""The conformance suite for change sources: foreign writes are told, whatever happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import pytest

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import apply
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Level
from eventsync.engine.follower import Follower
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.index import Index
from eventsync.records.record import Record
from eventsync.testing.fake import Crash, FakeBus, Fuse, crashing
from eventsync.testing.harness import Contact, Item, Visit, changed, put

__all__ = ["Capturing", "Edit", "SourceContract", "insert", "remove", "update"]

_TYPES: Final = (Item, Contact, Visit)
_FENCE: Final = 900_000_000
"""The keys of items from here on only mark a moment in the order of foreign writes."""
_TIMEOUT: Final = 20.0
_MANY: Final = 3000
_ODD: Final = "a/b 'c' \"d\" \\ %s é\u4e16 ~"


@dataclass(frozen=True)
class Edit:
    """One write by a program that does not know eventsync.

    - ``key``: the values of the key fields of the record before the write; ``None`` for an insert.
    - ``values``: the values to write, by field. They contain key fields if the record is new, or
      gets another key. ``None`` to delete the record.
    """

    record_type: type[Record]
    key: Mapping[str, Any] | None
    values: Mapping[str, Any] | None


def insert(record_type: type[Record], **values: Any) -> Edit:
    """Return the insert of a record. A field that is left out gets its default."""
    fields = record_type.__record__.fields
    return Edit(record_type, None, {n: values.get(n, f.default) for n, f in fields.items()})


def update(record_type: type[Record], key: Mapping[str, Any], **values: Any) -> Edit:
    """Return an update of the record with this key. ``values`` may contain a new key."""
    return Edit(record_type, key, values)


def remove(record_type: type[Record], **key: Any) -> Edit:
    """Return the delete of the record with this key."""
    return Edit(record_type, key, None)


class _Observer:
    """Notes what a follower tells its observer."""

    def __init__(self) -> None:
        self.wholes: list[tuple[str, str]] = []
        self.blocks: list[str] = []

    def captured(self, type: str, count: int, moment: float | None, /) -> None:
        """Do nothing: the bus has the changes."""

    def whole(self, type: str, reason: str, /) -> None:
        self.wholes.append((type, reason))

    def blocked(self, type: str, error: Exception, /) -> None:
        self.blocks.append(f"{type}: {error}")

    def cleared(self, type: str, /) -> None:
        """Do nothing."""

    def alive(self) -> None:
        """Do nothing."""


class Capturing:
    """A process that captures the foreign writes of one store: a store, a source, a follower."""

    def __init__(self, contract: SourceContract, folder: Path, bus: FakeBus) -> None:
        accessors = [contract.accessor(each, folder) for each in _TYPES]
        self.bus = bus
        self.store = Store(
            "store",
            *accessors,
            index=contract.index(accessors[0], folder),
            publisher=bus,
            capture=contract.kind,
        ).open()
        self.source: ChangeSource = self.store.change_source()
        self.observer = _Observer()
        self.follower: Follower = self.store.follower(bus, self.observer, source=self.source)
        self._contract, self._folder = contract, folder

    def close(self) -> None:
        """Release everything, without saving a mark, as the end of a killed process does."""
        self.source.close()
        self.store.close()

    def until(self, check: Callable[[], object], what: str = "") -> None:
        """Run steps of the follower until ``check()`` is true."""
        deadline = time.monotonic() + _TIMEOUT
        while not check():
            assert time.monotonic() < deadline, f"not within {_TIMEOUT:.0f} s: {what or check}"
            self.follower.step(0.05)

    def catch_up(self) -> Self:
        """Run steps until everything is captured that was committed before this call."""
        self.until(lambda: not self.follower.copies, "all records are read")
        fence = self._contract.fence(self._folder)
        # The second step tells whether a source repeats what was captured.
        self.until(lambda: fence in {c.key for c in self.bus.changes()}, "a write is captured")
        self.follower.step(0.0)
        return self

    def published(self, record_type: type[Record] | None = None) -> list[Change]:
        """Return the published changes, each once, without those that only mark a moment."""
        found = {(c.type, c.key, c.version): c for c in self.bus.changes()}
        return [
            change
            for change in found.values()
            if not (change.type == Item.__record__.name and int(change.key) >= _FENCE)
            and (record_type is None or change.type == record_type.__record__.name)
        ]

    def operations(self, record_type: type[Record] | None = None) -> list[tuple[str, str]]:
        """Return operation and key of the published changes, sorted."""
        return sorted((str(c.op), c.key) for c in self.published(record_type))


class SourceContract:
    """The tests that every change source must pass.

    Extend this class in a test module. Set ``kind``, and implement ``accessor`` and ``edit``::

        class TestNotes(SourceContract):
            kind = "notes"

            def accessor(self, record_type, folder):
                return NotesAccessor(record_type, folder / f"{record_type.__record__.name}.db")

            def edit(self, folder, *edits):
                for edit in edits:
                    ...  # write with a client of the store, without eventsync

    ``folder`` belongs to one store and is empty at the first call. A further call with the same
    folder must return an accessor of the same data. ``edit`` may be called before ``accessor``.
    Set the other class attributes, and implement the methods that they name, as far as your store
    allows. The tests take their time from the clock of this machine.
    """

    kind: ClassVar[str]
    """The kind of the source, as in ``Store(capture=...)``."""

    complete: ClassVar[bool] = True
    """Whether the source tells all changes; as ``ChangeSource.complete``."""

    installs: ClassVar[bool] = True
    """Whether the source needs something in the store, which ``install`` creates."""

    resolution: ClassVar[float] = 0.1
    """By how many seconds the moment that the source tells may differ from that of the commit."""

    truncates: ClassVar[bool] = False
    """Whether the source notices that all records of a type are removed by ``truncate``."""

    alters: ClassVar[bool] = False
    """Whether records have columns that ``alter`` adds, drops and renames."""

    loses: ClassVar[bool] = False
    """Whether the source can lose its mark: ``lose`` does that."""

    unreadable: ClassVar[Mapping[str, Any] | None] = {"name": None}
    """Values of an ``Item`` that the store takes, and that cannot be read as a record. ``None`` if
    the store takes none."""

    keyless: ClassVar[Mapping[str, Any] | None] = {"place": "x" * 600}
    """Key values of a ``Visit`` that the store takes, and of which no key can be made. ``None`` if
    the store takes none."""

    keys_change: ClassVar[bool] = True
    """Whether an update can give a record another key."""

    def accessor(self, record_type: type[Record], folder: Path) -> Accessor[Any]:
        """Return a new accessor of the records of one type in ``folder``."""
        raise NotImplementedError

    def index(self, accessor: Accessor[Any], folder: Path) -> Index:
        """Return the version index of the store in ``folder``."""
        return accessor.default_index()

    def edit(self, folder: Path, *edits: Edit) -> None:
        """Make these edits as another program does, in one transaction if the store has them."""
        raise NotImplementedError

    def truncate(self, folder: Path, record_type: type[Record]) -> None:
        """Remove all records of a type at once, as TRUNCATE does."""
        raise NotImplementedError

    def alter(self, folder: Path, record_type: type[Record], change: str, column: str) -> None:
        """Alter the place where records of a type are kept, as another program does.

        ``change``: ``add`` adds a column with a default; ``drop`` drops it; ``rename`` renames a
        column to its name and ``_renamed``; ``restore`` gives it back its name.
        """
        raise NotImplementedError

    def lose(self, folder: Path) -> None:
        """Make the source lose the mark, while nothing captures the store."""
        raise NotImplementedError

    # -- what the tests share ----------------------------------------------------------------------

    _opened: list[Capturing]
    _fences: int

    def setup_method(self) -> None:
        self._opened = []
        self._fences = _FENCE

    def teardown_method(self) -> None:
        for one in self._opened:
            one.close()

    def process(self, folder: Path, bus: FakeBus) -> Capturing:
        """Return a process that captures the store in ``folder``, which has not begun yet."""
        made = Capturing(self, folder, bus)
        self._opened.append(made)
        return made

    def kill(self, process: Capturing) -> None:
        """End a process without saving anything."""
        self._opened.remove(process)
        process.close()

    def running(self, folder: Path, *edits: Edit) -> Capturing:
        """Return a process that captures, after it has read what ``edits`` made before."""
        process = self.process(folder, FakeBus())
        process.source.install()
        if edits:
            self.edit(folder, *edits)
        process.follower.open()
        process.catch_up()
        process.follower.finish()
        process.bus.envelopes.clear()
        process.observer.wholes.clear()
        return process

    def again(self, folder: Path, bus: FakeBus) -> Capturing:
        """Return another process, which continues where the last one was."""
        process = self.process(folder, bus)
        process.follower.open()
        return process

    def fence(self, folder: Path) -> str:
        """Make a foreign write that only marks a moment. Return its key."""
        self._fences += 1
        self.edit(folder, insert(Item, id=self._fences, name="fence"))
        return str(self._fences)

    # -- the tests ---------------------------------------------------------------------------------

    def test_inserts_updates_and_deletes(self, tmp_path: Path) -> None:
        """A foreign insert, update and delete are captured, each exactly once."""
        process = self.running(tmp_path, *(insert(Item, id=n, name="Ada") for n in (1, 2, 3)))
        self.edit(
            tmp_path,
            insert(Item, id=4, name="Eve"),
            update(Item, {"id": 2}, name="Bob", amount=7),
            remove(Item, id=3),
        )
        process.catch_up()
        assert process.operations() == [("delete", "3"), ("put", "2"), ("put", "4")]
        (bob,) = [change for change in process.published() if change.key == "2"]
        assert bob.data is not None
        assert (bob.data["name"], bob.data["amount"]) == ("Bob", 7)
        process.follower.finish()
        process.catch_up()
        assert len(process.operations()) == 3

    def test_records_from_before_are_read_once(self, tmp_path: Path) -> None:
        """The first start reads all records; a restart reads none again."""
        process = self.process(tmp_path, FakeBus())
        self.edit(tmp_path, *(insert(Item, id=n, name="Ada") for n in range(20)))
        process.source.install()
        process.follower.open()
        process.catch_up()
        assert process.operations() == sorted(("put", str(n)) for n in range(20))
        process.follower.finish()
        self.kill(process)
        bus = FakeBus()
        again = self.again(tmp_path, bus)
        assert not again.follower.copies or not self.complete
        again.catch_up()
        assert again.operations() == []

    def test_several_types_in_one_transaction(self, tmp_path: Path) -> None:
        """Keys of several fields and with odd signs are told like any other."""
        process = self.running(tmp_path, insert(Visit, place=_ODD, number=1, guests=2))
        self.edit(
            tmp_path,
            insert(Item, id=1, name="Ada"),
            insert(Contact, id=1, name="Bob"),
            insert(Visit, place="Rome", number=-5),
            update(Visit, {"place": _ODD, "number": 1}, guests=3),
        )
        process.catch_up()
        assert [op for op, _ in process.operations(Item)] == ["put"]
        assert [op for op, _ in process.operations(Contact)] == ["patch"]
        assert len(process.operations(Visit)) == 2
        guests = {c.data["guests"] for c in process.published(Visit) if c.data is not None}
        assert guests == {0, 3}
        self.edit(tmp_path, remove(Visit, place=_ODD, number=1))
        process.catch_up()
        assert [c.op for c in process.published(Visit)].count("delete") == 1

    def test_a_changed_key_is_a_delete_and_a_put(self, tmp_path: Path) -> None:
        if not self.keys_change:
            pytest.skip("the store cannot change the key of a record")
        process = self.running(
            tmp_path, insert(Item, id=1, name="Ada"), insert(Visit, place="a", number=1)
        )
        self.edit(
            tmp_path,
            update(Item, {"id": 1}, id=2),
            update(Visit, {"place": "a", "number": 1}, number=2),
        )
        process.catch_up()
        assert process.operations(Item) == [("delete", "1"), ("put", "2")]
        assert [op for op, _ in process.operations(Visit)] == ["delete", "put"]

    def test_many_rows_of_one_transaction(self, tmp_path: Path) -> None:
        """More rows than one slice are captured; each once, although it was written twice."""
        process = self.running(tmp_path)
        self.edit(tmp_path, *(insert(Item, id=n, name="Ada") for n in range(_MANY)))
        self.edit(tmp_path, *(update(Item, {"id": n}, amount=n) for n in range(_MANY)))
        process.catch_up()
        found = {c.key: c.data for c in process.published()}
        assert len(found) == _MANY == len(process.published())
        assert all(data is not None and data["amount"] == int(k) for k, data in found.items())

    def test_own_writes_are_no_foreign_writes(self, tmp_path: Path) -> None:
        """Changes that eventsync applies and edits through the store cause no echo."""
        process = self.running(tmp_path, *(insert(Contact, id=n, name="Ada") for n in (7, 8)))
        store = process.store
        now = int(time.time() * 1000)
        sent = [put(Item(id=n, name="Ada"), Version.of(now, n, 1)) for n in range(1, 50)]
        sent += [
            changed(Item, "9", "delete", Version.of(now, 99, 1), None),
            changed(Contact, "7", "patch", Version.of(now, 1, 1), {"name": "Bob"}),
            put(Visit(place=_ODD, number=1), Version.of(now, 1, 1)),
        ]
        apply(store, sent, clock=store.clock)
        store.add(Contact(id=5, name="Eve"))
        eve = store[Contact, 5]
        eve["name"] = "Eva"
        store.update(eve)
        store.remove(store[Item, 1])
        process.bus.envelopes.clear()  # what the edits themselves have published
        process.catch_up()
        assert process.operations() == []

    def test_a_foreign_write_after_an_own_write(self, tmp_path: Path) -> None:
        """A record that eventsync has just written may be written by others the next moment."""
        process = self.running(tmp_path)
        process.store.add([Item(id=1, name="Ada"), Item(id=2, name="Ada")])
        process.bus.envelopes.clear()
        self.edit(tmp_path, update(Item, {"id": 1}, name="Bob"), remove(Item, id=2))
        process.catch_up()
        assert process.operations() == [("delete", "2"), ("put", "1")]

    def test_the_version_has_the_moment_of_the_commit(self, tmp_path: Path) -> None:
        """It is not that of the discovery; of several commits, that of the last one counts."""
        if not self.complete:
            pytest.skip("the source gives hints only")
        process = self.running(tmp_path, insert(Item, id=3, name="Ada"))
        began = time.time()
        self.edit(tmp_path, insert(Item, id=1, name="Ada"), remove(Item, id=3))
        self.edit(tmp_path, insert(Item, id=2, name="Ada"))
        ended = time.time()
        _let_pass(2 * self.resolution + 0.2)
        again = time.time()
        self.edit(tmp_path, update(Item, {"id": 2}, name="Bob"))
        _let_pass(2 * self.resolution + 0.2)
        process.catch_up()
        moments = {c.key: c.version.millis / 1000 for c in process.published()}
        slack = self.resolution + 0.001
        assert began - slack <= moments["1"] <= ended + slack
        assert began - slack <= moments["3"] <= ended + slack
        assert again - slack <= moments["2"] <= again + slack + 0.2

    def test_nothing_is_lost_while_nobody_captures(self, tmp_path: Path) -> None:
        """What was written while no process captured is captured by the next one."""
        if not self.complete:
            pytest.skip("the source gives hints only")
        process = self.running(tmp_path, *(insert(Item, id=n, name="Ada") for n in (1, 2)))
        self.kill(process)
        self.edit(tmp_path, update(Item, {"id": 1}, name="Bob"))
        self.edit(tmp_path, remove(Item, id=2), insert(Item, id=3, name="Eve"))
        again = self.again(tmp_path, process.bus)
        assert not again.follower.copies
        waiting = again.source.state().waiting
        assert waiting is None or waiting > 0
        again.catch_up()
        assert again.operations() == [("delete", "2"), ("put", "1"), ("put", "3")]

    def test_killed_between_any_two_steps(self, tmp_path: Path) -> None:
        """Nothing is lost and nothing is captured twice, wherever the process dies."""
        if not self.complete:
            pytest.skip("the source gives hints only")
        process = self.running(tmp_path, insert(Item, id=0, name="Ada"))
        bus, at, survived = process.bus, 0, False
        while not survived:
            at += 1
            self.edit(tmp_path, *self._round(at))
            fuse = Fuse(at)
            try:
                with _fused(process, fuse):
                    process.catch_up()
                    process.follower.finish()
                survived = True
            except Crash:
                pass
            self.kill(process)
            process = self.again(tmp_path, bus)
            process.catch_up()
            assert process.operations() == self._expected(at), f"after a crash at step {at}"
            bus.envelopes.clear()
            assert at < 500, "the process never ends"

    @staticmethod
    def _round(number: int) -> list[Edit]:
        key = number * 10
        return [
            insert(Item, id=key, name="Ada"),
            update(Item, {"id": key - 10 if number > 1 else 0}, amount=number),
            insert(Contact, id=key, name="Ada"),
            *([remove(Contact, id=key - 10)] if number > 1 else []),
        ]

    @staticmethod
    def _expected(number: int) -> list[tuple[str, str]]:
        key = number * 10
        found = [("put", str(key)), ("put", str(key - 10)), ("patch", str(key))]
        return sorted([*found, ("delete", str(key - 10))] if number > 1 else found)

    def test_a_second_process(self, tmp_path: Path) -> None:
        """Two processes that capture the same store at once lose nothing and cause no echo."""
        first = self.running(tmp_path, *(insert(Item, id=n, name="Ada") for n in range(10)))
        second = self.process(tmp_path, first.bus)
        both = True
        try:
            second.follower.open()
        except StoreUnavailableError:
            both = False  # the source serves one process at a time
        for number in range(10):
            self.edit(
                tmp_path,
                update(Item, {"id": number}, amount=number + 1),
                insert(Contact, id=number, name="Eve"),
            )
            first.follower.step(0.0)
            if both:
                # A source may refuse the second process only now.
                with suppress(StoreUnavailableError):
                    second.follower.step(0.0)
        self.kill(first)
        if not both:
            second.follower.open()
        second.catch_up()
        assert [c for c in second.operations() if c[0] == "put"] == [
            ("put", str(n)) for n in range(10)
        ]
        assert len(second.operations(Contact)) == 10

    def test_a_lost_mark_makes_all_records_be_read(self, tmp_path: Path) -> None:
        """What was written meanwhile is captured, deletes included, and the loss is reported."""
        if not self.loses:
            pytest.skip("the source cannot lose its mark")
        process = self.running(tmp_path, *(insert(Item, id=n, name="Ada") for n in range(5)))
        self.kill(process)
        self.edit(tmp_path, update(Item, {"id": 1}, name="Bob"), insert(Item, id=9, name="Eve"))
        self.lose(tmp_path)
        self.edit(tmp_path, remove(Item, id=2))
        again = self.again(tmp_path, process.bus)
        assert {type for type, _ in again.observer.wholes} >= {"Item"}
        assert all(reason for _, reason in again.observer.wholes)
        again.catch_up()
        assert again.operations() == [("delete", "2"), ("put", "1"), ("put", "9")]
        again.follower.finish()
        self.kill(again)
        assert not self.again(tmp_path, FakeBus()).follower.copies

    def test_a_truncated_type(self, tmp_path: Path) -> None:
        if not self.truncates:
            pytest.skip("the source cannot see that all records are removed at once")
        process = self.running(tmp_path, *(insert(Contact, id=n, name="Ada") for n in range(5)))
        self.truncate(tmp_path, Contact)
        self.edit(tmp_path, insert(Contact, id=7, name="Eve"))
        process.until(lambda: process.observer.wholes, "the truncate is noticed")
        process.catch_up()
        deleted = sorted(("delete", str(n)) for n in range(5))
        assert process.operations(Contact) == [*deleted, ("patch", "7")]

    def test_an_unreadable_record(self, tmp_path: Path) -> None:
        """It stops no other record, is noted, and is captured once it is readable."""
        if self.unreadable is None:
            pytest.skip("the store takes no record that cannot be read")
        process = self.running(tmp_path)
        self.edit(
            tmp_path,
            insert(Item, id=1, name="Ada"),
            insert(Item, **{"id": 2, "name": "Bob", **self.unreadable}),
            insert(Item, id=3, name="Eve"),
        )
        process.catch_up()
        assert process.operations() == [("put", "1"), ("put", "3")]
        assert list(process.store.unreadable_records.of("Item")) == ["2"]
        good = dict.fromkeys(self.unreadable, "Bob")
        self.edit(tmp_path, update(Item, {"id": 2}, **good))
        process.catch_up()
        assert ("put", "2") in process.operations()
        assert not process.store.unreadable_records.of("Item")

    def test_a_row_of_which_no_key_can_be_made(self, tmp_path: Path) -> None:
        """It stops no other record, not even of its own transaction."""
        if self.keyless is None:
            pytest.skip("a key can be made of each record that the store takes")
        process = self.running(tmp_path)
        odd = {"place": "a", "number": 1, **self.keyless}
        self.edit(
            tmp_path,
            insert(Visit, place="Rome", number=1),
            insert(Visit, **odd),
            insert(Visit, place="Oslo", number=1),
            insert(Contact, id=1, name="Ada"),
        )
        process.catch_up()
        assert len(process.operations(Visit)) == 2
        assert len(process.operations(Contact)) == 1
        key = {name: odd[name] for name in Visit.__record__.keys}
        self.edit(tmp_path, remove(Visit, **key), remove(Visit, place="Oslo", number=1))
        process.catch_up()
        assert len(process.operations(Visit)) == 3

    def test_altered_columns(self, tmp_path: Path) -> None:
        """Columns may be added and dropped; one that was renamed and restored loses nothing."""
        if not self.alters:
            pytest.skip("the store has no columns to alter")
        process = self.running(tmp_path, *(insert(Contact, id=n, name="Ada") for n in range(4)))
        self.alter(tmp_path, Contact, "add", "colour")
        self.edit(tmp_path, update(Contact, {"id": 1}, score=1), insert(Contact, id=4, name="Ada"))
        process.catch_up()
        assert process.operations(Contact) == [("patch", "1"), ("patch", "4")]
        self.alter(tmp_path, Contact, "drop", "colour")
        self.edit(tmp_path, update(Contact, {"id": 2}, score=2), remove(Contact, id=4))
        process.catch_up()
        assert process.operations(Contact)[:2] == [("delete", "4"), ("patch", "1")]
        assert ("patch", "2") in process.operations(Contact)
        self.alter(tmp_path, Contact, "rename", "score")
        self.edit(tmp_path, update(Contact, {"id": 3}, name="Eve"), insert(Item, id=1, name="Ada"))
        process.until(lambda: process.operations(Item), "the other type is captured")
        self.alter(tmp_path, Contact, "restore", "score")
        self.edit(tmp_path, update(Contact, {"id": 0}, name="Zoe"))

        def recaptured() -> bool:
            process.follower._copy_due = 0.0  # do not wait for the next attempt
            return {"0", "3"} <= {c.key for c in process.published(Contact)}

        process.until(recaptured, "the altered type is captured")
        assert "3" in {c.key for c in process.published(Contact)}

    def test_installed_and_removed(self, tmp_path: Path) -> None:
        """Both may be repeated; without it, a check says so, and changes nothing."""
        process = self.process(tmp_path, FakeBus())
        source = process.source
        if self.installs:
            assert not source.state().installed
            list(source.findings())
            assert not source.state().installed
        source.install()
        source.install()
        assert source.state().installed
        assert not [f for f in source.findings() if f.level is Level.WRONG]
        process.follower.open()
        process.catch_up()
        process.follower.finish()
        process.source.close()
        source.remove()
        source.remove()
        process.store.forget_mark(source)
        if self.installs:
            assert not source.state().installed
        self.edit(tmp_path, insert(Item, id=1, name="Ada"))
        self.kill(process)
        again = self.process(tmp_path, FakeBus())
        again.source.install()
        again.follower.open()
        again.catch_up()
        assert again.operations() == [("put", "1")]


@contextmanager
def _fused(process: Capturing, fuse: Fuse) -> Iterator[None]:
    """Let ``fuse`` count the steps of a process: of its source, its store and its index."""
    index, source = process.store.index, process.source
    others: Iterable[tuple[Any, str]] = [
        (source, "changes"),
        (source, "settle"),
        (index, "save_mark"),
        (index, "save_marks"),
    ]
    with crashing(process.store, fuse, others):
        yield


def _let_pass(seconds: float) -> None:
    """Wait: for this time there is no condition that could be awaited instead."""
    deadline = time.time() + seconds
    while (left := deadline - time.time()) > 0:
        time.sleep(left)
