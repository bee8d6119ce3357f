"""The embedded broker: the contract of leased transports, and what is specific to a file."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from transports.contract import Broker, TransportContract, eventually, in_a_fork

from eventsync.errors import BusError, BusUnavailableError, ConfigError
from eventsync.transports.leased.message import OutboundMessage
from eventsync.transports.leased.process_identity import ProcessIdentity, current_process, is_dead
from eventsync.transports.sqlite.transport import SQLiteSettings, SQLiteTransport, connect

NOBODY = 65534


class TestSQLiteContract(TransportContract):
    """The conformance suite on a broker file."""

    connect = "eventsync.transports.sqlite.transport:connect"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a file that does not exist yet."""
        return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file that does not exist yet."""
    return tmp_path / "broker.db"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    """Return a broker on that file."""
    with Broker.opened(
        "eventsync.transports.sqlite.transport:connect", f"sqlite:///{path}"
    ) as broker:
        yield broker


def look(path: Path, sql: str, *values: Any) -> list[Any]:
    """Run a statement on the file with plain sqlite3, like another program."""
    stranger = sqlite3.connect(path, timeout=10)
    try:
        with stranger:
            return stranger.execute(sql, values).fetchall()
    finally:
        stranger.close()


def disk_usage(path: Path) -> int:
    """Return the size of the file and of the files that SQLite keeps beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


# -- the URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////var/lib/broker.db", "/var/lib/broker.db"),
        ("sqlite:///broker.db", os.path.abspath("broker.db")),
        ("sqlite:////var/a%20b%3F%3B.db?lease=5", "/var/a b?;.db"),
    ],
)
def test_urls_name_a_path(url: str, expected: str) -> None:
    """Three slashes start a path relative to the working directory, four an absolute path."""
    assert SQLiteSettings.from_url(url).path == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://host/broker.db", "sqlite:///relative"),
        ("redis://localhost", "sqlite:///relative"),
        ("sqlite://", "sqlite:///relative"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////var/lib/", "names no file"),
        ("sqlite:////b.db?leese=5", "known settings are busy_timeout"),
        ("sqlite:////b.db?lease=long", "lease='long'"),
        ("sqlite:////b.db?lease=0", "greater than 0"),
        ("sqlite:////b.db?lease=nan", "greater than 0"),
        ("sqlite:////b.db?synchronous=off", "neither full nor normal"),
    ],
)
def test_wrong_urls_are_refused(url: str, message: str) -> None:
    """A URL without a file or with a wrong setting raises an error that says so."""
    with pytest.raises(ConfigError, match=message):
        connect(url)


def test_the_url_goes_before_the_options() -> None:
    """Settings in the URL override the options; kombu's own options are ignored."""
    settings = SQLiteSettings.from_url(
        "sqlite:////b.db?lease=5&synchronous=normal", lease=7, lease_limit=3, max_retries=1
    )
    assert (settings.lease, settings.synchronous, settings.lease_limit) == (5.0, "normal", 3)


def test_kombu_takes_the_transport(path: Path) -> None:
    """kombu.Connection works with the transport class, keeps the URL, and can be pickled."""
    url = f"sqlite:///{path}?lease=5"
    with kombu.Connection(url, transport=SQLiteTransport) as connection:
        connection.default_channel.queue_declare("crm")
        assert connection.as_uri() == url
        copy = pickle.loads(pickle.dumps(connection))
    with copy:
        assert copy.default_channel.queue_declare("crm", passive=True).message_count == 0
    assert path.exists()


# -- what goes wrong with a file ---------------------------------------------------------------


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """The error names the directory, and kombu does not retry."""
    with pytest.raises(BusError, match=f"directory {tmp_path}/none .*does not exist"):
        connect(f"sqlite:///{tmp_path}/none/b.db").connect()


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """A URL that names a directory is refused."""
    with pytest.raises(BusError, match="is a directory"):
        connect(f"sqlite:///{tmp_path}").connect()


def test_a_foreign_file_is_left_alone(path: Path) -> None:
    """A file that is not a database is refused and not changed."""
    path.write_bytes(b"precious " * 1000)
    with pytest.raises(BusError, match="not an SQLite database"):
        connect(f"sqlite:///{path}").connect()
    assert path.read_bytes() == b"precious " * 1000


def test_a_foreign_database_is_left_alone(path: Path) -> None:
    """Another application's database is refused and not changed by a byte."""
    look(path, "CREATE TABLE customer (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(BusError, match=r"another application.*customer"):
        connect(f"sqlite:///{path}").connect()
    assert path.read_bytes() == before
    assert disk_usage(path) == len(before)


def test_a_newer_schema_is_refused(broker: Broker, path: Path) -> None:
    """A file with a newer schema is refused."""
    look(path, "PRAGMA user_version = 99")
    with pytest.raises(BusError, match="schema 99"):
        connect(f"sqlite:///{path}").connect()


@pytest.mark.parametrize("read_only", ["file", "directory"])
def test_no_permission_to_write_is_said(read_only: str) -> None:
    """A file or directory without write permission raises an error that names it."""
    directory = Path(tempfile.mkdtemp())
    path = directory / "broker.db"
    with connect(f"sqlite:///{path}") as connection:
        connection.connect()
    modes = {"file": (0o444, 0o777), "directory": (0o666, 0o555)}
    os.chmod(path, modes[read_only][0])
    os.chmod(directory, modes[read_only][1])

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        with pytest.raises(BusError, match=r"cannot be opened for writing.*directory"):
            connect(f"sqlite:///{path}").connect()

    try:
        in_a_fork(unprivileged)
    finally:
        left = sorted(file.name for file in directory.iterdir())
        shutil.rmtree(directory)
    assert left == ["broker.db"], "nothing that the right user could not write"


def test_a_full_disk_refuses_and_recovers(broker: Broker) -> None:
    """On a full disk a publish raises a retryable error; with free space it works again."""
    broker.declare("crm")
    with broker.channel.backend._file.connection() as db:
        (used,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count={used}")
    with pytest.raises(BusUnavailableError, match=r"no room left .*; nothing was stored"):
        broker.publish("crm", "x" * 100_000)
    assert isinstance(BusUnavailableError(""), broker.connection.recoverable_connection_errors)
    with broker.channel.backend._file.connection() as db:
        db.execute("PRAGMA max_page_count=100000")
    broker.publish("crm", "y")
    assert [message.body for message in broker.receive("crm", 1)] == [b"y"]


def test_a_file_that_was_removed_is_noticed(broker: Broker, path: Path) -> None:
    """Publishing to a deleted file raises and does not lose the message silently."""
    broker.declare("crm")
    path.unlink()
    for _ in range(2):
        with pytest.raises(BusUnavailableError, match="removed or replaced"):
            broker.publish("crm", "1")

    def child() -> None:
        with pytest.raises(BusUnavailableError):
            broker.publish("crm", "1")

    in_a_fork(child)
    assert not path.exists()


def test_a_lock_is_waited_for(broker: Broker, path: Path) -> None:
    """A write waits for another writer, and raises a retryable error if that takes too long."""
    broker.declare("crm")
    hasty = broker.other(busy_timeout=0.05)
    stranger = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusUnavailableError, match=r"locked for 0\.05 s"):
        hasty.publish("crm", "1")
    timer = threading.Timer(0.3, stranger.execute, ["COMMIT"])
    timer.start()
    broker.publish("crm", "2")
    timer.join()
    stranger.close()
    assert broker.ready("crm") == 1


def test_a_failing_upkeep_is_raised_in_the_consumer(broker: Broker, path: Path) -> None:
    """If the background thread cannot extend leases, the next drain raises its error."""
    broker.declare("crm")
    broker.publish("crm", "1")
    hasty = broker.other(busy_timeout=0.05, lease=0.3)
    hasty.consume("crm", prefetch=10)
    hasty.connection.drain_events(timeout=1)
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusUnavailableError, match="locked"):
        hasty.drain_until(lambda: False)
    stranger.execute("COMMIT")
    stranger.close()
    hasty.channel.qos.in_flight.clear()


# -- rows that a stranger has put there ---------------------------------------------------------


def test_foreign_rows_are_delivered_as_bytes(broker: Broker, path: Path) -> None:
    """Rows of other programs are delivered as bytes, whatever their columns hold."""
    broker.declare("crm")
    broker.publish("crm", "good")
    columns = "(id, body, headers, properties, exchange, routing_key, content_type)"
    values = [
        ("text", "{broken", "[1]", 1, 2.5, None),
        (None, b"\xff\xfe", 7, None, None, b"\xff"),
        (42, "[" * 10_000, None, None, None, None),
        (b"\x00\xff", '"\ud83d"'.encode("utf-8", "surrogatepass"), None, None, None, None),
    ]
    for number, row in enumerate(values, 100):
        look(path, f"INSERT INTO message {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", number, *row)
    look(path, "INSERT INTO message (id, body) VALUES (104, CAST(X'FF80' AS TEXT))")
    for number in range(100, 106):  # 105 has no message at all
        look(path, "INSERT INTO delivery (queue, id) SELECT id, ? FROM queue", number)
    messages = broker.receive("crm", 7)
    assert [message.body for message in messages] == [
        b"good",
        b"text",
        b"",
        b"42",
        b"\x00\xff",
        b"\xff\x80",
        b"",
    ]
    assert all(isinstance(message.body, bytes) for message in messages)
    assert "x-malformed" in messages[1].headers
    assert "x-malformed" in messages[2].headers
    assert "x-malformed" in messages[3].headers
    for message in messages:
        message.ack()
    assert broker.channel.flush() == 7


def test_headers_have_to_be_json(broker: Broker) -> None:
    """A header that is not JSON is refused at publish, and nothing is stored."""
    broker.declare("crm")
    batch = [OutboundMessage(b"1", "crm"), OutboundMessage(b"2", "crm", headers={"raw": b"\xff"})]
    with pytest.raises(BusError, match="headers"):
        broker.channel.publish_many(batch)
    assert broker.ready("crm") == 0


# -- durability, forks, threads ----------------------------------------------------------------


@pytest.mark.parametrize(("option", "expected"), [("full", 2), ("normal", 1)])
def test_publishing_is_synchronous(broker: Broker, option: str, expected: int) -> None:
    """Publishing synchronises as set, by default fully; leasing never fully."""
    other = broker.other(**({"synchronous": option} if option != "full" else {}))
    file = other.channel.backend._file

    def level() -> int:
        with file.connection() as db:
            return int(db.execute("PRAGMA synchronous").fetchone()[0])

    other.publish("crm", "1")
    assert level() == expected
    other.receive("crm", 1)
    assert level() == 1
    other.publish("crm", "2")
    assert level() == expected


def test_a_forked_child_outlives_its_parents_connection(broker: Broker) -> None:
    """Messages that a child publishes survive the closing of its parent's connection."""
    broker.declare("crm")
    closed, child_published = os.pipe(), os.pipe()

    def child() -> None:
        broker.publish("crm", "before")
        os.write(child_published[1], b"x")
        os.read(closed[0], 1)
        broker.publish("crm", "after")

    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    os.read(child_published[0], 1)
    broker.connection.release()
    os.write(closed[1], b"x")
    os.waitpid(pid, 0)
    for descriptor in (*closed, *child_published):
        os.close(descriptor)
    bodies = [message.body for message in broker.other().receive("crm", 2)]
    assert bodies == [b"before", b"after"]


def test_a_fork_waits_for_transactions(broker: Broker) -> None:
    """A fork while other threads publish and consume disturbs neither process."""
    broker.declare("crm")
    stopping = threading.Event()
    published = []

    def publish() -> None:
        while not stopping.is_set():
            broker.publish("crm", "x")
            published.append(1)

    thread = threading.Thread(target=publish)
    thread.start()
    for _ in range(5):
        in_a_fork(lambda: broker.publish("crm", "child"))
    stopping.set()
    thread.join()
    assert broker.ready("crm") == len(published) + 5


def test_processes_make_the_file_together(broker: Broker, tmp_path: Path) -> None:
    """Several processes that open a new file together create its tables once."""
    urls = [f"sqlite:///{tmp_path}/fresh-{number}.db" for number in range(10)]
    start = os.pipe()
    pids = []
    for _ in range(4):
        pids.append(os.fork())
        if pids[-1] == 0:
            status = 1
            try:
                os.read(start[0], 1)
                for url in urls:
                    with connect(url) as connection:
                        connection.default_channel.publish_many([OutboundMessage(b"1", "crm")])
                status = 0
            finally:
                os._exit(status)
    os.write(start[1], b"1234")
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(start[0])
    os.close(start[1])
    assert statuses == [0, 0, 0, 0]
    for url in urls:
        with connect(url) as connection:
            assert connection.default_channel.queue_stats("crm").ready == 4


def test_threads_share_a_file(broker: Broker) -> None:
    """Producer and consumer threads with a connection each lose nothing."""
    broker.declare("crm")
    got: list[bytes] = []

    def produce(number: int) -> None:
        with connect(broker.url) as connection:
            for i in range(50):
                connection.default_channel.publish_many(
                    [OutboundMessage(b"%d-%d" % (number, i), "crm")]
                )

    def consume() -> None:
        with connect(broker.url) as connection:
            channel = connection.default_channel

            def settle(message: Any) -> None:
                got.append(message.body)
                message.ack()

            channel.basic_consume("crm", False, settle, "tag")
            while len(got) < 150:
                try:
                    connection.drain_events(timeout=0.05)
                except TimeoutError:
                    continue

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(3)]
    threads += [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(b"%d-%d" % (n, i) for n in range(3) for i in range(50))
    assert broker.channel.queue_stats("crm")[:2] == (0, 0)


# -- who is alive ------------------------------------------------------------------------------


def test_a_process_is_told_from_its_successor() -> None:
    """``is_dead`` knows only processes of this scope, by process id and start time."""
    me = current_process()
    assert not is_dead(me, seen_from=me)
    assert is_dead(me._replace(started="1"), seen_from=me), "the process id was used again"
    assert not is_dead(me._replace(started=""), seen_from=me), "cannot tell"
    child = os.fork()
    if child == 0:
        os._exit(0)
    gone = ProcessIdentity(me.scope, child, "1")
    eventually(lambda: is_dead(gone._replace(started=""), seen_from=me))  # a zombie
    os.waitpid(child, 0)
    assert is_dead(gone, seen_from=me)
    assert not is_dead(gone._replace(scope="another host"), seen_from=me)
    assert not is_dead(gone._replace(scope=""), seen_from=me._replace(scope=""))


def test_leases_of_before_a_restart_are_void(broker: Broker, path: Path) -> None:
    """A consumer whose last refresh is in the future is from before a restart, and dead."""
    broker.declare("crm")
    broker.publish("crm", "1")
    other = broker.other()
    other.receive("crm", 1)
    look(path, "UPDATE consumer SET scope = 'another boot', seen = seen + 1000000")
    got = broker.consume("crm")
    broker.drain_until(lambda: got)
    assert other.channel.extend_leases() is False


def test_a_dropped_channel_lets_its_leases_run_out(broker: Broker) -> None:
    """The leases of a channel that is dropped without closing expire."""
    broker.declare("crm")
    broker.publish("crm", "1")
    lost = connect(f"{broker.url}?lease=0.3")
    lost.default_channel.basic_get("crm")
    del lost
    gc.collect()
    got = broker.consume("crm")
    broker.drain_until(lambda: got)


def test_nothing_is_left_behind(broker: Broker, path: Path) -> None:
    """A payload is removed with its last delivery, however the messages are settled."""
    for queue in ("crm", "cache", "tracker"):
        broker.declare(queue, "e", "fanout", "")
    broker.channel.publish_many([OutboundMessage(b"%d" % n, "k", "e") for n in range(9)])
    broker.receive("crm", 9)[4].reject()
    other = broker.other()
    for message in other.receive("cache", 9)[::2]:
        message.ack()
    other.channel.flush()
    assert look(path, "SELECT count(*) FROM message") == [(9,)]
    broker.channel.queue_delete("tracker")
    broker.channel.basic_ack(0, multiple=True)
    broker.channel.flush()
    assert look(path, "SELECT count(*) FROM message") == [(4,)]
    other.connection.release()
    assert broker.channel.queue_purge("cache") == 4
    for table in ("message", "delivery", "copy"):
        assert look(path, f"SELECT count(*) FROM {table}") == [(0,)], table
    broker.connection.release()
    assert look(path, "SELECT count(*) FROM consumer") == [(0,)]


# -- size and cost -----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 6_000_000])
def test_the_file_is_small_after_a_drain(broker: Broker, path: Path, kept: int) -> None:
    """Draining 20,000 messages frees their space, while another queue keeps its messages."""
    broker.declare("crm")
    broker.declare("dead")
    broker.publish("dead", "x" * kept)
    for _ in range(20):
        broker.publish("crm", *["x" * 1000] * 1000)
    assert disk_usage(path) > 20_000_000
    consumer = broker.other()
    got = consumer.consume("crm", prefetch=1000)
    count = 0
    while count < 20_000:
        consumer.connection.drain_events(timeout=5)
        count += len(got)
        for message in got:
            message.ack()
        got.clear()
    consumer.channel.flush()
    eventually(lambda: disk_usage(path) < 10_000_000 + 2 * kept)  # while the consumer runs
    consumer.connection.release()
    broker.connection.release()
    assert disk_usage(path) < 1_000_000 + 2.2 * kept
    assert [m.body for m in broker.other().receive("dead", 1)] == [b"x" * kept]


def test_a_lease_is_bounded_in_bytes(broker: Broker) -> None:
    """A lease takes at most ``lease_bytes``, but at least one message."""
    broker.declare("crm")
    broker.publish("crm", *["x" * 1000] * 10)
    other = broker.other(lease_bytes=2500)
    got = other.consume("crm")
    other.connection.drain_events(timeout=5)
    assert len(got) == 3


def test_waiting_costs_little(broker: Broker) -> None:
    """A waiting consumer uses little processor time."""
    broker.declare("crm")
    broker.consume("crm")
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        broker.connection.drain_events(timeout=1.0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.1 * (time.monotonic() - started)
