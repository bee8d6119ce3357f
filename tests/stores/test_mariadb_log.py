"""Capture by MariaDB's binary log: the conformance suite, and what is particular to the log."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
import uuid
from decimal import Decimal
from uuid import UUID

import pymysql
import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from support.foreign_sql import ForeignMariadb
from support.told import Told

from eventsync.engine.change_source import MarkLostError
from eventsync.engine.finding import Level
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.testing import SourceContract
from eventsync.testing.harness import Item
from eventsync.testing.sources import insert

LOG = (
    *("--log-bin=log", "--server-id=7", "--binlog-format=ROW", "--binlog-row-metadata=FULL"),
    "--expire-logs-days=1",
)
TABLE = "CREATE TABLE note (id bigint PRIMARY KEY, text varchar(50), mail varchar(50) UNIQUE)"


class Note(Record):
    id: int = Field(key=True)
    text: str | None = None


@pytest.fixture(scope="module")
def server():
    with MariaServer(options=LOG) as server:
        yield server


@pytest.fixture
def database(server):
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex}"
    run(server.url, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return on(server, name)


def on(server, name):
    return sa.make_url(server.url).set(database=name).render_as_string(False)


def connect(url, **options):
    url = sa.make_url(url)
    return pymysql.connect(
        host=url.host, port=url.port, user=url.username, database=url.database, ssl_disabled=True,
        **options,
    )  # fmt: skip


def run(url, *statements, **options):
    """Run statements in one transaction of another program."""
    with contextlib.closing(connect(url, **options)) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        connection.commit()
        return list(cursor.fetchall())


class TestLog(ForeignMariadb, SourceContract):
    kind = "log"
    installs = False
    truncates = True
    loses = True
    resolution = 1.0  # the events have seconds

    @pytest.fixture(autouse=True)
    def _server(self, server):
        type(self).server = server.url

    def lose(self, folder):
        self._run_on("mysql", "RESET MASTER")

    def test_a_live_change_has_its_moment_to_a_fraction_of_a_second(self, tmp_path):
        """The log has seconds only, but the last look at its end is known."""
        process = self.running(tmp_path)
        for number in range(5):
            process.follower.step(0.01)
            began = time.time()
            self.edit(tmp_path, insert(Item, id=number, name="Ada"))
            process.until(lambda n=number: len(process.published()) > n)
            moment = process.published()[-1].version.millis / 1000
            assert began - 0.15 <= moment <= time.time()


# -- every way to write


def test_every_way_to_write_is_told(database, tmp_path):
    run(database, TABLE, "CREATE TABLE other (id bigint PRIMARY KEY)")
    with Told(database, Note, kind="log") as told:
        run(database, "INSERT INTO note VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
        assert follow(told) == {"1", "2", "3"}
        run(database, "INSERT INTO note VALUES (3, 'd', 'z') ON DUPLICATE KEY UPDATE text = 'e'")
        assert follow(told) == {"3"}
        run(database, "REPLACE INTO note VALUES (9, 'again', 'y')")
        assert follow(told) >= {"2", "9"}
        run(database, "UPDATE note SET id = 10 WHERE id = 3")
        assert follow(told) == {"3", "10"}
        (tmp_path / "rows").write_text("20\ta\tm\n21\tb\tn\n")
        run(database, f"LOAD DATA LOCAL INFILE '{tmp_path / 'rows'}' INTO TABLE note",
            local_infile=True)  # fmt: skip
        assert follow(told) == {"20", "21"}
        run(database, "INSERT INTO other VALUES (1), (2)")
        run(database, "INSERT INTO note SELECT id + 30, 'q', NULL FROM other")
        assert follow(told) == {"31", "32"}
        run(database, "UPDATE note, other SET note.text = 'v' WHERE note.id = other.id")
        assert follow(told) == {"1"}
        run(database, "DELETE note FROM note, other WHERE note.id = other.id + 30")
        assert follow(told) == {"31", "32"}
        run(database, "START TRANSACTION", "INSERT INTO note VALUES (5, 'a', 'q')", "ROLLBACK")
        assert follow(told, wait=0.0) == set()


def follow(told, *, wait=5.0):
    changes = told.source.changes(told.mark, wait=wait)
    told.mark = changes.mark
    assert not changes.whole
    return set(changes.keys.get("Note", {}))


def ask_until_it_fails(told):
    for _ in range(100):
        told.source.changes(told.mark, wait=0.1)


def test_an_xa_transaction_is_told_when_it_is_committed(database):
    """Until then its rows are in the log, but not in the table."""
    run(database, TABLE)
    xa = ["XA START 'a'", "INSERT INTO note VALUES (1, 'a', 'x')", "XA END 'a'", "XA PREPARE 'a'"]
    with Told(database, Note, kind="log") as told, contextlib.closing(connect(database)) as one:
        for statement in xa:
            one.cursor().execute(statement)
        assert follow(told, wait=0.2) == set()
        one.cursor().execute("XA COMMIT 'a'")
        assert follow(told) == {"1"}
        for statement in [s.replace("'a'", "'b'").replace("(1", "(2").replace("'x'", "'y'")
                          for s in xa]:  # fmt: skip
            one.cursor().execute(statement)
        assert follow(told, wait=0.2) == set()
        mark = told.mark
        told.source.close()
        told.source.open(mark)
        one.cursor().execute("XA COMMIT 'b'")
        assert told.whole() == {"Note"}  # its keys were in a part of the log that was read before


@pytest.mark.parametrize(
    "statements",
    [
        ["TRUNCATE note"],
        ["TRUNCATE TABLE `note`", "INSERT INTO note VALUES (2, 'a', 'x')"],
        ["DROP TABLE note", TABLE, "INSERT INTO note VALUES (2, 'a', 'x')"],
        ["RENAME TABLE note TO old, spare TO note"],
        ["ALTER TABLE note MODIFY text varchar(1)"],
        ["SET SESSION binlog_format = STATEMENT", "UPDATE note SET text = 'b'"],
    ],
)
def test_a_statement_that_tells_no_rows_makes_all_rows_be_read(database, statements):
    run(database, TABLE, "CREATE TABLE spare LIKE note", "INSERT INTO note VALUES (1, 'a', 'x')")
    with Told(database, Note, kind="log") as told:
        run(database, *statements)
        assert told.whole() == {"Note"}


def test_what_the_log_does_not_tell_by_row_makes_all_rows_be_read(database, server):
    """Compressed events, and rows without the names of their columns."""
    run(database, TABLE, "CREATE TABLE spare LIKE note")
    for settings in (
        ("log_bin_compress = 1", "log_bin_compress_min_len = 10"),
        ("binlog_row_metadata = NO_LOG",),
    ):
        with Told(database, Note, kind="log") as told:
            run(server.url, *(f"SET GLOBAL {one}" for one in settings))
            try:
                run(database, f"REPLACE INTO note VALUES (1, '{'a' * 40}', NULL)")
                assert told.whole() == {"Note"}
                assert not told.source.state().installed
            finally:
                run(server.url, "SET GLOBAL log_bin_compress = 0",
                    "SET GLOBAL binlog_row_metadata = FULL")  # fmt: skip


def test_a_row_image_with_the_key_only_is_enough(database):
    run(database, TABLE, "INSERT INTO note VALUES (1, 'a', 'x'), (2, 'b', 'y')")
    with Told(database, Note, kind="log") as told:
        minimal = "SET SESSION binlog_row_image = MINIMAL"
        run(database, minimal, "UPDATE note SET text = 'c' WHERE id = 1")
        assert follow(told) == {"1"}
        run(database, minimal, "UPDATE note SET id = 3 WHERE id = 1")
        assert follow(told) == {"1", "3"}
        run(database, minimal, "DELETE FROM note WHERE id = 2")
        assert follow(told) == {"2"}


KINDS = {
    "tinyint": (int, "-7"),
    "int unsigned": (int, "4294967295"),
    "bigint unsigned": (int, "9223372036854775807"),
    "decimal(12,3)": (Decimal, "-1.500"),
    "varchar(50) CHARACTER SET latin1": (str, "'é \"x\" \\\\ '"),
    "varchar(50) COLLATE utf8mb4_nopad_bin": (str, "'{a,b} \\'世 '"),
    "char(36)": (UUID, "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "binary(16)": (UUID, "x'a0eebc999c0b4ef8bb6d6bb9bd380000'"),
    "varbinary(20)": (bytes, "x'00ff5c27'"),
    "date": (dt.date, "'2026-12-01'"),
    "datetime(6)": (dt.datetime, "'2026-12-01 01:02:03.123456'"),
    "datetime": (dt.datetime, "'2026-12-01 01:02:03'"),
    "timestamp(6)": (dt.datetime, "'2026-12-01 01:02:03.123456'"),
    "time(3)": (dt.time, "'01:02:03.500'"),
    "enum('happy', 'sad')": (str, "'sad'"),
    "bit(8)": (int, "b'101'"),
    "year": (int, "2026"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_each_type_are_told_as_they_are_read(database, kind):
    python, value = KINDS[kind]
    zoned = {"timestamp(6)": True}.get(kind, False)
    options = {"zoned": zoned} if python in (dt.datetime, dt.time) else {}
    record = type(
        "Kind",
        (Record,),
        {"__annotations__": {"id": python, "text": str | None},
         "id": Field(key=True, **options), "text": None, "__module__": __name__},
    )  # fmt: skip
    run(database, f"CREATE TABLE kind (id {kind} PRIMARY KEY, text varchar(10))")
    with Told(database, record, kind="log") as told:
        run(database, "SET time_zone = '+05:30'", f"INSERT INTO kind VALUES ({value}, 'a')")
        keys = told.keys(record)
        query = Query.parse(record.__record__)
        assert keys == {one.key for one in told.store.accessor(record).find(query)}
        assert len(keys) == 1


def test_a_key_of_a_type_that_the_log_has_otherwise_is_refused(database):
    run(database, "CREATE TABLE note (id uuid PRIMARY KEY, text text)")
    record = type("Note", (Record,), {"__annotations__": {"id": UUID, "text": str | None},
                  "id": Field(key=True), "text": None, "__module__": __name__})  # fmt: skip
    with pytest.raises(ConfigError, match="type uuid"):
        Told(database, record, kind="log")


def test_rows_that_a_foreign_key_changes_are_a_risk_that_a_check_names(database):
    """InnoDB does not write them to the log."""
    run(
        database,
        TABLE,
        "CREATE TABLE parent (id bigint PRIMARY KEY)",
        "ALTER TABLE note ADD CONSTRAINT of_parent FOREIGN KEY (id) REFERENCES parent (id)"
        " ON DELETE CASCADE",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO note VALUES (1, 'a', 'x')",
    )
    with Told(database, Note, kind="log") as told:
        run(database, "DELETE FROM parent")
        assert follow(told, wait=0.2) == set()
        (finding,) = [f for f in told.source.findings() if f.level is Level.RISK]
        assert "'of_parent'" in finding.text


# -- much


def test_a_transaction_larger_than_a_call_is_told_in_parts(database):
    """The mark stays before it until its last part is told."""
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        told.source._limit = 1000
        run(database, "INSERT INTO note SELECT seq, 'a', NULL FROM seq_1_to_20000")
        found, parts, first = set(), 0, told.mark
        while len(found) < 20000:
            changes = told.source.changes(told.mark, wait=5.0)
            assert changes.count < 3000
            if changes.behind:
                assert changes.mark == first
            found |= set(changes.keys["Note"])
            parts += 1
        assert parts > 5
        assert told.source.changes(told.mark, wait=0.0).mark != first


def test_a_change_is_told_only_when_a_reader_sees_it(database):
    """The log has a transaction before the table has it."""
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        accessor, unseen = told.store.accessor(Note), []
        with contextlib.closing(connect(database, autocommit=True)) as one:
            for number in range(300):
                one.cursor().execute(f"INSERT INTO note VALUES ({number}, 'a', NULL)")
                told_keys = follow(told)
                unseen += [key for key in told_keys if accessor.get(key) is None]
        assert unseen == []


def test_a_commit_that_waits_for_a_replica_is_told_when_a_reader_sees_it(database, server):
    """With semi-synchronous replication it is in the log, but not in the table, for a second."""
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        run(server.url, "SET GLOBAL rpl_semi_sync_master_timeout = 1000",
            "SET GLOBAL rpl_semi_sync_master_wait_point = AFTER_SYNC",
            "SET GLOBAL rpl_semi_sync_master_enabled = ON")  # fmt: skip
        try:
            insert_one = "INSERT INTO note VALUES (1, 'a', NULL)"
            writer = threading.Thread(target=run, args=(database, insert_one))
            writer.start()
            assert follow(told) == {"1"}
            assert told.store.accessor(Note).get("1") is not None
            writer.join()
        finally:
            run(server.url, "SET GLOBAL rpl_semi_sync_master_enabled = OFF")


# -- the mark


def test_an_idle_log_that_goes_on_in_another_file_keeps_its_mark(database, server):
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        for _ in range(3):
            run(server.url, "FLUSH BINARY LOGS")
            assert follow(told, wait=0.3) == set()
            told.source.close()
            told.mark = told.source.open(told.mark)
        run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
        assert follow(told) == {"1"}
        assert told.source.state().lag_bytes == 0


def test_logs_that_were_purged_lose_the_mark(database, server):
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        told.source.close()
        run(server.url, "FLUSH BINARY LOGS")
        ((last, *_),) = run(server.url, "SHOW MASTER STATUS")
        run(server.url, f"PURGE BINARY LOGS TO '{last}'")
        with pytest.raises(MarkLostError):
            told.source.open(told.mark)


def test_a_reset_of_the_log_loses_the_mark_also_while_it_is_read(database, server):
    """Even if the new log has as many transactions at the same positions."""
    with Told(prepared(database), Note, kind="log") as told:
        run(server.url, "RESET MASTER")
        with pytest.raises((MarkLostError, StoreUnavailableError)):
            ask_until_it_fails(told)
        with pytest.raises(MarkLostError):
            told.source.open(told.mark)
        told.mark = told.source.open("")
        written = "INSERT INTO note VALUES (1, 'a', 'x')"
        run(database, written)
        assert follow(told) == {"1"}
        told.source.close()
        passed = time.time() + 1.1
        while time.time() < passed:
            time.sleep(0.05)
        run(server.url, "RESET MASTER")
        run(database, written.replace("(1", "(2").replace("'x'", "'y'"))
        assert run(server.url, "SHOW MASTER STATUS")[0][1] >= 0
        with pytest.raises(MarkLostError, match="made anew"):
            told.source.open(told.mark)


def prepared(database):
    run(database, TABLE)
    return database


def test_another_server_loses_the_mark(database):
    run(database, TABLE)
    with Told(database, Note, kind="log") as told, MariaServer(options=LOG) as other:
        name = sa.make_url(database).database
        run(other.url, f"CREATE DATABASE {name}")
        run(on(other, name), TABLE, "INSERT INTO note VALUES (1, 'a', 'x')")
        with Told(on(other, name), Note, kind="log") as there, pytest.raises(MarkLostError):
            there.source.open(told.mark)


# -- the server


def test_a_server_that_is_killed_loses_nothing():
    with MariaServer(options=LOG, durable=True) as server:
        run(server.url, TABLE)
        with Told(server.url, Note, kind="log") as told:
            run(server.url, "INSERT INTO note VALUES (1, 'a', 'x')")
            server.kill()
            with pytest.raises(StoreUnavailableError):
                ask_until_it_fails(told)
            server.start()
            run(server.url, "INSERT INTO note VALUES (2, 'a', 'y')")
            told.mark = told.source.open(told.mark)
            assert follow(told) == {"1", "2"}


def test_a_server_that_hangs_is_noticed(database, server, monkeypatch):
    monkeypatch.setattr("eventsync.stores.sql.capture.binlog._SILENCE", 2)
    with Told(prepared(database), Note, kind="log") as told:
        server.pause()
        try:
            with pytest.raises(StoreUnavailableError):
                told.source.changes(told.mark, wait=0.1)
        finally:
            server.resume()
        told.mark = told.source.open(told.mark)
        run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
        assert follow(told) == {"1"}


def test_a_table_in_parts_and_one_without_transactions(database, server):
    run(database, "CREATE TABLE note (id bigint PRIMARY KEY, text varchar(50)) ENGINE = MyISAM")
    with Told(database, Note, kind="log") as told:
        run(database, "INSERT INTO note VALUES (1, 'a'), (2, 'b')")
        assert follow(told) == {"1", "2"}
        run(database, "DELETE FROM note")
        assert follow(told) == {"1", "2"}
    run(database, "DROP TABLE note", "CREATE TABLE note (id bigint PRIMARY KEY, text varchar(50))"
        " PARTITION BY HASH (id) PARTITIONS 4")  # fmt: skip
    with Told(database, Note, kind="log") as told:
        run(database, "INSERT INTO note VALUES (1, 'a'), (2, 'b')")
        assert follow(told) == {"1", "2"}
        run(database, "BEGIN", "INSERT INTO note VALUES (10, 's')", "SAVEPOINT a",
            "INSERT INTO note VALUES (11, 's')", "ROLLBACK TO a")  # fmt: skip
        assert follow(told) == {"10"}
        run(database, "ALTER TABLE note TRUNCATE PARTITION p1")
        assert told.whole() == {"Note"}
        name = sa.make_url(database).database
        run(server.url, f"TRUNCATE {name}.note")
        assert told.whole() == {"Note"}


def test_a_session_with_another_clock_does_not_set_the_moment(database):
    with Told(prepared(database), Note, kind="log") as told:
        told.source.changes(told.mark, wait=0.0)
        before = time.time()
        run(database, "SET timestamp = 1000000000", "INSERT INTO note VALUES (1, 'a', 'x')")
        changes = told.source.changes(told.mark, wait=5.0)
        assert before - 0.15 <= changes.keys["Note"]["1"] <= time.time()


def test_a_stream_that_is_cut_is_opened_again_by_its_mark(database):
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        rows = run(database, "SELECT id FROM information_schema.processlist"
                   " WHERE command = 'Binlog Dump'")  # fmt: skip
        run(database, *(f"KILL {number}" for (number,) in rows))
        run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
        with pytest.raises(StoreUnavailableError):
            ask_until_it_fails(told)
        told.mark = told.source.open(told.mark)
        assert follow(told) == {"1"}


def test_a_store_without_rights_says_what_an_administrator_has_to_run(database):
    user, name = f"u{uuid.uuid4().hex[:8]}", sa.make_url(database).database
    run(database, TABLE, f"CREATE USER {user}", f"GRANT ALL ON {name}.* TO {user}")
    url = sa.make_url(database).set(username=user).render_as_string(False)
    store = Store("shop", SqlAccessor(Note, url, table="note"), capture="log").open()
    source = store.change_source()
    wrong = [f for f in source.findings() if f.level is Level.WRONG]
    assert [f.statements[0] for f in wrong] == [
        f"GRANT REPLICATION SLAVE ON *.* TO '{user}'@'%'",
        f"GRANT BINLOG MONITOR ON *.* TO '{user}'@'%'",
    ]
    with pytest.raises(ConfigError, match="REPLICATION SLAVE"):
        source.open("")
    run(database, *source.statements())
    source.close()
    mark = source.open("")
    run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
    assert {*source.changes(mark, wait=5.0).keys["Note"]} == {"1"}
    source.close()
    store.close()


def test_a_server_without_a_log_captures_by_triggers():
    with MariaServer() as server:
        run(server.url, TABLE)
        accessor = SqlAccessor(Note, server.url, table="note")
        with Store("shop", accessor, capture="auto").open() as store:
            assert store.change_source().kind == "triggers"


def test_the_moment_of_a_foreign_update_is_not_before_an_own_write(database):
    """Although the log has the second only, the foreign write wins."""
    run(database, TABLE)
    with Told(database, Note, kind="log") as told:
        told.source.changes(told.mark, wait=0.0)
        before = time.time()
        run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
        changes = told.source.changes(told.mark, wait=5.0)
        assert before - 0.15 <= changes.keys["Note"]["1"] <= time.time()
