"""PostgreSQL's log as a change source: the suite of all sources, and what only a log can do."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from servers import running
from servers.postgres import PostgresServer
from support.foreign_sql import ForeignPostgres
from support.waiting import eventually

from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Item
from eventsync.testing.sources import SourceContract, insert, remove, update

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server():
    """A server with logical decoding."""
    options = ("wal_level=logical", "max_replication_slots=60", "max_wal_senders=30")
    with running(PostgresServer(options=options)) as server:
        yield server


@contextlib.contextmanager
def asked(url):
    """Ask the database as its administrator."""
    url = url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield lambda *statement: connection.execute(*statement)


class TestPostgresqlLog(ForeignPostgres, SourceContract):
    kind = "log"
    resolution = 0.01
    loses = True

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server.url

    def teardown_method(self):
        super().teardown_method()
        with asked(self.server) as ask:
            for name, pid in ask("SELECT slot_name, active_pid FROM pg_replication_slots"):
                if pid:
                    ask("SELECT pg_terminate_backend(%s)", (pid,))
                with contextlib.suppress(psycopg.Error):
                    ask("SELECT pg_drop_replication_slot(%s)", (name,))

    def lose(self, folder):
        with asked(self.database(folder)) as ask:
            (name,) = ask(
                "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
            ).fetchone()
            ask("SELECT pg_drop_replication_slot(%s)", (name,))

    # -- what only a log can do --------------------------------------------------------------------

    def slot(self, folder):
        """Return name, state, position and process of the slot of a folder's database."""
        with asked(self.database(folder)) as ask:
            return ask(
                "SELECT slot_name, wal_status, confirmed_flush_lsn, active_pid"
                " FROM pg_replication_slots WHERE database = current_database()"
            ).fetchone()

    def whole_reads(self, process):
        return {reason for _, reason in process.observer.wholes}

    def test_a_streamed_transaction_leaves_out_what_was_undone(self, tmp_path):
        """A large transaction is sent before it commits; an undone part counts for nothing."""
        process = self.running(tmp_path)
        with asked(self.database(tmp_path)) as ask:
            ask("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
            ask("SELECT pg_reload_conf()")
        process.source.close()
        process.follower.open()
        with contextlib.closing(self.connect(tmp_path)) as connection:
            many = "INSERT INTO \"Item\" SELECT n, 'x', 1 FROM generate_series(%s::int, %s) n"
            run = connection.execute
            run(many.replace('"Item"', '"Item" (id, name, amount)'), (1, 2000))
            run("SAVEPOINT here")
            run(many.replace('"Item"', '"Item" (id, name, amount)'), (2001, 4000))
            run("ROLLBACK TO SAVEPOINT here")
            run(many.replace('"Item"', '"Item" (id, name, amount)'), (4001, 6000))
            process.follower.step(0.2)  # some of it has been sent
            assert process.published() == []
            connection.commit()
        told = []
        original = process.source.changes
        process.source.changes = lambda mark, wait: (
            told.append(original(mark, wait=wait)) or told[-1]
        )
        process.catch_up()
        keys = {key for one in told for key in one.keys.get("Item", ()) if int(key) < 10_000}
        assert keys == {str(n) for n in (*range(1, 2001), *range(4001, 6001))}
        assert len(process.published(Item)) == 4000
        # A streamed transaction that is undone as a whole is told by nothing.
        with contextlib.closing(self.connect(tmp_path)) as connection:
            connection.execute('UPDATE "Item" SET amount = 2')
            connection.rollback()
        told.clear()
        process.catch_up()
        assert {len(one.keys.get("Item", ())) for one in told} <= {0, 1}  # 1: the test's own mark

    def test_a_slot_that_was_made_anew_makes_all_records_be_read(self, tmp_path):
        """Its name is the same, but what was written before it was made is not in it."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        process.follower.finish()
        bus = process.bus
        self.kill(process)
        name = self.slot(tmp_path)[0]
        with asked(self.database(tmp_path)) as ask:
            ask("SELECT pg_drop_replication_slot(%s)", (name,))
            self.edit(tmp_path, update(Item, {"id": 1}, name="unseen"))
            ask("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        again = self.again(tmp_path, bus).catch_up()
        assert self.whole_reads(again) == {
            f"the replication slot {name} was made anew or read by somebody else"
        }
        assert again.published(Item)[-1].data["name"] == "unseen"

    def test_a_slot_whose_log_was_dropped_makes_all_records_be_read(self, tmp_path):
        """``max_slot_wal_keep_size`` saves the disk; the slot is then made anew by the capture."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        process.follower.finish()
        bus = process.bus
        self.kill(process)
        self.edit(tmp_path, update(Item, {"id": 1}, name="unseen"))
        with asked(self.database(tmp_path)) as ask:
            ask("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
            ask("SELECT pg_reload_conf()")
            try:
                for _ in range(4):
                    ask("SELECT pg_switch_wal()")
                    ask("SELECT pg_logical_emit_message(false, 'x', repeat('y', 1000))")
                ask("CHECKPOINT")
                assert self.slot(tmp_path)[1] == "lost"
            finally:
                ask("ALTER SYSTEM RESET max_slot_wal_keep_size")
                ask("SELECT pg_reload_conf()")
        again = self.again(tmp_path, bus).catch_up()
        assert "has dropped the log" in self.whole_reads(again).pop()
        assert again.published(Item)[-1].data["name"] == "unseen"
        self.edit(tmp_path, update(Item, {"id": 1}, name="seen"))
        again.catch_up()
        assert again.published(Item)[-1].data["name"] == "seen"

    def test_a_slot_that_another_process_reads_is_waited_for(self, tmp_path):
        first = self.running(tmp_path)
        second = self.process(tmp_path, FakeBus())
        with pytest.raises(StoreUnavailableError, match="is active"):
            second.follower.open()
        first.source.close()
        second.follower.open()

    def test_a_table_without_identity_is_refused_before_it_is_published(self, tmp_path):
        """Published, it would refuse the application's updates."""
        with asked(self.database(tmp_path)) as ask:
            ask('ALTER TABLE "Contact" DROP CONSTRAINT "Contact_pkey"')
            ask('ALTER TABLE "Contact" ADD UNIQUE (id)')
        process = self.process(tmp_path, FakeBus())
        with pytest.raises(ConfigError, match="no primary key and no replica identity") as caught:
            process.source.install()
        assert 'ALTER TABLE "public"."Contact" REPLICA IDENTITY FULL' in caught.value.hint
        self.edit(tmp_path, insert(Contact, id=1, name="a"))
        self.edit(tmp_path, update(Contact, {"id": 1}, name="b"))  # it works as before
        with asked(self.database(tmp_path)) as ask:
            ask('ALTER TABLE "public"."Contact" REPLICA IDENTITY FULL')
        process.source.install()
        process.follower.open()
        process.catch_up()
        self.edit(tmp_path, remove(Contact, id=1))
        process.catch_up()
        assert ("delete", "1") in process.operations(Contact)

    def test_an_identity_without_the_key_is_refused(self, tmp_path):
        """The log would not name the deleted records."""
        with asked(self.database(tmp_path)) as ask:
            ask('ALTER TABLE "Visit" ADD COLUMN other int NOT NULL DEFAULT 1 UNIQUE')
            ask('ALTER TABLE "Visit" REPLICA IDENTITY USING INDEX "Visit_other_key"')
        process = self.process(tmp_path, FakeBus())
        texts = [finding.text for finding in process.source.findings()]
        assert any("the replica identity of the table is (other), without the key" in text for text in texts)

    def test_an_idle_database_keeps_no_log(self, tmp_path):
        """Others fill the log, for example of another database; the slot moves on nevertheless."""
        process = self.running(tmp_path)
        with asked(self.database(tmp_path)) as ask:
            for _ in range(5):
                ask("SELECT pg_logical_emit_message(false, 'others', repeat('y', 1000000))")
        before = process.source.state().lag_bytes
        assert before > 4_000_000
        process.source._beat_at = -1e9  # the next heartbeat is due
        process.until(lambda: process.source.state().lag_bytes < 100_000, "the slot moves on")

    def test_a_stopped_capture_shows_what_the_server_keeps(self, tmp_path):
        process = self.running(tmp_path)
        process.follower.finish()
        process.source.close()
        with asked(self.database(tmp_path)) as ask:
            for _ in range(3):
                ask("SELECT pg_logical_emit_message(false, 'others', repeat('y', 1000000))")
        # The server writes the log to its disk a moment later.
        eventually(lambda: process.source.state().lag_bytes > 2_900_000)
        state = process.source.state()
        assert state.installed
        assert state.retained_bytes >= state.lag_bytes

    def test_the_server_is_killed_and_started_again(self, tmp_path, server):
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        self.edit(tmp_path, update(Item, {"id": 1}, name="b"))
        server.kill()
        with pytest.raises((StoreUnavailableError, OSError)):
            process.until(lambda: False, "the connection is lost")
        process.source.close()
        server.start()
        self.edit(tmp_path, insert(Item, id=2, name="c"))
        process.follower.open()
        process.catch_up()
        assert [(c.key, c.data["name"]) for c in process.published(Item)][-2:] == [
            ("1", "b"),
            ("2", "c"),
        ]
        assert not process.observer.wholes[3:]

    def test_a_server_without_logical_decoding(self, tmp_path):
        before = self.server
        with running(PostgresServer()) as server:
            self.server = server.url
            process = self.process(tmp_path, FakeBus())
            self.server = before
            with pytest.raises(ConfigError, match="wal_level is not logical") as caught:
                process.source.install()
            assert "ALTER SYSTEM SET wal_level = logical" in caught.value.hint

    def test_a_renamed_key_column(self, tmp_path):
        """The log names the column in another way; all records are read when it is back."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        with asked(self.database(tmp_path)) as ask:
            ask('ALTER TABLE "Item" RENAME COLUMN id TO number')
            ask("UPDATE \"Item\" SET name = 'b'")
            ask('ALTER TABLE "Item" RENAME COLUMN number TO id')
        process.catch_up()
        assert ("Item", "a key column was renamed or dropped") in process.observer.wholes
        assert process.published(Item)[-1].data["name"] == "b"
