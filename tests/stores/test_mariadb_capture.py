"""Capture by triggers in MariaDB: rights, names and types, TRUNCATE, foreign keys, the client."""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
import uuid
from decimal import Decimal
from uuid import UUID

import pymysql
import pytest
import sqlalchemy as sa
from servers import program
from servers.mariadb import MariaServer
from support.told import Told

from eventsync.engine.finding import Level
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor


class Note(Record):
    id: int = Field(key=True)
    text: str | None = None


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    text: str | None = None


TABLE = "CREATE TABLE note (id bigint PRIMARY KEY, text varchar(50), mail varchar(50) UNIQUE)"


@pytest.fixture(scope="module")
def server():
    with MariaServer() as server:
        yield server


@pytest.fixture
def database(server):
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex}"
    run(server.url, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
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


def as_user(url, user):
    return sa.make_url(url).set(username=user).render_as_string(False)


def waiting(url):
    return run(url, "SELECT count(*) FROM eventsync_change WHERE number > 0")[0][0]


def test_every_way_to_write_is_told(database, tmp_path):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "INSERT INTO note VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
        assert told.keys(Note) == {"1", "2", "3"}
        run(database, "INSERT INTO note VALUES (3, 'd', 'z') ON DUPLICATE KEY UPDATE text = 'e'")
        assert told.keys(Note) == {"3"}
        run(database, "INSERT IGNORE INTO note VALUES (3, 'd', 'z'), (4, 'd', NULL)")
        assert told.keys(Note) == {"4"}
        run(database, "REPLACE INTO note VALUES (9, 'again', 'y')")
        assert told.keys(Note) == {"2", "9"}
        run(database, "UPDATE note SET id = 10 WHERE id = 4")
        assert told.keys(Note) == {"4", "10"}
        run(database, "UPDATE note SET text = 'q' WHERE id = 10")
        assert waiting(database) == 1
        assert told.keys(Note) == {"10"}
        (tmp_path / "rows").write_text("20\ta\tm\n21\tb\tn\n")
        run(database, f"LOAD DATA LOCAL INFILE '{tmp_path / 'rows'}' INTO TABLE note",
            local_infile=True)  # fmt: skip
        assert told.keys(Note) == {"20", "21"}
        # Otherwise MariaDB may refuse a write of the trigger: its error 1442.
        run(database, "LOCK TABLES note WRITE, eventsync_change WRITE",
            "DELETE FROM note WHERE id > 1", "UNLOCK TABLES")  # fmt: skip
        assert told.keys(Note) == {"3", "9", "10", "20", "21"}
        run(database, "START TRANSACTION", "INSERT INTO note VALUES (5, 'a', 'q')", "ROLLBACK")
        assert told.nothing()


def test_truncate_is_noticed_even_if_the_table_is_filled_again(database):
    run(database, TABLE, "INSERT INTO note VALUES (1, 'a', 'x')")
    with Told(database, Note) as told:
        run(database, "TRUNCATE note", "INSERT INTO note VALUES (2, 'a', 'x')")
        told.check()
        changes = told.source.changes(told.mark, wait=5.0)
        assert {*changes.whole} == {"Note"}
        assert {*changes.keys["Note"]} == {"2"}


def test_rows_that_a_foreign_key_changes_are_a_risk_that_a_check_names(database):
    """InnoDB runs no trigger for them."""
    run(
        database,
        TABLE,
        "CREATE TABLE line (`order` bigint, number bigint, text text,"
        " PRIMARY KEY (`order`, number), CONSTRAINT of_note FOREIGN KEY (`order`)"
        " REFERENCES note (id) ON DELETE CASCADE)",
    )
    with Told(database, Note, Line) as told:
        (finding,) = [f for f in told.source.findings() if f.level is Level.RISK]
        assert "'of_note'" in finding.text
        assert finding.about == "Line in line"


def test_a_writer_needs_no_right_on_the_tables_of_eventsync(database):
    user = f"u{uuid.uuid4().hex[:8]}"
    run(database, TABLE, f"CREATE USER {user}", f"GRANT INSERT, SELECT ON note TO {user}")
    with Told(database, Note) as told:
        run(as_user(database, user), "INSERT INTO note VALUES (1, 'a', 'x')")
        assert told.keys(Note) == {"1"}


def test_a_store_without_the_right_says_what_an_administrator_has_to_run(database):
    user, name = f"u{uuid.uuid4().hex[:8]}", sa.make_url(database).database
    run(
        database,
        TABLE,
        f"CREATE USER {user}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, INDEX ON {name}.* TO {user}",
    )
    accessor = SqlAccessor(Note, as_user(database, user), table="note")
    store = Store("shop", accessor, capture="triggers").open()
    source = store.change_source()
    (finding,) = [f for f in source.findings() if "right" in f.text]
    assert finding.level is Level.WRONG
    assert finding.statements == (f"GRANT TRIGGER ON `{name}`.`note` TO '{user}'@'%'",)
    with pytest.raises(ConfigError, match="cannot be installed"):
        source.open("")
    source.close()
    run(database, *source.statements())
    assert source.state().installed
    mark = source.open("")
    run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
    changes = source.changes(mark, wait=5.0)
    assert {*changes.keys["Note"]} == {"1"}
    source.settle(changes)
    source.close()
    store.close()


def test_the_application_can_write_although_the_change_table_is_gone(database):
    run(database, TABLE)
    with Told(database, Note) as told:
        run(database, "DROP TABLE eventsync_change", "INSERT INTO note VALUES (1, 'a', 'x')",
            "UPDATE note SET text = 'b'", "DELETE FROM note")  # fmt: skip
        with pytest.raises(ConfigError):
            told.source.changes(told.mark, wait=0.0)


ODD = "a \"b\" 'c' `d` % \\ ; -- é"


def test_names_with_any_sign(database):
    quoted = f"`{ODD.replace('`', '``')}`"
    run(database, f"CREATE TABLE {quoted} ({quoted} bigint, number bigint, text text,"
        f" PRIMARY KEY ({quoted}, number))")  # fmt: skip
    accessor = SqlAccessor(Line, database, table=ODD, view=View(rename={"order": ODD}))
    with Told(database, accessor) as told:
        run(database, f"INSERT INTO {quoted} VALUES (1, 2, 'a')")
        run(database, f"UPDATE {quoted} SET number = 3")
        assert told.keys(Line) == {Line(order=1, number=n).key for n in (2, 3)}
        told.source.remove()
        assert not told.source.state().installed


KINDS = {
    "tinyint": (int, "-7"),
    "bigint unsigned": (int, "9223372036854775807"),
    "decimal(12,3)": (Decimal, "-1.500"),
    "varchar(50) CHARACTER SET latin1": (str, "'é \"x\" \\\\ '"),
    "varchar(50) COLLATE utf8mb4_nopad_bin": (str, "'{a,b} \\'世 '"),
    "char(36)": (UUID, "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "binary(16)": (UUID, "x'a0eebc999c0b4ef8bb6d6bb9bd380a11'"),
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
    """Whatever the writer's session has set."""
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
    settings = ("SET time_zone = '+05:30'", "SET sql_mode = 'ANSI_QUOTES'", "SET NAMES latin1")
    with Told(database, record) as told:
        if "世" not in value:
            run(database, *settings, "SET NAMES utf8mb4",
                f"INSERT INTO kind VALUES ({value}, 'a')")  # fmt: skip
        else:
            run(database, f"INSERT INTO kind VALUES ({value}, 'a')")
        keys = told.keys(record)
        query = Query.parse(record.__record__)
        assert keys == {one.key for one in told.store.accessor(record).find(query)}
        assert len(keys) == 1
        run(database, *settings, "UPDATE kind SET text = 'b'")
        assert waiting(database) == 1
        assert told.keys(record) == keys
        run(database, *settings, "DELETE FROM kind")
        assert told.keys(record) == keys


def test_the_client_runs_the_script(database):
    run(database, TABLE)
    url = sa.make_url(database)
    with Told(database, Note) as told:
        told.source.remove()
        for _ in range(2):
            subprocess.run(
                [program("mariadb"), "-uroot", "-h127.0.0.1", f"-P{url.port}", "--skip-ssl",
                 url.database],
                input=told.source.script().encode(), check=True,
            )  # fmt: skip
        assert told.source.state().installed
        told.mark = told.source.open("")
        run(database, "INSERT INTO note VALUES (1, 'a', 'x')")
        assert told.keys(Note) == {"1"}
