"""Capture by triggers on SQLite, PostgreSQL and MariaDB: the conformance suite, and own writes."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign_sql import ForeignMariadb, ForeignPostgres, ForeignSqlite
from support.waiting import eventually

from eventsync.changes.clock import Version
from eventsync.engine.apply import apply
from eventsync.engine.finding import Level
from eventsync.errors import EventSyncError
from eventsync.stores.sql.capture.change_table import places_of
from eventsync.testing import FakeBus, SourceContract
from eventsync.testing.harness import Contact, Item, Visit, changed, put
from eventsync.testing.sources import insert, remove, update


@pytest.fixture(scope="session")
def postgres():
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb():
    with MariaServer() as server:
        yield server.url


class ByTriggers(SourceContract):
    kind = "triggers"
    loses = True

    def lose(self, folder):
        self.run(folder, "DROP TABLE eventsync_change")

    def waiting(self, folder):
        """The number of rows in the change table."""
        ((count,),) = self.run(folder, "SELECT count(*) FROM eventsync_change WHERE number >= 0")
        return count

    def engine(self, folder):
        return sa.create_engine(self.database(folder))

    # -- own writes --------------------------------------------------------------------------------

    def test_own_writes_do_not_fill_the_change_table(self, tmp_path):
        """Neither applied changes nor edits, of one record or of many, of any rule."""
        process = self.running(tmp_path, *(insert(Contact, id=n, name="Ada") for n in (7, 8)))
        store, now = process.store, int(time.time() * 1000)
        assert self.waiting(tmp_path) == 0
        for count in (1, 300):
            sent = [put(Item(id=n, name="Ada"), Version.of(now, count, 1)) for n in range(count)]
            sent += [changed(Item, "9", "delete", Version.of(now, count + 1, 1), None)]
            sent += [
                changed(Contact, str(n), "patch", Version.of(now, count, 1), {"name": f"B{count}"})
                for n in (7, 8)
            ]
            sent += [put(Visit(place="a", number=n), Version.of(now, 1, 1)) for n in range(count)]
            apply(store, sent, clock=store.clock)
            store.add([Contact(id=1000 + count + n, name="Eve") for n in range(count)])
            store.remove(store[Item, count - 1])
        eve = store[Contact, 1001]
        eve["name"] = "Eva"
        store.update(eve)
        assert self.waiting(tmp_path) == 0

    def test_a_foreign_program_with_the_same_engine_is_captured(self, tmp_path):
        """Own writes before it, those that failed included, leave no mark on a connection."""
        process = self.running(tmp_path)
        engine = process.store.accessor(Item).engine
        process.store.add([Item(id=n, name="Ada") for n in range(3)])

        def fail():
            with process.store.index.transaction() as transaction:
                process.store.accessor(Item).write_rows([], ["0"], transaction)
                raise EventSyncError("undone")

        with pytest.raises(EventSyncError, match="undone"):
            fail()
        table = self.quoted("Item")
        for number in range(10, 20):
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    f"INSERT INTO {table} (id, name, amount) VALUES ({number}, 'Bob', 0)"
                )
        process.bus.envelopes.clear()
        process.catch_up()
        assert process.operations() == sorted(("put", str(n)) for n in range(10, 20))

    def test_in_a_transaction_of_the_caller_only_own_statements_are_own(self, tmp_path):
        """What the caller writes before, between and after them is captured."""
        process = self.running(tmp_path, insert(Item, id=1, name="Ada"))
        table = self.quoted("Item")

        def foreign(connection, number):
            connection.exec_driver_sql(
                f"INSERT INTO {table} (id, name, amount) VALUES ({number}, 'Bob', 0)"
            )

        with process.store.accessor(Item).engine.begin() as connection:
            foreign(connection, 10)
            joined = process.store.using(connection)
            joined.add(Item(id=2, name="Eve"))
            foreign(connection, 11)
            with pytest.raises(EventSyncError):
                joined.add(Item(id=1, name="there already"))
            foreign(connection, 12)
            joined.remove(joined.get(Item, 2))
            foreign(connection, 13)
        assert self.waiting(tmp_path) == 4
        process.store.flush()
        process.bus.envelopes.clear()
        process.catch_up()
        assert process.operations() == sorted(("put", str(n)) for n in range(10, 14))

    # -- the change table --------------------------------------------------------------------------

    def test_a_commit_that_comes_late_is_not_left_out(self, tmp_path):
        """Its row has a smaller number than rows that were told before."""
        if self.one_writer:
            pytest.skip("one transaction writes at a time")
        process = self.running(tmp_path)
        late = self.connect(tmp_path)
        began = time.time()
        late.cursor().execute(*self.statement(insert(Item, id=1, name="late")))
        process.catch_up()
        process.catch_up()
        committing = time.time()
        late.commit()
        late.close()
        process.catch_up()
        assert process.operations() == [("put", "1")]
        (change,) = process.published()
        assert began < committing - 0.001
        assert change.version.millis / 1000 > committing - 0.1  # the look before did not see it

    one_writer = False

    def test_a_backlog_is_told_in_parts_with_the_last_moments(self, tmp_path):
        """What is told of a key early has the moment of its last change that waits."""
        process = self.running(tmp_path)
        source = process.source
        source._limit = 100
        self.edit(tmp_path, *(insert(Item, id=n, name="Ada") for n in range(250)))
        again = time.time()
        self.edit(tmp_path, update(Item, {"id": 3}, name="Bob"))
        told, calls, behind = {}, 0, True
        while behind:
            found = source.changes("", wait=0.0)
            told |= found.keys.get("Item", {})
            calls, behind = calls + 1, found.behind
            source.settle(found)
            if calls == 1:
                assert found.count == 100
                assert found.keys["Item"]["3"] >= again - 0.05
                assert found.keys["Item"]["4"] < found.keys["Item"]["3"]
        assert calls == 3
        assert len(told) == 250
        assert self.waiting(tmp_path) == 0

    def test_changes_are_told_until_they_are_settled(self, tmp_path):
        process = self.running(tmp_path, insert(Item, id=1, name="Ada"))
        self.edit(tmp_path, update(Item, {"id": 1}, name="Bob"), insert(Item, id=2, name="Eve"))
        first = process.source.changes("", wait=5.0)
        assert {*first.keys["Item"]} == {"1", "2"}
        self.edit(tmp_path, remove(Item, id=1))
        second = process.source.changes("", wait=5.0)
        assert {*second.keys["Item"]} == {"1", "2"}
        process.source.settle(first)
        third = process.source.changes("", wait=5.0)
        assert {*third.keys["Item"]} == {"1"}
        process.source.settle(third)
        process.source.settle(third)
        assert process.source.changes("", wait=0.0).count == 0
        assert self.waiting(tmp_path) == 0

    def test_triggers_that_vanish_are_made_again_and_all_is_read(self, tmp_path):
        """As when a migration makes a table anew under the same name."""
        process = self.running(
            tmp_path, insert(Item, id=1, name="Ada"), insert(Item, id=2, name="A")
        )
        table, old = self.quoted("Item"), self.quoted("Old Item")
        self.run(
            tmp_path,
            f"ALTER TABLE {table} RENAME TO {old}",
            self.statements()[0],
            f"INSERT INTO {table} SELECT * FROM {old}",
            f"DROP TABLE {old}",
            f"UPDATE {table} SET amount = 5 WHERE id = 1",
            f"DELETE FROM {table} WHERE id = 2",
        )
        assert not process.source.state().installed
        process.source._checked_at = 0.0  # do not wait for the next check
        process.until(lambda: process.observer.wholes, "the new table is noticed")
        assert process.source.state().installed
        self.edit(tmp_path, insert(Item, id=3, name="Eve"))
        process.catch_up()
        assert process.operations() == [("delete", "2"), ("put", "1"), ("put", "3")]

    def test_a_renamed_key_column_does_not_fail_the_application(self, tmp_path):
        """Its writes are captured when the column has its name again."""
        process = self.running(
            tmp_path, insert(Item, id=1, name="Ada"), insert(Item, id=2, name="A")
        )
        self.alter(tmp_path, Item, "rename", "id")
        table = self.quoted("Item")
        self.run(
            tmp_path,
            f"INSERT INTO {table} (id_renamed, name, amount) VALUES (3, 'Eve', 0)",
            f"UPDATE {table} SET amount = 5 WHERE id_renamed = 1",
            f"DELETE FROM {table} WHERE id_renamed = 2",
        )
        self.edit(tmp_path, insert(Contact, id=1, name="Ada"))
        process.until(lambda: process.operations(Contact), "the other type is captured")
        self.alter(tmp_path, Item, "restore", "id")

        def captured():
            process.follower._copy_due = 0.0
            return len(process.operations(Item)) == 3

        process.until(captured, "the renamed table is captured")
        assert process.operations(Item) == [("delete", "2"), ("put", "1"), ("put", "3")]

    def test_findings_say_what_is_missing_and_how_to_make_it(self, tmp_path):
        """The statements are exactly what an administrator has to run."""
        source = self.process(tmp_path, FakeBus()).source
        (finding,) = [f for f in source.findings() if f.statements]
        assert finding.level is Level.NOTE
        assert finding.absent
        assert list(finding.statements) == list(source.statements())
        self.run(tmp_path, *finding.statements)
        assert source.state().installed
        assert not [f for f in source.findings() if f.statements]
        self.run(tmp_path, *source.statements())
        assert source.state().installed
        source.install()
        self.edit(tmp_path, insert(Item, id=1, name="Ada"))
        assert self.waiting(tmp_path) >= 1

    def test_two_types_may_share_a_table(self, tmp_path):
        """Each is told under its own name."""
        process = self.running(tmp_path)
        tables = process.source.tables()
        assert len(places_of([*tables, *tables])) == len(tables)

    def test_writers_at_work_while_triggers_are_installed_lose_nothing(self, tmp_path):
        """What is committed before the triggers are there is read with all records."""
        process = self.running(tmp_path)
        process.source.remove()
        stop, written = threading.Event(), []

        def write():
            while not stop.is_set():
                self.edit(tmp_path, insert(Item, id=len(written), name="Ada"))
                written.append(len(written))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            eventually(lambda: len(written) > 20)
            process.source.close()
            process.follower.open()
            process.until(lambda: len(written) > 60)
        finally:
            stop.set()
            writer.join()
        process.catch_up()
        assert {c.key for c in process.published(Item)} == {str(n) for n in written}


class TestSqlite(ForeignSqlite, ByTriggers):
    one_writer = True

    def lose(self, folder):
        names = self.run(
            folder,
            "SELECT name FROM sqlite_master WHERE name LIKE 'eventsync_%e%' AND type = 'trigger'",
        )
        drops = [f"DROP TRIGGER {name}" for (name,) in names]
        self.run(folder, *drops, "DROP TABLE eventsync_change")


class TestPostgres(ForeignPostgres, ByTriggers):
    @pytest.fixture(autouse=True)
    def _server(self, postgres):
        type(self).server = postgres


class TestMariadb(ForeignMariadb, ByTriggers):
    truncates = True

    @pytest.fixture(autouse=True)
    def _server(self, mariadb):
        type(self).server = mariadb
