"""The contract of a version index, in a file and in memory."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies

from eventsync.changes.clock import Version
from eventsync.changes.stamp import Stamp
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import Entry, FileIndex, Intent, MemoryIndex, Presence, UndoneError


@pytest.fixture(params=["file", "memory"])
def index(request, tmp_path):
    opened = FileIndex(tmp_path / "v.db") if request.param == "file" else MemoryIndex()
    yield opened
    opened.close()


def stamp(version, kind=1):
    return Stamp(Version.of(version) + bytes([kind]) + bytes(32))


def entry(version=1, presence=Presence.PRESENT, **more):
    return Entry(stamp(version), presence, **more)


def write(index, entries, type="T"):
    with index.transaction() as transaction:
        transaction.write(type, entries)


def read(index, keys, type="T"):
    with index.transaction() as transaction:
        return transaction.read(type, keys)


def bodies(index):
    return [outgoing.body for outgoing in index.outgoing()]


class InterruptedWriterError(Exception):
    """The end of a writer that does not commit."""


@contextmanager
def interrupted(index):
    """A transaction that ends with an error."""
    with suppress(InterruptedWriterError), index.transaction() as transaction:
        yield transaction
        raise InterruptedWriterError


# -- entries --------------------------------------------------------------------------------------

FULL = entry(
    5,
    Presence.PENDING,
    versions={"a": Version.of(6), "b": Version.of(7)},
    deferred={"a": "text", "c": None},
    whole=False,
    echo=b"fingerprint",
)


def test_entry_is_read_as_written(index):
    """Every part of an entry survives, and keys without an entry are left out."""
    plain = entry(3, Presence.DELETED)
    write(index, {"1": FULL, "2": plain})
    assert read(index, ["1", "2", "3"]) == {"1": FULL, "2": plain}
    with index.transaction() as transaction:
        assert transaction.stamps("T", ["1", "2", "3"]) == {"1": FULL.stamp, "2": plain.stamp}


def test_entry_replaces_the_one_before(index):
    """A second entry of a key replaces the first in all its parts."""
    write(index, {"1": FULL})
    write(index, {"1": entry(9)})
    assert read(index, ["1"]) == {"1": entry(9)}


def test_types_are_apart(index):
    """The same key of two types has two entries."""
    write(index, {"1": entry(1)}, "A")
    write(index, {"1": entry(2)}, "B")
    assert read(index, ["1"], "A") == {"1": entry(1)}
    assert read(index, ["1"], "B") == {"1": entry(2)}
    assert index.scan("C") == []


def test_forgotten_entry_is_gone(index):
    """Forgetting removes an entry, and may be repeated."""
    write(index, {"1": entry(), "2": entry()})
    for _ in range(2):
        with index.transaction() as transaction:
            transaction.forget("T", ["1", "3"])
    assert dict(index.scan("T")) == {"2": entry()}


def test_many_keys_can_be_read_at_once(index):
    """More keys than a statement takes parameters."""
    entries = {f"{number:05}": entry(number) for number in range(1, 2500)}
    write(index, entries)
    assert read(index, list(entries)) == entries


def test_counts_by_presence(index):
    """Every presence is counted, those that do not occur with zero."""
    write(index, {"1": entry(), "2": entry(), "3": entry(1, Presence.DELETED)})
    assert index.counts("T") == {
        Presence.PRESENT: 2, Presence.DELETED: 1, Presence.FILTERED_OUT: 0, Presence.PENDING: 0
    }  # fmt: skip


@pytest.mark.parametrize("held", [None, 4, 5, 6])
def test_claim_takes_only_newer_stamps(index, held):
    """A stamp is written if its version is later than that of the entry, and reported."""
    if held is not None:
        write(index, {"1": entry(held)})
    with index.transaction() as transaction:
        claimed = transaction.claim("T", ["1", "2"], [stamp(5), stamp(5, kind=2)])
    newer = held is None or held < 5
    assert set(claimed) == ({"1", "2"} if newer else {"2"})
    assert dict(index.scan("T")) == {
        "1": entry(5 if newer else held), "2": Entry(stamp(5, kind=2), Presence.DELETED)
    }  # fmt: skip


# -- pages ----------------------------------------------------------------------------------------


def test_scan_returns_one_page(index):
    """A page begins after a key, is sorted, and holds only the presence that was asked for."""
    write(index, {key: entry(1, Presence(1 + ord(key) % 2)) for key in "fedcba"})
    assert [key for key, _ in index.scan("T", limit=2)] == ["a", "b"]
    assert [key for key, _ in index.scan("T", after="b", limit=2)] == ["c", "d"]
    assert [key for key, _ in index.scan("T", presence=Presence.DELETED)] == ["a", "c", "e"]
    assert [key for key, _ in index.scan("T", presence=Presence.PRESENT)] == ["b", "d", "f"]
    assert index.scan("T", presence=Presence.PENDING) == []
    assert index.scan("T", after="f") == []


@pytest.mark.parametrize("page", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("presence", [None, Presence.DELETED])
def test_entries_yields_all_pages(index, page, presence):
    """The iteration yields what one large page would, whatever the size of its pages."""
    write(index, {f"{n}": entry(1 + n, Presence(1 + n % 2)) for n in range(7)})
    found = list(index.entries("T", page=page, presence=presence))
    assert found == index.scan("T", presence=presence)
    assert len(found) == (7 if presence is None else 3)
    after = list(index.entries("T", after="3", page=page, presence=presence))
    assert after == index.scan("T", after="3", presence=presence)


def test_index_can_change_during_the_iteration(index):
    """Entries may be removed and written while they are iterated over."""
    write(index, {key: entry() for key in "abcdef"})
    seen = []
    for key, _ in index.entries("T", page=2):
        seen.append(key)
        with index.transaction() as transaction:
            transaction.forget("T", [key])
            transaction.write("T", {"g": entry(2)})
        if len(seen) == 7:
            break
    assert seen == list("abcdefg")


def test_pages_of_a_presence_use_the_index_of_the_file(tmp_path, monkeypatch):
    """A search for pending records does not read the entries of the present ones."""
    steps = []
    connect = sqlite3.connect

    def counting(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_progress_handler(lambda: steps.append(None), 100)
        return connection

    monkeypatch.setattr(sqlite3, "connect", counting)
    index = FileIndex(tmp_path / "v.db")
    write(index, {f"{n:04}": entry() for n in range(1000)} | {"x": entry(1, Presence.PENDING)})
    steps.clear()
    assert [key for key, _ in index.scan("T", presence=Presence.PENDING)] == ["x"]
    assert len(steps) < 5
    index.close()


# -- transactions ---------------------------------------------------------------------------------


def test_failed_transaction_leaves_nothing(index):
    """An error in the block undoes entries, envelopes and removals."""
    write(index, {"1": entry(1)})
    with interrupted(index) as transaction:
        transaction.write("T", {"1": entry(2), "2": entry(2)})
        transaction.forget("T", ["1"])
        transaction.send("T", [b"one"])
    assert dict(index.scan("T")) == {"1": entry(1)}
    assert bodies(index) == []


def test_transaction_reads_its_own_writes(index):
    """What a transaction has written and forgotten counts when it reads."""
    with index.transaction() as transaction:
        transaction.write("T", {"1": entry(1), "2": entry(1)})
        transaction.forget("T", ["2"])
        assert transaction.read("T", ["1", "2"]) == {"1": entry(1)}
    assert dict(index.scan("T")) == {"1": entry(1)}


def test_one_transaction_at_a_time(index):
    """Writers that read, add one and write do not lose an addition."""
    write(index, {"1": entry(1)})

    def add():
        for _ in range(5):
            with index.transaction() as transaction:
                version = transaction.read("T", ["1"])["1"].stamp.version.millis
                time.sleep(0.001)  # for the others to come in between
                transaction.write("T", {"1": entry(version + 1)})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(index, ["1"]) == {"1": entry(21)}


def test_locked_file_is_unavailable(tmp_path):
    """A writer that waits too long gets a retryable error."""
    index, other = FileIndex(tmp_path / "v.db"), FileIndex(tmp_path / "v.db", timeout=0.05)
    with index.transaction(), pytest.raises(StoreUnavailableError), other.transaction():
        pytest.fail("two transactions at once")
    index.close()
    other.close()


@pytest.mark.parametrize("failures", [0, 1, 4, 5])
def test_undone_transaction_is_tried_again(failures):
    """A transaction that was rolled back is repeated, up to the number of attempts."""

    class Contended(MemoryIndex):
        attempts = 5

    calls = []

    def call():
        calls.append(None)
        if len(calls) <= failures:
            raise UndoneError("another was faster")
        return "done"

    if failures < 5:
        assert Contended().until_done(call) == "done"
        assert len(calls) == failures + 1
    else:
        with pytest.raises(UndoneError):
            Contended().until_done(call)
        assert len(calls) == 5


# -- outbox ---------------------------------------------------------------------------------------


def test_outbox_keeps_its_order(index):
    """Envelopes leave the outbox in the order of their commits, until they are confirmed."""
    for number in range(5):
        with index.transaction() as transaction:
            transaction.send("A" if number % 2 else "B", [b"%d" % number, b"%d'" % number])
    outgoing = index.outgoing()
    expected = [b"%d" % n + end for n in range(5) for end in (b"", b"'")]
    assert [each.body for each in outgoing] == expected
    assert [each.type for each in outgoing[:4]] == ["B", "B", "A", "A"]
    assert [each.body for each in index.outgoing(3)] == expected[:3]
    assert index.waiting() == 10
    for _ in range(2):
        index.sent([each.number for each in outgoing[:4]])
    assert bodies(index) == expected[4:]
    with index.transaction() as transaction:
        transaction.send("A", [b"last"])
    assert bodies(index) == [*expected[4:], b"last"]


# -- intents --------------------------------------------------------------------------------------

INTENT = Intent(FULL, b"digest")
REMOVAL = Intent(entry(8, Presence.DELETED), None)


def die_after_intent(index, type="T", keys=("1", "2"), bodies=(b"one", b"two")):
    """Note intents, then leave the transaction as a writer does that dies."""
    with interrupted(index) as transaction:
        transaction.intend(type, dict(zip(keys, [INTENT, REMOVAL], strict=False)), list(bodies))
        transaction.write(type, {keys[0]: entry(9)})


def test_intents_are_closed_by_the_commit(index):
    """The envelopes leave with the commit, and no intent stays open."""
    with index.transaction() as transaction:
        transaction.intend("T", {"1": INTENT}, [b"one"])
        assert bodies(index) == []
        transaction.write("T", {"1": INTENT.entry})
    assert bodies(index) == [b"one"]
    with index.transaction() as transaction:
        assert transaction.open_intents("T") == {}


def test_intents_outlive_the_writer(index):
    """Intents are found by the next writer; envelopes and entries of the dead one are not."""
    die_after_intent(index)
    assert index.scan("T") == []
    assert bodies(index) == []
    assert index.waiting() == 0
    with index.transaction() as transaction:
        assert transaction.open_intents("T") == {"1": INTENT, "2": REMOVAL}
        assert transaction.open_intents("Other") == {}


@pytest.mark.parametrize("send", [True, False])
def test_settling_sends_or_drops(index, send):
    """Closing the intents of a type sends its withheld envelopes or drops them."""
    die_after_intent(index)
    die_after_intent(index, "Other", ["9"], [b"other"])
    with index.transaction() as transaction:
        transaction.settle("T", ["1", "2"], send=send)
    assert bodies(index) == ([b"one", b"two"] if send else [])
    with index.transaction() as transaction:
        assert transaction.open_intents("T") == {}
        assert transaction.open_intents("Other") == {"9": INTENT}


def test_keep_commits_what_was_settled(index):
    """Intents that are closed before an error stay closed, and their envelopes dropped."""
    with interrupted(index) as transaction:
        transaction.intend("T", {"1": INTENT}, [b"one"])
        transaction.settle("T", ["1"], send=False)
        transaction.keep()
    assert bodies(index) == []
    with index.transaction() as transaction:
        assert transaction.open_intents("T") == {}


# -- marks ----------------------------------------------------------------------------------------


def test_marks(index):
    """A mark is empty at first, holds the last text, and is removed by an empty one."""
    assert index.load_mark("a") == ""
    index.save_mark("a", "one")
    index.save_mark("a", "two")
    index.save_mark("b", "other")
    assert (index.load_mark("a"), index.load_mark("b")) == ("two", "other")
    index.save_mark("a", "")
    assert (index.load_mark("a"), index.load_mark("b")) == ("", "other")


def test_marks_by_prefix(index):
    """The marks under a prefix are found together, saved together and removed together."""
    index.save_marks({"a/1": "one", "a/2": "two", "a0": "no", "a": "no", "b/1": "other"})
    assert index.marks("a/") == {"a/1": "one", "a/2": "two"}
    index.save_marks({"a/1": "", "a/2": "new", "a/3": ""})
    assert index.marks("a/") == {"a/2": "new"}
    assert index.marks("c/") == {}
    index.save_marks({})
    assert index.marks("b/") == {"b/1": "other"}


# -- the file -------------------------------------------------------------------------------------


def test_file_is_read_by_the_next_process(tmp_path):
    """Entries, envelopes, marks and intents survive; a closed index opens again when used."""
    index = FileIndex(tmp_path / "v.db")
    write(index, {"1": FULL})
    with index.transaction() as transaction:
        transaction.send("T", [b"one"])
    index.save_mark("a", "mark")
    die_after_intent(index, "Other", ["9"], [b"other"])
    index.close()
    for again in (index, FileIndex(tmp_path / "v.db")):
        assert dict(again.scan("T")) == {"1": FULL}
        assert bodies(again) == [b"one"]
        assert again.load_mark("a") == "mark"
        with again.transaction() as transaction:
            assert transaction.open_intents("Other") == {"9": INTENT}
        again.close()


def test_foreign_file_is_refused(tmp_path):
    """A database of another application, a newer one and a missing folder are named."""
    with sqlite3.connect(tmp_path / "v.db") as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")
    connection.close()
    with pytest.raises(ConfigError, match=r"v\.db"):
        FileIndex(tmp_path / "v.db").scan("T")
    index = FileIndex(tmp_path / "new.db")
    index.scan("T")
    index.close()
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer"):
        FileIndex(tmp_path / "new.db").scan("T")
    with pytest.raises(ConfigError, match="missing"):
        FileIndex(tmp_path / "missing" / "v.db").scan("T")


def test_index_without_shared_transactions_cannot_be_joined(index):
    """Only an SQL store can take part in a transaction of its caller."""
    with pytest.raises(ConfigError, match="transaction of the caller"):
        index.join(object())


# -- the columns ----------------------------------------------------------------------------------


@given(
    st.builds(stamp, st.integers(1, 9), st.sampled_from([1, 2])),
    st.sampled_from(Presence),
    st.dictionaries(strategies.names, strategies.versions, max_size=3),
    strategies.bodies,
    st.booleans(),
    st.none() | st.binary(min_size=1, max_size=32),
)
def test_columns_hold_an_entry(stamp, presence, versions, deferred, whole, echo):
    """An entry becomes columns and is the same again; most need no detail."""
    made = Entry(stamp, presence, versions, deferred, whole, echo)
    detail = made.pack_detail()
    assert Entry.unpack(bytes(stamp), int(presence), detail, echo) == made
    assert (detail is None) == (not versions and not deferred and whole)


def test_version_of_an_entry_is_its_greatest():
    """A patch may be later than the put below it, or older than a put above it."""
    assert entry(5).version == Version.of(5)
    assert entry(5, versions={"a": Version.of(7), "b": Version.of(6)}).version == Version.of(7)
