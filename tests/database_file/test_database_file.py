"""The database file: what it refuses, how it waits, how it survives threads and forks."""

import os
import sqlite3
import threading
import time

import pytest

from eventsync.database_file import DatabaseFile
from eventsync.errors import BusError, BusUnavailableError, ConfigError, StoreUnavailableError
from eventsync.index import FileIndex

APPLICATION_ID = 0x65737474
SCHEMA = "CREATE TABLE item (n INTEGER); CREATE INDEX item_n ON item (n);"


def open_file(path, **options):
    arguments = {
        "kind": "test file",
        "application_id": APPLICATION_ID,
        "schema_version": 2,
        "schema": SCHEMA,
        "unavailable": StoreUnavailableError,
        "invalid": ConfigError,
        "repair": "restore it",
        "timeout": 10.0,
    }
    return DatabaseFile(path, **arguments | options)


def insert(file, *numbers):
    with file.transaction() as connection:
        connection.executemany("INSERT INTO item VALUES (?)", [(number,) for number in numbers])


def numbers(file):
    return [number for (number,) in file.read("SELECT n FROM item ORDER BY n")]


def in_child(action):
    """Run ``action`` in a forked child; return whether it ended well."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        action()
    except BaseException as error:
        print(f"child: {error!r}")
        os._exit(1)
    os._exit(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "test.db"


@pytest.fixture
def file(path):
    file = open_file(path)
    yield file
    file.close()


def test_a_new_file_says_what_it_is(file, path):
    """A new file is in WAL mode and has the application id, the schema version and the tables."""
    insert(file, 1)
    with sqlite3.connect(path) as other:
        pragmas = [
            other.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "application_id", "user_version")
        ]
        tables = {name for (name,) in other.execute("SELECT name FROM sqlite_master")}
    other.close()
    assert pragmas == ["wal", APPLICATION_ID, 2]
    assert tables == {"item", "item_n"}


def test_nothing_is_opened_before_use(path):
    """A file that is only named is not created, and an existing one keeps its content."""
    open_file(path)
    assert not path.exists()
    first = open_file(path)
    insert(first, 1)
    first.close()
    again = open_file(path)
    assert numbers(again) == [1]
    again.close()


def test_a_transaction_takes_effect_whole_or_not_at_all(file):
    """An error in the block undoes what the block wrote, and the file can be used again."""

    def fail():
        with file.transaction() as connection:
            connection.execute("INSERT INTO item VALUES (1)")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    insert(file, 2)
    assert numbers(file) == [2]


def test_durability_is_chosen_for_each_transaction(file):
    """A transaction that need not be durable is not synchronised, and the next one is again."""
    levels = []
    for durable in (True, False, True):
        with file.transaction(durable=durable) as connection:
            levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [2, 1, 2]


# -- files that are refused ------------------------------------------------------------------------


def test_a_missing_directory_is_named(tmp_path):
    """The error names the directory that is missing, and says to create it."""
    with pytest.raises(
        ConfigError, match=rf"{tmp_path}/none of the test file.*create the directory"
    ):
        numbers(open_file(tmp_path / "none" / "test.db"))


def test_a_directory_is_refused(tmp_path):
    """A path that names a directory is refused by name."""
    with pytest.raises(ConfigError, match="is a directory, not a test file"):
        numbers(open_file(tmp_path))


def test_another_applications_database_is_left_unchanged(path):
    """A database with another application id is refused, and not a byte of it changes."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE customer (id INTEGER)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"another application.*customer.*name another file"):
        numbers(open_file(path))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["test.db"]


def test_two_kinds_of_files_do_not_take_each_other(file, path):
    """A file of one kind is refused by a holder of another kind."""
    insert(file, 1)
    with pytest.raises(ConfigError, match="not a version index"):
        FileIndex(path).waiting()


def test_no_database_at_all_is_left_unchanged(path):
    """A file that is no SQLite database is refused, and not a byte of it changes."""
    path.write_bytes(b"precious " * 1000)
    with pytest.raises(ConfigError, match="not an SQLite database"):
        numbers(open_file(path))
    assert path.read_bytes() == b"precious " * 1000


@pytest.mark.parametrize(
    ("known", "said"), [(1, "newer eventsync.*schema 2.*upgrade"), (3, "schema 2.*needs schema 3")]
)
def test_another_schema_version_is_refused(file, path, known, said):
    """A file of a newer or an older schema is refused, with what to do."""
    insert(file, 1)
    with pytest.raises(ConfigError, match=said):
        numbers(open_file(path, schema_version=known))


def test_a_damaged_file_says_how_to_repair_it(file, path):
    """A damaged file raises the error that needs a person, with the hint of its kind."""
    insert(file, *range(5000))
    file.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is damaged.*restore it"):
        numbers(open_file(path))


def test_the_errors_are_those_of_the_holder(path):
    """The caller names the two classes of errors that are raised."""
    file = open_file(path.parent / "none" / "x", unavailable=BusUnavailableError, invalid=BusError)
    with pytest.raises(BusError):
        numbers(file)


# -- other writers ---------------------------------------------------------------------------------


def test_another_writer_is_waited_for(file, path):
    """A writer waits while another holds the lock, and reading does not wait."""
    insert(file, 1)
    stranger = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, stranger.execute, ["COMMIT"])
    timer.start()
    assert numbers(file) == [1]
    insert(file, 2)
    timer.join()
    stranger.close()
    assert numbers(file) == [1, 2]


def test_a_lock_that_stays_is_an_error(file, path):
    """A file that stays locked raises the error that may be tried again, with a hint."""
    insert(file, 1)
    hasty = open_file(path, timeout=0.05)
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match=r"locked for 0\.05 s.*look for a program"):
        insert(hasty, 2)
    stranger.close()
    insert(hasty, 2)
    hasty.close()
    assert numbers(file) == [1, 2]


def test_a_file_that_was_replaced_is_noticed(file, path):
    """A file that was removed is an error until it is closed, and nothing is written elsewhere."""
    insert(file, 1)
    path.unlink()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="removed or replaced"):
            insert(file, 2)
    assert not path.exists()
    file.close()
    insert(file, 3)
    assert numbers(file) == [3]


def test_an_exclusive_lock_is_held_by_one(file, path):
    """A second thread and a second holder wait for the exclusive lock; its own file carries it."""
    hasty = open_file(path, timeout=0.05)
    with file.exclusive("lock"):
        with pytest.raises(StoreUnavailableError, match="locked"), hasty.exclusive("lock"):
            pass
        assert hasty.try_lock("lock") is None
    lock = hasty.try_lock("lock")
    assert lock is not None
    lock.close()
    with hasty.exclusive("lock"):
        pass
    hasty.close()
    assert path.with_name("test.db.lock").exists()


# -- threads and forks -----------------------------------------------------------------------------


def test_each_thread_has_a_connection_of_its_own(file):
    """A thread reads while another one is in the middle of its transaction."""
    insert(file, 1)
    seen = []
    with file.transaction() as connection:
        connection.execute("INSERT INTO item VALUES (2)")
        thread = threading.Thread(target=lambda: seen.extend(numbers(file)))
        thread.start()
        thread.join()
    assert seen == [1]
    assert numbers(file) == [1, 2]


def test_many_threads_write(file):
    """What many threads write at once is all there."""
    threads = [
        threading.Thread(target=lambda n=n: [insert(file, n * 50 + i) for i in range(50)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(file) == list(range(400))


def test_a_shared_connection_serves_threads_in_turn(path):
    """With one shared connection, a thread waits for the transaction of another one."""
    file = open_file(path, shared=True)
    insert(file, 1)
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(numbers(file)))
    with file.transaction() as connection:
        connection.execute("INSERT INTO item VALUES (2)")
        thread.start()
        time.sleep(0.1)
        assert not seen
    thread.join()
    assert seen == [1, 2]
    file.close()


def test_a_closed_file_is_opened_again_by_every_thread(file):
    """After ``close`` the thread that closed it and other threads can go on."""
    ready, closed = threading.Event(), threading.Event()

    def other():
        insert(file, 1)
        ready.set()
        closed.wait()
        insert(file, 2)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    file.close()
    closed.set()
    thread.join()
    assert numbers(file) == [1, 2]


def test_what_a_child_commits_outlives_the_parents_close(file, path):
    """A child's commits are kept although the parent closes its connections meanwhile."""
    insert(file, 1)
    numbers(file)
    started, done = os.pipe(), os.pipe()

    def child():
        insert(file, 2)
        os.write(started[1], b".")
        os.read(done[0], 1)
        insert(file, 3)

    pid = os.fork()
    if not pid:
        try:
            child()
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.read(started[0], 1)
    assert numbers(file) == [1, 2]
    file.close()
    os.write(done[1], b".")
    assert os.waitpid(pid, 0)[1] == 0
    for each in (*started, *done):
        os.close(each)
    assert numbers(file) == [1, 2, 3]


def test_a_fork_waits_for_the_transactions_of_other_threads(file):
    """A fork lets another thread finish its transaction, and that thread goes on afterwards."""
    insert(file, 0)
    begun = threading.Event()

    def write():
        with file.transaction() as connection:
            connection.execute("INSERT INTO item VALUES (1)")
            begun.set()
            time.sleep(0.3)
            connection.execute("INSERT INTO item VALUES (2)")
        insert(file, 3)

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()

    def child():
        assert {0, 1, 2} <= set(numbers(file))

    assert in_child(child)
    thread.join()
    assert numbers(file) == [0, 1, 2, 3]


def test_a_fork_inside_a_transaction_ends_it(file):
    """A thread that forks inside its transaction is told so, and nothing of it is written."""
    insert(file, 1)

    def fork_inside():
        with file.transaction() as connection:
            connection.execute("INSERT INTO item VALUES (2)")
            assert in_child(lambda: None)
            connection.execute("INSERT INTO item VALUES (3)")

    with pytest.raises(StoreUnavailableError, match="do not fork"):
        fork_inside()
    assert numbers(file) == [1]
    insert(file, 4)
    assert in_child(lambda: insert(file, 5))
    assert numbers(file) == [1, 4, 5]
