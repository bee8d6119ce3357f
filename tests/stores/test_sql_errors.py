"""Errors of databases mean what they mean: retryable, the record's own, or configuration."""

from __future__ import annotations

import sqlite3
import threading
import time
from functools import partial

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.pgbouncer import PgBouncer
from servers.postgres import PostgresServer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import (
    ConfigError,
    DependencyError,
    EventSyncError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.index import UndoneError
from eventsync.records.record import Field, Record
from eventsync.retry import retrying
from eventsync.stores.sql import SqlAccessor, mysql, postgresql, sqlite
from eventsync.stores.sql.engine import LockedError, UniqueError, errors
from eventsync.stores.sql.mysql import Mysql
from eventsync.stores.sql.postgresql import Postgresql
from eventsync.stores.sql.sqlite import Sqlite

AWAY, NO, SETUP = StoreUnavailableError, RejectedError, ConfigError

STATES = {
    **dict.fromkeys(["08006", "0B000", "24000", "25006", "2D000", "34000", "3B000"], AWAY),
    **dict.fromkeys(["40003", "53100", "55006", "57P01", "58030", "72000"], AWAY),
    **dict.fromkeys(["F0001", "HV000", "XX000"], AWAY),
    **dict.fromkeys(["09000", "20000", "21000", "22P02", "23502", "23514", "27000"], NO),
    **dict.fromkeys(["2F000", "38000", "39000", "40002", "44000", "54000", "P0001"], NO),
    **dict.fromkeys(["U0001", "ZZ999"], NO),
    **dict.fromkeys(["0A000", "3F000", "42P01", "42703", "42804", "42883", "55000"], SETUP),
    **dict.fromkeys(["0L000", "0P000", "28P01", "2B000", "3D000", "42501"], SETUP),
    **dict.fromkeys(["26000", "40001", "40P01", "42P05"], UndoneError),
    "23503": DependencyError,
    **dict.fromkeys(["23505", "23P01"], UniqueError),
    "55P03": LockedError,
}

NUMBERS = {
    **dict.fromkeys([1021, 1040, 1053, 1114, 1203, 1226, 1290, 1317, 1792, 1836], AWAY),
    **dict.fromkeys([1969, 3024, 2003, 2006, 2013], AWAY),
    **dict.fromkeys([1048, 1118, 1153, 1263, 1264, 1265, 1292, 1366, 1367, 1406], NO),
    **dict.fromkeys([1644, 3140, 3819, 4025, 30001], NO),
    **dict.fromkeys([1054, 1064, 1136, 1146, 1364], SETUP),
    **dict.fromkeys([1044, 1045, 1049, 1142, 1143, 1227, 1370, 1419, 1449, 1698], SETUP),
    **dict.fromkeys([1020, 1213], UndoneError),
    **dict.fromkeys([1216, 1217, 1451, 1452], DependencyError),
    **dict.fromkeys([1022, 1062, 1169, 1242, 1586, 1859], UniqueError),
    **dict.fromkeys([1205, 3572], LockedError),
}

CODES = {
    **dict.fromkeys(["BUSY", "LOCKED", "IOERR", "CORRUPT", "FULL", "NOMEM", "INTERRUPT"], AWAY),
    **dict.fromkeys(["TOOBIG", "CONSTRAINT", "CONSTRAINT_CHECK", "CONSTRAINT_NOTNULL"], NO),
    **dict.fromkeys(["CONSTRAINT_TRIGGER", "MISMATCH", "RANGE"], NO),
    **dict.fromkeys(["PERM", "READONLY", "CANTOPEN", "AUTH", "NOTADB"], SETUP),
    **dict.fromkeys(["CONSTRAINT_PRIMARYKEY", "CONSTRAINT_ROWID"], UniqueError),
    "CONSTRAINT_UNIQUE": UniqueError,
    "CONSTRAINT_FOREIGNKEY": DependencyError,
    "SCHEMA": UndoneError,
}


def raised(dialect, error):
    with pytest.raises(EventSyncError) as caught, errors("item", dialect):
        raise error
    return type(caught.value)


@pytest.mark.parametrize(("state", "expected"), STATES.items())
def test_sqlstates(state, expected):
    """Each SQLSTATE of PostgreSQL is retryable, the record's, or a matter of configuration."""
    error = type("Error", (psycopg.OperationalError,), {"sqlstate": state})("text")
    assert raised(Postgresql(), error) is expected


@pytest.mark.parametrize(("number", "expected"), NUMBERS.items())
def test_numbers_of_mysql(number, expected):
    """So is each error number of MySQL and MariaDB."""
    error = pymysql.err.OperationalError(number, "text")
    assert raised(Mysql(maria=True), error) is expected


@pytest.mark.parametrize(("name", "expected"), CODES.items())
def test_codes_of_sqlite(name, expected):
    """So is each code of SQLite."""
    error = sqlite3.OperationalError("text")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    assert raised(Sqlite(), error) is expected


def test_every_row_is_tested():
    """No row of the three tables lacks a test."""
    assert {code[: len(c)] for code in STATES for c in (code, code[:2])} >= set(postgresql.FAULTS)
    assert set(NUMBERS) >= set(mysql.FAULTS)
    assert {getattr(sqlite3, f"SQLITE_{name}") for name in CODES} >= set(sqlite.FAULTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no such table: item", SETUP),
        ("no such column: name", SETUP),
        ("table item has no column named name", SETUP),
        ("malformed JSON", NO),
        ("integer overflow", NO),
    ],
)
def test_texts_of_sqlite(text, expected):
    """SQLite has one code for a wrong statement and for a function that fails in a trigger."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    assert raised(Sqlite(), error) is expected


# -- with servers ----------------------------------------------------------------------------------


class Item(Record):
    id: int = Field(key=True)
    name: str = ""
    amount: int = 0


def run(engine, *statements):
    """Run statements as another program does."""
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def put(number, clock, name="x"):
    data = {"id": number, "name": name, "amount": 1}
    return Change(type="Item", key=str(number), op="put", version=clock.tick(), data=data)


def outcomes(store, changes, clock):
    return {item.change.key: str(item.outcome) for item in apply(store, changes, clock=clock)}


@pytest.fixture(scope="module")
def postgres():
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb():
    with MariaServer() as server:
        yield server


TABLE = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(50) NOT NULL, amount INT NOT NULL)"
INDEX = ("eventsync_version", "eventsync_outbox", "eventsync_mark")


@pytest.fixture(params=["postgres", "mariadb"])
def engine(request):
    """An engine of a database with the table ``item``, on either server."""
    yield from tables_of(sa.create_engine(request.getfixturevalue(request.param).url))


@pytest.fixture
def pg(postgres):
    yield from tables_of(sa.create_engine(postgres.url))


def tables_of(engine):
    run(engine, *(f"DROP TABLE IF EXISTS {name}" for name in ("item", *INDEX)), TABLE)
    yield engine
    engine.dispose()


def test_record_that_a_trigger_refuses_is_rejected_alone(engine):
    """RAISE EXCEPTION and SIGNAL are the record's failure, not an outage."""
    if engine.dialect.name == "postgresql":
        run(
            engine,
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.name = 'a' THEN RAISE EXCEPTION 'no such name'; END IF;"
            " IF NEW.name = 'b' THEN RAISE EXCEPTION 'nor this' USING ERRCODE = 'U0001'; END IF;"
            " RETURN NEW; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
    else:
        run(
            engine,
            "CREATE TRIGGER refuse BEFORE INSERT ON item FOR EACH ROW BEGIN"
            " IF NEW.name = 'a' THEN SIGNAL SQLSTATE '45000'; END IF;"
            " IF NEW.name = 'b' THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001; END IF;"
            " END",
        )
    clock = Clock()
    with Store("s", SqlAccessor(Item, engine, table="item")) as store:
        names = {1: "x", 2: "a", 3: "b", 4: "y"}
        changes = [put(number, clock, name) for number, name in names.items()]
        assert outcomes(store, changes, clock) == {
            "1": "applied",
            "2": "rejected",
            "3": "rejected",
            "4": "applied",
        }


def test_altered_type_is_configuration(pg):
    """A column whose type no longer fits rejects no record: the store waits to be mended."""
    clock = Clock()
    with Store("s", SqlAccessor(Item, pg, table="item")) as store:
        assert outcomes(store, [put(1, clock)], clock) == {"1": "applied"}
        run(pg, "ALTER TABLE item ALTER COLUMN amount TYPE boolean USING true")
        with pytest.raises(ConfigError, match=r"amount.*boolean"):
            apply(store, [put(2, clock), put(3, clock)], clock=clock)
        run(pg, "ALTER TABLE item ALTER COLUMN amount TYPE integer USING 1")
        assert outcomes(store, [put(2, clock), put(3, clock)], clock) == dict.fromkeys(
            "23", "applied"
        )


def test_altered_table_does_not_fail_prepared_statements(pg):
    """A statement prepared before ALTER TABLE is repeated on a new connection."""
    clock = Clock()
    with Store("s", SqlAccessor(Item, pg, table="item")) as store:
        for _ in range(9):
            assert outcomes(store, [put(1, clock)], clock) == {"1": "applied"}
            assert store.get(Item, 1).name == "x"
            list(store.capture())
        run(pg, "ALTER TABLE item ALTER COLUMN name TYPE text")
        store.update(Item(id=1, name="edited", amount=2))
        assert store.get(Item, 1).name == "edited"


def test_login_names_the_setting(postgres, mariadb):
    """A wrong password, user or database is configuration; the URL is named without password."""
    hba = postgres.folder / "data" / "pg_hba.conf"
    hba.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
    for url, *statements in (
        (
            postgres.url,
            "CREATE ROLE guarded LOGIN PASSWORD 'right'",
            "SELECT pg_reload_conf()",
        ),
        (mariadb.url, "CREATE USER guarded IDENTIFIED BY 'right'"),
    ):
        engine = sa.create_engine(url)
        run(engine, *statements)
        engine.dispose()
    for base in (sa.make_url(postgres.url), sa.make_url(mariadb.url)):
        for wrong in (
            {"username": "guarded", "password": "wr0ng"},
            {"username": "stranger", "password": "wr0ng"},
            {"database": "nowhere"},
        ):
            accessor = SqlAccessor(Item, base.set(**wrong).render_as_string(hide_password=False))
            with pytest.raises(ConfigError) as caught:
                accessor.ping()
            assert next(iter(wrong.values())) in str(caught.value)
            assert f"127.0.0.1:{base.port}" in str(caught.value)
            assert "wr0ng" not in str(caught.value)
            assert "the store's URL" in caught.value.hint


def test_missing_right_is_configuration(engine):
    """A right that the user lacks dead-letters nothing."""
    name = "reader" if engine.dialect.name == "postgresql" else "reader@'127.0.0.1'"
    with Store("s", SqlAccessor(Item, engine, table="item")):
        pass  # creates the index
    if engine.dialect.name == "postgresql":
        run(engine, "DROP OWNED BY reader" if has_role(engine) else "CREATE ROLE reader LOGIN")
    else:
        run(engine, f"CREATE OR REPLACE USER {name}")
    run(
        engine,
        f"GRANT SELECT ON item TO {name}",
        *(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {name}" for table in INDEX),
    )
    clock = Clock()
    url = engine.url.set(username="reader").render_as_string(hide_password=False)
    with Store("s", SqlAccessor(Item, url, table="item")) as store:
        with pytest.raises(ConfigError, match="denied") as caught:
            apply(store, [put(1, clock), put(2, clock)], clock=clock)
        assert "grant" in caught.value.hint


def has_role(engine):
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'"
        return bool(connection.exec_driver_sql(query).scalar())


@pytest.fixture
def impatient(engine):
    """The engine, with a user who waits for locks for a second at most."""
    if engine.dialect.name == "postgresql":
        run(engine, "ALTER ROLE eventsync SET lock_timeout = '400ms'")
    else:
        run(engine, "SET GLOBAL innodb_lock_wait_timeout = 1")
    other = sa.create_engine(engine.url)
    yield other
    other.dispose()
    if engine.dialect.name == "postgresql":
        run(engine, "ALTER ROLE eventsync RESET lock_timeout")


@pytest.mark.parametrize("rows", [1, 20, 300])
def test_locked_row_holds_its_record_only(engine, impatient, rows):
    """The others of the batch are applied; the locked record is held until the lock ends."""
    clock = Clock()
    with Store("s", SqlAccessor(Item, impatient, table="item")) as store:
        numbers = range(1, rows + 1)
        assert set(outcomes(store, [put(n, clock) for n in numbers], clock).values()) == {"applied"}
        changes = [put(n, clock, name="later") for n in numbers]
        with engine.connect() as theirs:
            theirs.exec_driver_sql("UPDATE item SET amount = 7 WHERE id = 1")
            settled = {item.change.key: item for item in apply(store, changes, clock=clock)}
            assert [key for key, i in settled.items() if str(i.outcome) != "applied"] == ["1"]
            held = settled["1"]
            assert str(held.outcome) == "held"
            assert held.error.reason == "locked"
            with pytest.raises(DependencyError, match="item"):
                store.update(Item(id=1, name="edited", amount=2))
            theirs.rollback()
        assert outcomes(store, changes[:1], clock) == {"1": "applied"}
        assert {record.name for record in store.find(Item)} == {"later"}


def test_locked_table_is_an_outage(pg):
    """A lock on the whole table is retried with the whole batch, and holds no record."""
    run(pg, "ALTER ROLE eventsync SET lock_timeout = '300ms'")
    impatient, clock = sa.create_engine(pg.url), Clock()
    try:
        with Store("s", SqlAccessor(Item, impatient, table="item")) as store:
            apply(store, [put(1, clock)], clock=clock)
            with pg.connect() as theirs:
                theirs.exec_driver_sql("LOCK TABLE item IN SHARE MODE")
                with pytest.raises(LockedError):
                    apply(store, [put(n, clock) for n in range(1, 9)], clock=clock)
                theirs.rollback()
    finally:
        impatient.dispose()
        run(pg, "ALTER ROLE eventsync RESET lock_timeout")


def test_lock_timeout_of_the_user_is_kept(pg):
    """A time that somebody set for the role is not replaced; otherwise it is 5 s."""
    dialect = Postgresql()
    for setting, expected in (("'700ms'", "700ms"), ("DEFAULT", "5s")):
        run(pg, f"ALTER ROLE eventsync SET lock_timeout = {setting}")
        engine = sa.create_engine(pg.url)
        with dialect.connected(engine) as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == expected
        engine.dispose()


def test_transaction_pooler(postgres, pg):
    """Behind PgBouncer, workers on shared server sessions apply, edit and capture everything."""
    with PgBouncer(postgres) as pooler:
        failures = []

        def patiently(call):
            # The threads of this test wait for each other's locks, which a worker does, too.
            return retrying(call, budget=60.0, wait=time.sleep)

        def work(offset):
            clock = Clock()
            engine = sa.create_engine(pooler.url)
            try:
                with Store("s", SqlAccessor(Item, engine, table="item")) as store:
                    for turn in range(12):
                        numbers = range(offset, offset + 40)
                        changes = [put(n, clock, name=str(turn)) for n in numbers]
                        done = patiently(partial(outcomes, store, changes, clock))
                        assert set(done.values()) <= {"applied", "duplicate"}
                        edited = Item(id=offset, name="edited", amount=turn)
                        patiently(partial(store.update, edited))
                        assert store.get(Item, offset).amount == turn
                    patiently(lambda: list(store.capture()))
            except BaseException as error:
                failures.append(error)
            finally:
                engine.dispose()

        threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        # Nothing of ours is left in the sessions of other clients.
        engine = sa.create_engine(pooler.url)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
        engine.dispose()


def test_statement_that_another_client_prepared_is_repeated(pg):
    """If the pooler is not recognised, the transaction is repeated on a new connection."""
    clock, dialect = Clock(), Postgresql()
    store_engine = sa.create_engine(pg.url, pool_size=2, max_overflow=0)
    with Store("s", SqlAccessor(Item, store_engine, table="item")) as store:
        apply(store, [put(1, clock)], clock=clock)
        with dialect.connected(store_engine) as connection:
            raw = dialect.raw(connection)
            raw.prepare_threshold = 0
            for number in range(10):
                # Another client of the session has prepared the next statements.
                raw.execute(f"PREPARE _pg3_{number} AS SELECT 1", prepare=False)
            raw.commit()
        assert outcomes(store, [put(1, clock), put(2, clock)], clock) == dict.fromkeys(
            "12", "applied"
        )
