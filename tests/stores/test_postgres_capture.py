"""Capture by triggers in PostgreSQL: rights, roles, names, partitions, and all ways to write."""

from __future__ import annotations

import datetime as dt
import subprocess
import time
import uuid
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from servers import program
from servers.postgres import PostgresServer
from support.told import Told

from eventsync.changes.clock import Version
from eventsync.engine.apply import apply
from eventsync.engine.change_source import MarkLostError
from eventsync.engine.finding import Level
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.harness import changed


class Note(Record):
    id: int = Field(key=True)
    text: str | None = None


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    text: str | None = None


TABLE = "CREATE TABLE note (id bigint PRIMARY KEY, text text)"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server.url


@pytest.fixture
def database(server):
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(plain(server), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/test", f"/{name}")


def plain(url):
    return url.replace("+psycopg", "")


def run(url, *statements):
    """Run statements in one transaction of another program."""
    with psycopg.connect(plain(url)) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def as_role(url, role):
    return url.replace("//eventsync@", f"//{role}@")


def waiting(url):
    return run(url, "SELECT coalesce(sum(count), 0) FROM eventsync_change WHERE number > 0")[0][0]


# -- ways to write ---------------------------------------------------------------------------------


def test_every_way_to_write_is_told(database):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "INSERT INTO note SELECT n, 'a' FROM generate_series(1, 5) n")
        assert told.keys(Note) == {"1", "2", "3", "4", "5"}
        run(database, "INSERT INTO note VALUES (5, 'b'), (6, 'c') ON CONFLICT (id)"
            " DO UPDATE SET text = excluded.text")  # fmt: skip
        assert told.keys(Note) == {"5", "6"}
        run(database, "INSERT INTO note VALUES (6, 'b'), (7, 'c') ON CONFLICT DO NOTHING")
        assert told.keys(Note) == {"7"}
        run(database, "UPDATE note SET text = 'x' WHERE id > 5")
        assert told.keys(Note) == {"6", "7"}
        run(database, "UPDATE note SET id = id + 1 WHERE id = 7")
        assert told.keys(Note) == {"7", "8"}
        run(database, "UPDATE note SET text = 'x' WHERE false")
        assert told.nothing()
        run(
            database,
            "MERGE INTO note USING (VALUES (8), (9)) v (id) ON note.id = v.id"
            " WHEN MATCHED THEN DELETE"
            " WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'm')",
        )
        assert told.keys(Note) == {"8", "9"}
        with (
            psycopg.connect(plain(database)) as connection,
            connection.cursor().copy("COPY note FROM STDIN") as copy,
        ):
            copy.write_row((20, "copied"))
            copy.write_row((21, None))
        assert told.keys(Note) == {"20", "21"}
        run(database, "WITH gone AS (DELETE FROM note WHERE id = 20 RETURNING *)"
            " INSERT INTO note SELECT id + 10, text FROM gone")  # fmt: skip
        assert told.keys(Note) == {"20", "30"}
        run(database, "TRUNCATE note")
        assert told.whole() == {"Note"}
        with psycopg.connect(plain(database)) as connection:
            connection.execute("INSERT INTO note VALUES (1)")
            connection.execute("SAVEPOINT a")
            connection.execute("INSERT INTO note VALUES (2)")
            connection.execute("ROLLBACK TO a")
        assert told.keys(Note) == {"1"}
        assert waiting(database) == 0


def test_an_update_that_leaves_the_key_writes_one_row(database):
    run(database, TABLE, "INSERT INTO note SELECT n FROM generate_series(1, 100) n")
    with Told(database, Note) as told:
        run(database, "UPDATE note SET text = 'b'")
        assert waiting(database) == 100
        assert len(told.keys(Note)) == 100
        run(database, "UPDATE note SET id = id + 1000 WHERE id > 50")
        assert waiting(database) == 100
        assert len(told.keys(Note)) == 100


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 3500])
def test_a_statement_of_many_rows_is_told_in_parts(database, count):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, f"INSERT INTO note SELECT n FROM generate_series(1, {count}) n")
        assert waiting(database) == count
        assert len(told.keys(Note)) == count
        run(database, "UPDATE note SET id = -id")
        assert waiting(database) == 2 * count
        assert len(told.keys(Note)) == 2 * count
        run(database, "DELETE FROM note")
        assert len(told.keys(Note)) == count


def test_foreign_keys_and_triggers_of_the_application_are_told(database):
    """Also if a write of eventsync caused them: nobody else tells those."""
    run(
        database,
        TABLE,
        'CREATE TABLE line ("order" bigint REFERENCES note ON DELETE CASCADE ON UPDATE CASCADE,'
        ' number bigint, text text, PRIMARY KEY ("order", number))',
        "INSERT INTO note VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "INSERT INTO line VALUES (1, 1, 'x'), (1, 2, 'y'), (2, 1, 'z'), (3, 1, 'z')",
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE note SET text = 'touched' WHERE id = NEW.\"order\"; RETURN NULL; END $$",
        "CREATE TRIGGER touch AFTER UPDATE OF text ON line FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    with Told(database, Note, Line) as told:
        run(database, "DELETE FROM note WHERE id = 1")
        changes = told.source.changes(told.mark, wait=5.0)
        told.source.settle(changes)
        assert {*changes.keys["Note"]} == {"1"}
        assert len(changes.keys["Line"]) == 2
        run(database, "UPDATE note SET id = 7 WHERE id = 3")
        assert len(told.keys(Line)) == 2
        store = told.store
        now = Version.of(int(time.time() * 1000), 0, 1)
        line = next(iter(store.accessor(Line).find(Query.parse(Line.__record__))))
        apply(store, [changed(Line, line.key, "put", now, {**line.raw(), "text": "own"})],
              clock=store.clock)  # fmt: skip
        changes = told.source.changes(told.mark, wait=5.0)
        told.source.settle(changes)
        assert {*changes.keys} == {"Note"}
        apply(store, [changed(Note, "2", "delete", now, None)], clock=store.clock)
        changes = told.source.changes(told.mark, wait=5.0)
        told.source.settle(changes)
        assert "Line" in changes.keys


def test_rules_of_the_application_are_told(database):
    """What a rule writes beside eventsync's own write is a foreign write."""
    run(
        database,
        TABLE,
        'CREATE TABLE line ("order" bigint, number bigint, text text,'
        ' PRIMARY KEY ("order", number))',
        "CREATE RULE beside AS ON INSERT TO note DO ALSO INSERT INTO line VALUES (NEW.id, 1, 'r')",
    )
    with Told(database, Note, Line) as told:
        told.store.add(Note(id=4, text="own"))
        changes = told.source.changes(told.mark, wait=5.0)
        assert "Line" in changes.keys


def test_keys_that_a_trigger_alters_are_told_as_they_are_stored(database):
    run(
        database,
        TABLE,
        "CREATE SEQUENCE ids START 100",
        "CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.id := coalesce(NEW.id, nextval('ids')) * 10; RETURN NEW; END $$",
        "CREATE TRIGGER numbered BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION numbered()",
    )
    with Told(database, Note) as told:
        run(database, "INSERT INTO note VALUES (1, 'a'), (NULL, 'b')")
        assert told.keys(Note) == {"10", "1000"}


# -- rights and roles ------------------------------------------------------------------------------


def test_a_writer_needs_no_right_on_the_tables_of_eventsync(database):
    """Neither does it need a schema in its search path, nor may it redirect the trigger."""
    run(
        database,
        TABLE,
        "DO $$ BEGIN CREATE ROLE clerk LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON note TO clerk",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        "GRANT USAGE ON SCHEMA public TO clerk",
        "CREATE SCHEMA trap AUTHORIZATION clerk",
    )
    with Told(database, Note) as told:
        run(
            as_role(database, "clerk"),
            "CREATE TABLE trap.eventsync_change (place text, keys text, count int, at timestamptz)",
            "CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
            " AS 'SELECT now() + interval ''1 day'''",
            "SET search_path = trap",
            "INSERT INTO public.note VALUES (1, 'a')",
            "UPDATE public.note SET text = 'b'",
        )
        assert told.keys(Note) == {"1"}
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run(as_role(database, "clerk"), "DELETE FROM public.eventsync_change")
        run(as_role(database, "clerk"), "TRUNCATE public.note")
        assert told.whole() == {"Note"}


def test_a_store_without_the_right_says_what_an_administrator_has_to_run(database):
    run(
        database,
        TABLE,
        "DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT CREATE, USAGE ON SCHEMA public TO app",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON note TO app",
    )
    url = as_role(database, "app")
    store = Store("shop", SqlAccessor(Note, url, table="note"), capture="triggers").open()
    source = store.change_source()
    lacking = [f for f in source.findings() if f.level is Level.WRONG]
    assert [f.statements for f in lacking if "right" in f.text] == [
        ("GRANT TRIGGER ON public.note TO app",)
    ]
    with pytest.raises(ConfigError, match="cannot be installed"):
        source.open("")
    source.close()
    run(database, *source.statements())
    assert source.state().installed
    assert not [f for f in source.findings() if f.level is Level.WRONG]
    mark = source.open("")
    run(database, "INSERT INTO note VALUES (1)")
    changes = source.changes(mark, wait=5.0)
    assert {*changes.keys["Note"]} == {"1"}
    source.settle(changes)
    assert waiting(database) == 0
    source.close()
    store.close()


def test_with_the_right_to_make_triggers_only_the_owner_can_have_replicas_told(database):
    run(
        database,
        TABLE,
        "DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT CREATE, USAGE ON SCHEMA public TO app",
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON note TO app",
    )
    with Told(as_role(database, "app"), Note) as told:
        run(database, "INSERT INTO note VALUES (1)")
        assert told.keys(Note) == {"1"}
        (finding,) = [f for f in told.source.findings() if "replica" in f.text]
        assert finding.level is Level.NOTE
        run(database, *finding.statements)
        run(database, "SET session_replication_role = replica", "INSERT INTO note VALUES (2)")
        assert "2" in told.keys(Note)


def test_writes_in_the_role_of_a_replica_are_told(database):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "SET session_replication_role = replica", "INSERT INTO note VALUES (2)")
        assert told.keys(Note) == {"2"}


def test_triggers_that_were_switched_off_are_noticed(database):
    """As pg_restore --disable-triggers does: what was written meanwhile is read."""
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "ALTER TABLE note DISABLE TRIGGER ALL", "INSERT INTO note VALUES (1)",
            "ALTER TABLE note ENABLE TRIGGER ALL")  # fmt: skip
        told.check()
        assert told.whole() == {"Note"}
        assert told.source.state().installed
        run(database, "SET session_replication_role = replica", "INSERT INTO note VALUES (2)")
        assert told.keys(Note) == {"2"}


def test_a_subscription_of_logical_replication_is_told(server):
    """Its worker runs triggers for rows only, and only those that are always enabled."""
    name = f"s{uuid.uuid4().hex[:8]}"
    with PostgresServer() as other, PostgresServer() as target:
        other.stop()
        with (other.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write("wal_level = logical\n")
        other.start()
        run(other.url, TABLE, "CREATE PUBLICATION all_notes FOR TABLE note")
        run(target.url, TABLE)
        with psycopg.connect(plain(target.url), autocommit=True) as connection:
            connection.execute(
                f"CREATE SUBSCRIPTION {name} CONNECTION '{plain(other.url)}' PUBLICATION all_notes"
            )
        with Told(target.url, Note) as told:
            run(other.url, "INSERT INTO note VALUES (1), (2)")
            found, deadline = set(), time.monotonic() + 20
            while found != {"1", "2"}:
                assert time.monotonic() < deadline
                found |= told.keys(Note, wait=0.2)
            run(other.url, "DELETE FROM note WHERE id = 1")
            assert told.keys(Note, wait=20.0) == {"1"}


# -- names and types -------------------------------------------------------------------------------

ODD = "a \"b\" 'c' % %s $eventsync$ \\ ; --\né"


class Odd(Record):
    one: str = Field(key=True)
    two: int = Field(key=True)
    text: str | None = None


def test_names_with_any_sign(database):
    table, schema, column = (name.replace('"', '""') for name in (ODD, f"s{ODD}", f"c{ODD}"))
    run(
        database,
        f'CREATE SCHEMA "{schema}"',
        f'CREATE TABLE "{schema}"."{table}" ("{column}" text, two int, text text,'
        f' PRIMARY KEY ("{column}", two))',
    )
    view = View(rename={"one": f"c{ODD}"})
    accessor = SqlAccessor(Odd, database, table=ODD, schema=f"s{ODD}", view=view)
    with Told(database, accessor) as told:
        keys = [ODD, "{}", '{"a"}', "NULL", "", "a,b", "\t"]
        with psycopg.connect(plain(database)) as connection:
            for key in keys:
                statement = f'INSERT INTO "{schema}"."{table}"'.replace("%", "%%")
                connection.execute(f"{statement} VALUES (%s, 1)", (key,))
        expected = {Odd(one=key, two=1).key for key in keys}
        assert told.keys(Odd) == expected
        run(database, f'TRUNCATE "{schema}"."{table}"')
        assert told.whole() == {"Odd"}
        told.source.remove()
        assert not told.source.state().installed


KINDS = {
    "smallint": (int, "-7"),
    "bigint": (int, "9223372036854775807"),
    "numeric": (Decimal, "1.50"),
    "numeric(12, 3)": (Decimal, "-0.5"),
    "text": (str, "'  {a,b} \"c\" \\d é '"),
    "varchar(20)": (str, "'x y'"),
    "char(5)": (str, "'ab'"),
    "uuid": (UUID, "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "bytea": (bytes, "'\\x00ff5c27'"),
    "date": (dt.date, "'2026-12-01'"),
    "boolean": (bool, "true"),
    "timestamptz": (dt.datetime, "'2026-12-01 01:02:03.123456+05'"),
    "timestamp": (dt.datetime, "'2026-12-01 01:02:03.1'"),
    "time": (dt.time, "'01:02:03.5'"),
    "inet": (str, "'10.0.0.1/8'"),
    "interval": (str, "'1 day 2 hours'"),
    "mood": (str, "'sad'"),
    "small": (int, "5"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_each_type_are_told_as_they_are_read(database, kind):
    """Whatever the writer's session has set: styles of dates, bytes, intervals and numbers."""
    python, value = KINDS[kind]
    zoned = {"timestamptz": True, "timestamp": False}.get(kind)
    options = {"zoned": zoned} if zoned is not None else {"zoned": False} if kind == "time" else {}
    record = type(
        "Kind",
        (Record,),
        {"__annotations__": {"id": python, "text": str | None},
         "id": Field(key=True, **options), "text": None, "__module__": __name__},
    )  # fmt: skip
    run(
        database,
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE DOMAIN small AS int CHECK (VALUE < 100)",
        f"CREATE TABLE kind (id {kind} PRIMARY KEY, text text)",
    )
    settings = (
        "SET DateStyle = 'German'",
        "SET TimeZone = 'Asia/Kolkata'",
        "SET bytea_output = 'escape'",
        "SET IntervalStyle = 'iso_8601'",
        "SET extra_float_digits = -10",
    )
    with Told(database, record) as told:
        run(database, *settings, f"INSERT INTO kind VALUES ({value}, 'a')")
        told_keys = told.keys(record)
        query = Query.parse(record.__record__)
        assert told_keys == {one.key for one in told.store.accessor(record).find(query)}
        assert len(told_keys) == 1
        run(database, *settings, "UPDATE kind SET text = 'b'")
        assert waiting(database) == 1
        assert told.keys(record) == told_keys
        run(database, *settings, "DELETE FROM kind")
        assert told.keys(record) == told_keys


def test_a_key_whose_type_is_altered_is_told_in_the_new_form(database):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "ALTER TABLE note ALTER id TYPE numeric")
        told.check()
        told.source.changes(told.mark, wait=0.0)
        run(database, "INSERT INTO note VALUES (7)")
        assert told.keys(Note) == {"7"}


# -- partitions ----------------------------------------------------------------------------------


def test_partitions_are_told_however_they_are_written_to(database):
    """Also those that are made later; attached and detached rows are read."""
    run(
        database,
        "CREATE TABLE note (id bigint PRIMARY KEY, text text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)",
    )
    with Told(database, Note) as told:
        run(database, "INSERT INTO note VALUES (1)", "INSERT INTO low VALUES (2)")
        assert told.keys(Note) == {"1", "2"}
        run(
            database,
            "CREATE TABLE high PARTITION OF note FOR VALUES FROM (100) TO (200)",
            "INSERT INTO high VALUES (100)",
            "UPDATE note SET id = 101 WHERE id = 2",
        )
        assert told.keys(Note) == {"2", "100", "101"}
        told.check()
        assert told.whole() == {"Note"}
        run(database, "TRUNCATE high")
        assert told.whole() == {"Note"}
        run(
            database,
            "CREATE TABLE more (id bigint PRIMARY KEY, text text)",
            "INSERT INTO more VALUES (300)",
            "ALTER TABLE note ATTACH PARTITION more FOR VALUES FROM (300) TO (400)",
        )
        told.check()
        assert told.whole() == {"Note"}
        run(database, "INSERT INTO more VALUES (301)")
        assert told.keys(Note) == {"301"}
        run(database, "ALTER TABLE note DETACH PARTITION more")
        told.check()
        assert told.whole() == {"Note"}
        assert told.source.state().installed


def test_what_happened_to_partitions_while_nobody_captured_is_noticed(database):
    run(
        database,
        "CREATE TABLE note (id bigint PRIMARY KEY, text text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)",
    )
    with Told(database, Note) as told:
        mark = told.mark
        told.source.close()
        run(database, "INSERT INTO low VALUES (1)", "DROP TABLE low")
        told.mark = told.source.open(mark)
        assert told.whole() == {"Note"}
        told.source.close()
        told.source.open(told.mark)
        assert told.nothing()


# -- what must not happen to the application -------------------------------------------------------


def test_the_application_can_write_although_the_change_table_is_gone(database):
    """The loss is noticed, and everything is read."""
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "DROP TABLE eventsync_change")
        run(database, "INSERT INTO note VALUES (1)", "UPDATE note SET text = 'a'",
            "DELETE FROM note", "TRUNCATE note")  # fmt: skip
        with pytest.raises(ConfigError):
            told.source.changes(told.mark, wait=0.0)
        with pytest.raises(MarkLostError):
            told.source.open(told.mark)
        told.mark = told.source.open("")
        run(database, "INSERT INTO note VALUES (1)")
        assert told.keys(Note) == {"1"}


def test_a_transaction_of_many_statements_has_no_subtransactions(database):
    """An exception handler in each call would make one, and 64 slow all readers down."""
    run(database, TABLE)
    with Told(database, Note), psycopg.connect(plain(database)) as connection:
        for number in range(100):
            connection.execute("INSERT INTO note VALUES (%s)", (number,))
        top = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
        newest = connection.execute("SELECT max(xmin::text::bigint) FROM note").fetchone()[0]
        assert newest == top


# -- the client's script ---------------------------------------------------------------------------


def test_psql_runs_the_script(database):
    run(database, TABLE)
    store_told = Told(database, Note)
    with store_told as told:
        told.source.remove()
        for _ in range(2):
            subprocess.run(
                [program("psql", "/usr/lib/postgresql/15/bin"), plain(database),
                 "-qXv", "ON_ERROR_STOP=1"],
                input=told.source.script().encode(), check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        assert told.source.state().installed
