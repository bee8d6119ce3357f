"""PostgreSQL's log as a change source: the suite of all sources, and what only a log can do."""

from __future__ import annotations

import contextlib
import threading

import psycopg
import pytest
import sqlalchemy as sa
from chaos.proxy import Proxy
from servers import running
from servers.pgbouncer import PgBouncer
from servers.postgres import PostgresServer
from support.foreign_sql import ForeignPostgres
from support.waiting import eventually

from eventsync.engine.change_source import choose
from eventsync.engine.finding import Level
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.stores.sql import Replication, SqlAccessor
from eventsync.stores.sql.capture import pgoutput, postgresql_log
from eventsync.stores.sql.capture.log_server import LogServer
from eventsync.stores.sql.capture.source import CapturedTable
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import Contact, Item, Visit
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
    given = None
    """How the log is read, if not by the defaults."""
    pooler = ""
    """The URL of eventsync, if it is not that of the foreign programs."""
    role = ""
    """The role of eventsync, if it is not the superuser."""

    def accessor(self, record_type, folder):
        url = sa.make_url(self.pooler or self.database(folder))
        if self.role:
            url = url.set(username=self.role)
        return SqlAccessor(record_type, url.render_as_string(False), replication=self.given)

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
        assert any(
            "the replica identity of the table is (other), without the key" in text
            for text in texts
        )

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

    # -- tables that are not as usual --------------------------------------------------------------

    def test_a_table_that_has_another_name_for_a_time(self, tmp_path):
        """The log knows tables by their ids, so a write under the other name is not lost."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        self.run(
            tmp_path,
            'ALTER TABLE "Item" RENAME TO other',
            "UPDATE other SET name = 'b'",
            'ALTER TABLE other RENAME TO "Item"',
        )
        process.catch_up()
        assert process.published(Item)[-1].data["name"] == "b"
        assert process.observer.wholes == []

    def test_a_table_that_is_replaced_is_read_anew(self, tmp_path):
        """Another table of the same name is not in the publication; the next heartbeat notices."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        self.run(
            tmp_path,
            'CREATE TABLE other (LIKE "Item" INCLUDING ALL)',
            "INSERT INTO other (id, name, amount) VALUES (1, 'new', 1)",
            'ALTER TABLE "Item" RENAME TO old',
            'ALTER TABLE other RENAME TO "Item"',
        )
        self.edit(tmp_path, update(Item, {"id": 1}, name="newer"))
        process.source._beat_at = -1e9  # the next heartbeat is due
        with pytest.raises(StoreUnavailableError, match="the tables of the publication"):
            process.until(lambda: False, "the heartbeat notices")
        process.follower.open()
        process.catch_up()
        assert {type for type, _ in process.observer.wholes} == {"Item"}
        assert process.published(Item)[-1].data["name"] == "newer"
        self.edit(tmp_path, update(Item, {"id": 1}, name="newest"))
        process.catch_up()
        assert process.published(Item)[-1].data["name"] == "newest"

    def test_a_partitioned_table(self, tmp_path):
        """A row that moves to another partition keeps its key; a partition needs an identity."""
        self.run(
            tmp_path,
            'DROP TABLE "Item"',
            'CREATE TABLE "Item" (id bigint, name text, amount bigint NOT NULL, note text,'
            " PRIMARY KEY (id)) PARTITION BY RANGE (id)",
            'CREATE TABLE low PARTITION OF "Item" FOR VALUES FROM (0) TO (100)',
            'CREATE TABLE high PARTITION OF "Item" FOR VALUES FROM (100) TO (2000000000)',
        )
        process = self.running(tmp_path, insert(Item, id=1, name="a"), insert(Item, id=2, name="b"))
        self.edit(tmp_path, update(Item, {"id": 1}, id=101), remove(Item, id=2))
        self.run(tmp_path, "INSERT INTO low VALUES (3, 'c', 1, NULL)")
        process.catch_up()
        assert process.operations(Item) == [
            ("delete", "1"),
            ("delete", "2"),
            ("put", "101"),
            ("put", "3"),
        ]
        self.run(tmp_path, "ALTER TABLE low REPLICA IDENTITY NOTHING")
        texts = [finding.text for finding in process.source.findings()]
        assert any('"public"."low" has no primary key' in text for text in texts)

    @pytest.mark.parametrize(
        ("statements", "text"),
        [
            (
                ('ALTER TABLE "Item" DROP CONSTRAINT "Item_pkey"',
                 'ALTER TABLE "Item" ADD PRIMARY KEY (id) DEFERRABLE'),
                "has no primary key and no replica identity",
            ),
            (('ALTER TABLE "Item" SET UNLOGGED',), "unlogged"),
            (('CREATE TABLE child () INHERITS ("Item")',), "inherit from it"),
            (
                ('DROP TABLE "Item"',
                 'CREATE VIEW "Item" AS SELECT id, name, score amount, city note FROM "Contact"'),
                "such as a view",
            ),
        ],
        ids=["deferrable", "unlogged", "inherited", "view"],
    )  # fmt: skip
    def test_a_table_whose_changes_the_log_cannot_tell_is_refused(self, tmp_path, statements, text):
        self.run(tmp_path, *statements)
        assert text in next(iter(self.findings_of(tmp_path))).text
        if "identity" in text:
            process = self.process(tmp_path, FakeBus())
            with pytest.raises(ConfigError, match=text):
                process.source.install()
        assert self.publications(tmp_path) == []

    def findings_of(self, folder):
        """Return what speaks against the log of a table that an accessor may refuse, too."""
        table = CapturedTable("Item", None, "Item", ("id",), str)
        with asked(self.database(folder)) as ask:
            server = LogServer(lambda *one: list(ask(one[0], one[1:] or None)))
            return list(server.identity(table, server.table(table)))

    def publications(self, folder):
        with asked(self.database(folder)) as ask:
            return [name for (name,) in ask("SELECT pubname FROM pg_publication")]

    def test_keys_of_a_domain(self, tmp_path):
        """A query returns the values of the type below the domain, and so does the log."""
        self.run(
            tmp_path,
            "CREATE DOMAIN small AS numeric(19, 2) CHECK (value > 0)",
            "CREATE DOMAIN smaller AS small",
            # As a text the key is "1.00", which is no number of a record.
            'ALTER TABLE "Item" ALTER id TYPE smaller',
        )
        process = self.running(tmp_path)
        self.edit(tmp_path, insert(Item, id=1, name="a"))
        process.catch_up()
        assert process.operations(Item) == [("put", "1")]

    def test_a_key_column_gets_another_type(self, tmp_path):
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        self.edit(tmp_path, update(Item, {"id": 1}, name="b"))
        self.run(tmp_path, 'ALTER TABLE "Item" ALTER id TYPE text')
        self.run(tmp_path, "UPDATE \"Item\" SET name = 'c'")
        self.run(tmp_path, 'ALTER TABLE "Item" ALTER id TYPE bigint USING id::bigint')
        process.catch_up()
        assert process.published(Item)[-1].data["name"] == "c"
        assert process.observer.blocks == []

    def test_changed_keys_with_a_full_identity(self, tmp_path):
        self.run(tmp_path, 'ALTER TABLE "Visit" REPLICA IDENTITY FULL')
        process = self.running(tmp_path, insert(Visit, place="a", number=1))
        self.edit(tmp_path, update(Visit, {"place": "a", "number": 1}, place="b"))
        self.edit(tmp_path, remove(Visit, place="b", number=1))
        process.catch_up()
        assert [op for op, _ in process.operations(Visit)] == ["delete"]

    # -- transactions ------------------------------------------------------------------------------

    def test_own_transactions_are_left_out_and_counted(self, tmp_path):
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        told, original = [], process.source.changes
        process.source.changes = lambda mark, wait: (
            told.append(original(mark, wait=wait)) or told[-1]
        )
        process.store.add(Item(id=2, name="own"))
        process.catch_up()
        assert process.follower.own == 1
        assert {key for one in told for key in one.keys.get("Item", ())} == {str(self._fences)}

    def test_many_subtransactions_and_rows_are_bounded(self, tmp_path, monkeypatch):
        """Too many rows of one transaction are not kept: all records of the type are read."""
        monkeypatch.setattr(pgoutput, "MOST_KEYS", 500)
        monkeypatch.setattr(pgoutput, "_MOST_PARTS", 20)
        process = self.running(tmp_path)
        self.stream_early(tmp_path, process)
        sql = "INSERT INTO \"{}\" SELECT n, 'x', {} FROM generate_series({}, {}) n"
        with contextlib.closing(self.connect(tmp_path)) as connection:
            for part in range(60):
                connection.execute(f"SAVEPOINT s{part}")
                first = part * 100
                item = sql.format("Item", "1", first, first + 99)
                connection.execute(item.replace('"Item"', '"Item" (id, name, amount)'))
                connection.execute(f"INSERT INTO \"Visit\" VALUES ('p', {part}, 1)")
                if part % 2:
                    connection.execute(f"ROLLBACK TO SAVEPOINT s{part}")
            connection.commit()
        process.catch_up().catch_up()
        assert {type for type, _ in process.observer.wholes} == {"Item"}
        assert len(process.published(Item)) == 3000
        assert len(process.published(Visit)) == 30

    def stream_early(self, folder, process):
        with asked(self.database(folder)) as ask:
            ask("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
            ask("SELECT pg_reload_conf()")
        process.source.close()
        process.follower.open()

    def test_a_call_returns_while_a_large_transaction_arrives(self, tmp_path, monkeypatch):
        """The lease of the process has to be kept meanwhile."""
        monkeypatch.setattr(postgresql_log, "_SLICE", 0.01)
        process = self.running(tmp_path)
        told, original = [], process.source.changes
        process.source.changes = lambda mark, wait: (
            told.append(original(mark, wait=wait)) or told[-1]
        )
        self.run(
            tmp_path,
            'INSERT INTO "Item" (id, name, amount)'
            " SELECT n, 'x', 1 FROM generate_series(1, 20000) n",
        )
        process.catch_up()
        assert len(process.published(Item)) == 20_000
        assert sum(1 for one in told if one.behind and not one.keys) > 1

    def test_a_change_that_is_not_visible_yet_is_waited_for(self, tmp_path, monkeypatch):
        """With synchronous replication, the log has a commit before readers see it."""
        monkeypatch.setattr(postgresql_log, "_SLICE", 0.1)
        process = self.running(tmp_path)
        with asked(self.database(tmp_path)) as ask:
            ask("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            ask("SELECT pg_reload_conf()")
            eventually(lambda: ask("SHOW synchronous_standby_names").fetchone()[0] == "nobody")
            writer = threading.Thread(
                target=self.edit, args=(tmp_path, insert(Item, id=1, name="a"))
            )
            writer.start()
            try:
                process.until(lambda: process.source._batch.xids, "the log has the change")
                for _ in range(3):
                    process.follower.step(0.05)
                assert process.operations() == []
            finally:
                ask("ALTER SYSTEM RESET synchronous_standby_names")
                ask("SELECT pg_reload_conf()")
                writer.join()
        process.catch_up()
        assert process.operations() == [("put", "1")]

    # -- slots, publications and connections -------------------------------------------------------

    def test_a_publication_that_was_made_anew(self, tmp_path):
        """The server cannot decode what is older than the publication."""
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        process.follower.finish()
        bus = process.bus
        self.kill(process)
        name = self.slot(tmp_path)[0]
        with asked(self.database(tmp_path)) as ask:
            ask(f"DROP PUBLICATION {name}")
            self.edit(tmp_path, update(Item, {"id": 1}, name="unseen"))
        again = self.again(tmp_path, bus).catch_up()
        assert self.whole_reads(again) == {f"the publication {name} was dropped or made anew"}
        assert again.published(Item)[-1].data["name"] == "unseen"
        self.edit(tmp_path, remove(Item, id=1))
        again.catch_up()
        assert ("delete", "1") in again.operations(Item)

    def test_slot_and_publication_of_an_administrator(self, tmp_path):
        with asked(self.database(tmp_path)) as ask:
            ask('CREATE PUBLICATION theirs FOR TABLE "Item", "Contact", "Visit"')
            ask("SELECT pg_create_logical_replication_slot('their_slot', 'pgoutput')")
        self.given = Replication(slot="their_slot", publication="theirs")
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        assert self.slot(tmp_path)[0] == "their_slot"
        self.edit(tmp_path, remove(Item, id=1))
        process.catch_up()
        assert process.operations(Item) == [("delete", "1")]
        process.source.remove()
        assert self.slot(tmp_path) is None
        assert self.publications(tmp_path) == ["theirs"]

    def test_a_publication_with_a_row_filter_is_refused(self, tmp_path):
        with asked(self.database(tmp_path)) as ask:
            ask('CREATE PUBLICATION theirs FOR TABLE "Item" WHERE (id > 5), "Contact", "Visit"')
        self.given = Replication(publication="theirs")
        process = self.process(tmp_path, FakeBus())
        with pytest.raises(ConfigError, match="has not all rows or columns of Item"):
            process.source.install()

    def test_a_role_with_the_least_rights(self, tmp_path):
        """It owns the tables and may replicate; it is no superuser."""
        database = self.database(tmp_path)
        role = f"role_{sa.make_url(database).database}"
        with asked(database) as ask:
            ask(f"CREATE ROLE {role} LOGIN")
            for name in ("Item", "Contact", "Visit"):
                ask(f'ALTER TABLE "{name}" OWNER TO {role}')
            ask(f"GRANT CREATE ON SCHEMA public TO {role}")
        self.role = role
        process = self.process(tmp_path, FakeBus())
        texts = {f.text: f.statements for f in process.source.findings() if f.level is Level.WRONG}
        assert texts == {
            f"the role {role} may not replicate": (f'ALTER ROLE "{role}" REPLICATION',),
            f"not installed, and the role {role} may not create a publication in this database; "
            "an administrator has to run the statements": process.source.statements(),
        }
        # Then triggers capture, if nothing speaks against these.
        assert choose(process.store.change_sources(), "auto", "store").kind == "triggers"
        with asked(database) as ask:
            ask(f"ALTER ROLE {role} REPLICATION")
            for statement in process.source.statements():
                ask(statement)
        process = self.running(tmp_path, insert(Item, id=1, name="a"))
        self.edit(tmp_path, remove(Item, id=1))
        process.catch_up()
        assert process.operations(Item) == [("delete", "1")]

    def test_a_pooler_has_no_replication_connections(self, tmp_path, server):
        """The URL may lead to it if another one leads to the server."""
        url = sa.make_url(self.database(tmp_path))
        with running(PgBouncer(server)) as pooler:
            config = pooler.folder / "pgbouncer.ini"
            config.write_text(
                config.read_text().replace("test =", "* =").replace("dbname=test", "")
            )
            pooler.stop()
            pooler.start()
            self.pooler = url.set(port=pooler.port).render_as_string(False)
            process = self.process(tmp_path, FakeBus())
            process.source.install()
            with pytest.raises(ConfigError, match="no replication connection") as caught:
                process.follower.open()
            assert "Replication(url=" in caught.value.hint
            self.kill(process)
            self.given = Replication(url=url.render_as_string(False))
            process = self.running(tmp_path)
            self.edit(tmp_path, insert(Item, id=1, name="a"))
            process.catch_up()
            assert process.operations(Item) == [("put", "1")]
            process.close()

    def test_the_network_is_cut(self, tmp_path, server):
        with Proxy(server.port) as proxy:
            url = sa.make_url(self.database(tmp_path)).set(port=proxy.port)
            self.given = Replication(url=url.render_as_string(False))
            process = self.running(tmp_path)
            self.edit(tmp_path, insert(Item, id=1, name="a"))
            process.catch_up()
            proxy.reset()
            with pytest.raises(StoreUnavailableError, match="replication"):
                process.until(lambda: False, "the connection is lost")
            self.edit(tmp_path, insert(Item, id=2, name="b"))
            process.follower.open()
            process.catch_up()
            assert process.operations(Item) == [("put", "1"), ("put", "2")]
            # A connection that is silent without an end.
            proxy.hold()
            process.source._stream.ask()
            process.source._stream.asked_at -= 60
            with pytest.raises(StoreUnavailableError, match="has not answered"):
                process.follower.step(0.0)
            self.edit(tmp_path, insert(Item, id=3, name="c"))
            proxy.release()
            eventually(lambda: self.opens(process))
            process.catch_up()
            assert process.operations(Item)[-1] == ("put", "3")
            assert process.observer.wholes == []

    def opens(self, process):
        with contextlib.suppress(StoreUnavailableError):
            process.follower.open()
            return True
        return False

    def test_the_slot_of_a_suspended_process_is_taken_over(self, tmp_path, monkeypatch):
        """Its connection is open, but it says nothing."""
        first = self.running(tmp_path)
        first.follower.finish()
        second = self.process(tmp_path, FakeBus())
        self.edit(tmp_path, insert(Item, id=1, name="a"))
        with pytest.raises(StoreUnavailableError, match="whose reader was heard"):
            second.follower.open()
        monkeypatch.setattr(postgresql_log, "_DEAD", 0.5)
        eventually(lambda: self.silence(tmp_path) > 0.6)
        second.follower.open()
        second.catch_up()
        assert second.operations(Item) == [("put", "1")]
        with pytest.raises(StoreUnavailableError):
            first.until(lambda: False, "it notices")

    def silence(self, folder):
        with asked(self.database(folder)) as ask:
            return ask(
                "SELECT extract(epoch FROM clock_timestamp() - reply_time)::float8"
                " FROM pg_stat_replication WHERE pid = %s",
                (self.slot(folder)[3],),
            ).fetchone()[0]
