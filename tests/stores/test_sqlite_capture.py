"""Capture by triggers in SQLite: REPLACE, odd values and names, migrations, the client."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time

import pytest
from support.told import Told

from eventsync.changes.clock import Version
from eventsync.engine.apply import apply
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.harness import changed


class Note(Record):
    id: int = Field(key=True)
    text: str | None = None


class Tag(Record):
    name: str = Field(key=True)
    text: str | None = None


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    text: str | None = None


TABLE = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT, mail TEXT UNIQUE)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.db"


def run(path, *statements):
    """Run statements in one transaction of another program."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        connection.execute("COMMIT")
        return rows


def url(path):
    return f"sqlite:///{path}"


def waiting(path):
    return run(path, "SELECT count(*) FROM eventsync_change WHERE number > 0")[0][0]


def test_every_way_to_write_is_told(path):
    run(path, TABLE)
    with Told(url(path), Note) as told:
        run(path, "INSERT INTO note VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
        assert told.keys(Note) == {"1", "2", "3"}
        run(path, "INSERT INTO note VALUES (3, 'b', 'z') ON CONFLICT (id) DO UPDATE SET text = 'd'")
        assert told.keys(Note) == {"3"}
        run(path, "INSERT OR IGNORE INTO note VALUES (3, 'b', 'z'), (4, 'e', NULL)")
        assert told.keys(Note) == {"4"}
        run(path, "UPDATE note SET id = 10 WHERE id = 4")
        assert told.keys(Note) == {"4", "10"}
        run(path, "INSERT INTO note (text) VALUES ('numbered')")
        assert told.keys(Note) == {"11"}
        run(path, "UPDATE note SET text = 'q' WHERE id = 11")
        assert waiting(path) == 1
        assert told.keys(Note) == {"11"}
        run(path, "DELETE FROM note")
        assert told.keys(Note) == {"1", "2", "3", "10", "11"}
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("INSERT INTO note VALUES (1, 'a', 'x')")
            connection.rollback()
        assert told.nothing()


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
def test_rows_that_replace_removes_are_told(path, recursive):
    """REPLACE runs no delete trigger without recursive_triggers."""
    run(path, TABLE)
    with Told(url(path), Note) as told:
        run(path, "INSERT INTO note VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
        assert told.keys(Note) == {"1", "2", "3"}
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA recursive_triggers = {recursive}")
            connection.execute("REPLACE INTO note VALUES (1, 'again', 'x')")
            connection.commit()
            assert told.keys(Note) == {"1"}
            connection.execute("REPLACE INTO note VALUES (9, 'new', 'y')")
            connection.commit()
            assert told.keys(Note) == {"2", "9"}
            connection.execute("UPDATE OR REPLACE note SET mail = 'z' WHERE id = 9")
            connection.commit()
            assert told.keys(Note) == {"3", "9"}
            connection.execute("UPDATE OR REPLACE note SET id = 1 WHERE id = 9")
            connection.commit()
            assert told.keys(Note) == {"1", "9"}


def test_a_row_that_replace_removes_by_its_number_is_told(path):
    run(path, "CREATE TABLE tag (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, text TEXT)")
    view = View(only=("name", "text"))
    with Told(url(path), SqlAccessor(Tag, url(path), table="tag", view=view)) as told:
        run(path, "INSERT INTO tag VALUES (1, 'a', NULL)")
        assert told.keys(Tag) == {"a"}
        run(path, "REPLACE INTO tag VALUES (1, 'b', NULL)")
        assert told.keys(Tag) == {"a", "b"}


def test_an_index_on_an_expression_is_a_risk_that_a_check_names(path):
    run(path, TABLE, "CREATE UNIQUE INDEX lowered ON note (lower(text))")
    with Told(url(path), Note) as told:
        assert ["lowered" in f.text for f in told.source.findings()] == [True]


def test_keys_with_any_sign_and_of_any_kind_are_told(path):
    run(path, "CREATE TABLE tag (name PRIMARY KEY, text TEXT)")
    keys = ["a'b", '"', "{", "NULL", "é\u4e16", "a\nb", "%s", "1", "x y ", "\\"]
    with Told(url(path), Tag) as told:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executemany("INSERT INTO tag VALUES (?, NULL)", [(key,) for key in keys])
            connection.execute("INSERT INTO tag VALUES (NULL, NULL), (x'ff00', NULL), (7, NULL)")
            connection.commit()
        assert told.keys(Tag) >= {Tag(name=key).key for key in keys}
        assert told.nothing()


def test_names_with_any_sign(path):
    name = "a \"b\" 'c' % ; -- é\n"
    quoted = '"' + name.replace('"', '""') + '"'
    run(path, f"CREATE TABLE {quoted} ({quoted} INTEGER, number INTEGER, text TEXT,"
        f" PRIMARY KEY ({quoted}, number)) WITHOUT ROWID")  # fmt: skip
    accessor = SqlAccessor(Line, url(path), table=name, view=View(rename={"order": name}))
    with Told(url(path), accessor) as told:
        run(path, f"INSERT INTO {quoted} VALUES (1, 2, 'a')")
        run(path, f"UPDATE {quoted} SET number = 3")
        assert told.keys(Line) == {Line(order=1, number=n).key for n in (2, 3)}


def test_a_key_that_the_column_compares_without_case_is_told_in_both_forms(path):
    run(path, "CREATE TABLE tag (name TEXT COLLATE NOCASE PRIMARY KEY, text TEXT)")
    with Told(url(path), Tag) as told:
        run(path, "INSERT INTO tag VALUES ('a', NULL)", "UPDATE tag SET name = 'A'")
        assert told.keys(Tag) == {"a", "A"}
        run(path, "REPLACE INTO tag VALUES ('a', 'again')")
        assert told.keys(Tag) == {"a", "A"}


def test_what_eventsync_causes_by_triggers_and_foreign_keys_is_told(path):
    run(
        path,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)",
        'CREATE TABLE line ("order" INTEGER REFERENCES note ON DELETE CASCADE, number INTEGER,'
        ' text TEXT, PRIMARY KEY ("order", number))',
        "CREATE TABLE tag (name TEXT PRIMARY KEY, text TEXT)",
        "CREATE TRIGGER counts AFTER INSERT ON tag BEGIN UPDATE note SET text = NEW.name; END",
        "INSERT INTO note VALUES (1, NULL), (2, NULL)",
        "INSERT INTO line VALUES (1, 1, 'x')",
    )
    import sqlalchemy as sa

    engine = sa.create_engine(url(path))
    sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    accessors = [SqlAccessor(each, engine, table=each.__name__.lower())
                 for each in (Note, Line, Tag)]  # fmt: skip
    with Told(engine, *accessors) as told:
        now = Version.of(int(time.time() * 1000), 0, 1)
        apply(told.store, [changed(Note, "1", "delete", now, None)], clock=told.store.clock)
        changes = told.source.changes(told.mark, wait=5.0)
        told.source.settle(changes)
        assert "Line" in changes.keys
        told.store.add(Tag(name="new"))
        changes = told.source.changes(told.mark, wait=5.0)
        assert "2" in changes.keys["Note"]


def test_the_table_is_made_anew_as_by_a_migration(path):
    """Django copies a table to alter it: the triggers are gone with the old one."""
    run(path, TABLE, "INSERT INTO note VALUES (1, 'a', NULL)")
    with Told(url(path), Note) as told:
        run(
            path,
            "CREATE TABLE new_note (id INTEGER PRIMARY KEY, text TEXT, mail TEXT, more TEXT)",
            "INSERT INTO new_note SELECT *, NULL FROM note",
            "DROP TABLE note",
            "ALTER TABLE new_note RENAME TO note",
        )
        told.check()
        assert told.whole() == {"Note"}
        run(path, "UPDATE note SET more = 'x'")
        assert told.keys(Note) == {"1"}


def test_the_key_column_may_be_renamed_and_columns_dropped(path):
    run(path, TABLE, "INSERT INTO note VALUES (1, 'a', NULL)")
    with Told(url(path), Note) as told:
        run(path, "ALTER TABLE note RENAME COLUMN id TO number", "UPDATE note SET text = 'b'",
            "ALTER TABLE note RENAME COLUMN number TO id", "ALTER TABLE note ADD COLUMN x",
            "ALTER TABLE note DROP COLUMN x", "UPDATE note SET text = 'c'")  # fmt: skip
        assert told.keys(Note) == {"1"}


def test_a_number_is_never_used_again(path):
    """Otherwise, a second process could delete a change that it has never seen."""
    run(path, TABLE)
    with Told(url(path), Note) as told:
        run(path, "INSERT INTO note VALUES (1, 'a', NULL)")
        changes = told.source.changes(told.mark, wait=5.0)
        told.source.settle(changes)
        run(path, "INSERT INTO note VALUES (2, 'a', NULL)")
        told.source.settle(changes)
        assert told.keys(Note) == {"2"}


@pytest.mark.parametrize("what", ["CREATE VIEW note AS SELECT 1 AS id, 'a' AS text"])
def test_a_view_is_refused(path, what):
    run(path, what)
    with pytest.raises(ConfigError):
        Told(url(path), Note)


def test_the_client_runs_the_script(path):
    run(path, TABLE)
    with Told(url(path), Note) as told:
        told.source.remove()
        assert run(path, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'eventsync_change%'"
                   " OR type = 'trigger'") == [(0,)]  # fmt: skip
        client = shutil.which("sqlite3")
        assert client is not None, "sqlite3 is not installed; tests/servers/install installs it"
        for _ in range(2):
            subprocess.run([client, "-bail", str(path)], input=told.source.script().encode(),
                           check=True)  # fmt: skip
        assert told.source.state().installed
