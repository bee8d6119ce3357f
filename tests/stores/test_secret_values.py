"""Values of secret fields stay out of the errors of every store, whatever its server quotes."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import json
import sqlite3
import traceback
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from servers import running
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import EventSyncError, RejectedError
from eventsync.index import MemoryIndex
from eventsync.records.record import Field, Record
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.fake import FakeBus

SECRET = 'hunter22 it\'s "mine"'


class Login(Record):
    id: int = Field(key=True)
    token: str = Field(default="", secret=True, length=60)
    name: str | None = None


class PerField(Record, rule="field"):
    id: int = Field(key=True)
    token: str = Field(default="", secret=True, length=60)
    name: str | None = None


class Open(Record):
    id: int = Field(key=True)
    token: str = ""


@pytest.fixture(scope="module")
def postgres():
    with running(PostgresServer()) as server:
        yield server.url


@pytest.fixture(scope="module")
def mariadb():
    with running(MariaServer()) as server:
        yield server.url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.server),
                        pytest.param("mariadb", marks=pytest.mark.server)])  # fmt: skip
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data.db"
    return request.getfixturevalue(request.param)


def texts(error):
    """All that a log, a letter or ``--debug`` may show of an error."""
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)


def run(url, *statements):
    """Run statements as the owner of the database does."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def quote(url):
    return "`" if "maria" in url else '"'


@pytest.fixture
def store(url):
    q = quote(url)
    run(
        url,
        *(f"DROP TABLE IF EXISTS {q}{t}{q}" for t in ("Login", "PerField", "Open")),
        *(
            f"CREATE TABLE {q}{t}{q} (id BIGINT PRIMARY KEY, token VARCHAR(60) UNIQUE,"
            f" name VARCHAR(10) CHECK (name <> 'bad'))"
            for t in ("Login", "PerField")
        ),
        f"CREATE TABLE {q}Open{q} (id BIGINT PRIMARY KEY, token VARCHAR(60) UNIQUE)",
    )
    accessors = [SqlAccessor(one, url) for one in (Login, PerField, Open)]
    with Store("logins", *accessors, publisher=FakeBus()) as store:
        yield store


@pytest.mark.parametrize("record_type", [Login, PerField])
def test_a_conflict_of_a_secret_value_does_not_show_it(store, record_type):
    """By an edit, and by a change from another store."""
    store.add(record_type(id=1, token=SECRET))
    with pytest.raises(RejectedError) as caught:
        store.add(record_type(id=2, token=SECRET))
    assert "hunter22" not in texts(caught.value)
    assert "mine" not in texts(caught.value)
    other = Store(
        "other", MemoryAccessor(record_type), publisher=(bus := FakeBus()), clock=Clock()
    ).open()
    other.add([record_type(id=3, token=SECRET), record_type(id=4, token="fine")])
    settled = apply(store, bus.changes(), clock=store.clock)
    assert [str(one.outcome) for one in settled] == ["held", "applied"]
    assert "hunter22" not in texts(settled[0].error)


@pytest.mark.parametrize("record_type", [Login, PerField])
def test_a_row_that_is_refused_does_not_show_its_secret(store, record_type):
    """PostgreSQL quotes the whole row that a check refuses."""
    with pytest.raises(EventSyncError) as caught:
        store.add(record_type(id=1, token=SECRET, name="bad"))
    assert "hunter22" not in texts(caught.value)
    store.add(record_type(id=1, token=SECRET, name="good"))
    record = store[record_type, 1]
    record.name = "bad"
    with pytest.raises(EventSyncError) as caught:
        store.update(record)
    assert "hunter22" not in texts(caught.value)


def test_types_without_secrets_keep_the_details(store):
    store.add(Open(id=1, token="abcdef"))
    with pytest.raises(RejectedError) as caught:
        store.add(Open(id=2, token="abcdef"))
    if "sqlite" not in repr(store.index.engine.url):
        assert "abcdef" in str(caught.value)


class Rude(MemoryAccessor):
    """A store of somebody else that quotes whatever it refuses."""

    error: type[Exception] = RejectedError

    def write_rows(self, writes, removals, transaction):
        raise self.error(f"no: {[dict(write.values) for write in writes]}")


@pytest.mark.parametrize("error", [RejectedError, ValueError, KeyError])
@pytest.mark.parametrize("record_type", [Login, PerField])
def test_any_store_is_kept_from_quoting(record_type, error):
    accessor = Rude(record_type)
    accessor.error = error
    store = Store("rude", accessor, index=MemoryIndex()).open()
    with pytest.raises(EventSyncError) as caught:
        store.add(record_type(id=1, token=SECRET, name="seen"))
    assert "hunter22" not in texts(caught.value)
    assert "seen" in str(caught.value)


@pytest.mark.server
@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 'hunter22'::int", 'invalid input syntax for type integer: "***"'),
        ("SELECT '99999999999'::int", 'value "***" is out of range for type integer'),
        ("SELECT '{\"hunter22'::json", "invalid input syntax for type json"),
    ],
)
def test_texts_of_postgresql(postgres, statement, shown):
    from eventsync.stores.sql.postgresql import Postgresql

    with (
        psycopg.connect(postgres.replace("+psycopg", "")) as connection,
        pytest.raises(psycopg.Error) as caught,
    ):
        connection.execute(statement)
    assert Postgresql().said(caught.value, values=False) == shown
    assert "hunter22" in Postgresql().said(caught.value) or "999" in str(caught.value)


@pytest.mark.server
@pytest.mark.parametrize(
    ("type", "value"),
    [("INT", "'hunter22'"), ("DATE", "'hunter22'"), ("DECIMAL(5,2)", "'hunter22'"),
     ("INT UNIQUE", "22334455), (22334455"), ("VARCHAR(9) UNIQUE", "'hun''ter'), ('hun''ter'")],
)  # fmt: skip
def test_texts_of_mariadb(mariadb, type, value):
    from eventsync.stores.sql.mysql import Mysql

    url = sa.make_url(mariadb)
    with contextlib.closing(
        pymysql.connect(host="127.0.0.1", port=url.port, user="root", database="test",
                        ssl_disabled=True)
    ) as connection:  # fmt: skip
        cursor = connection.cursor()
        cursor.execute("DROP TABLE IF EXISTS odd")
        cursor.execute(f"CREATE TABLE odd (secretly {type})")
        with pytest.raises(pymysql.err.Error) as caught:
            cursor.execute(f"INSERT INTO odd VALUES ({value})")
    text = Mysql(maria=True).said(caught.value, values=False)
    assert "***" in text
    assert "secretly" in text
    assert not any(word in text for word in ("hunter22", "22334455", "ter"))


class Account(Record):
    """A secret field of each kind that a store converts in its own way."""

    id: int = Field(key=True)
    pin: int | None = Field(default=None, secret=True)
    born: dt.date | None = Field(default=None, secret=True)
    notes: list[str] | None = Field(default=None, secret=True)
    extra: dict[str, Any] | None = Field(default=None, secret=True)


def in_sqlite(folder, name, value):
    path = folder / "data.db"
    accessor = SqlAccessor(Account, f"sqlite:///{path}", create=True)
    Store("accounts", accessor).open().close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f'INSERT INTO "Account" (id, {name}) VALUES (1, ?)', (value,))
    return accessor


def in_memory(folder, name, value):
    accessor = MemoryAccessor(Account)
    accessor.data["1"] = {"id": 1, name: value}
    return accessor


def in_json(folder, name, value):
    (folder / "docs").mkdir()
    (folder / "docs" / "1.json").write_text(json.dumps({"id": 1, name: value}))
    return JsonFolderAccessor(Account, folder / "docs")


def in_csv(folder, name, value):
    rest = [one for one in ("pin", "born", "notes", "extra") if one != name]
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", name, *rest], ["1", value, "", "", ""]])
    return CsvAccessor(Account, folder / "a.csv")


@pytest.mark.parametrize("name", ["pin", "born", "notes", "extra"])
@pytest.mark.parametrize("place", [in_sqlite, in_memory, in_json, in_csv])
def test_a_value_that_cannot_be_read_is_not_shown(tmp_path, place, name):
    """By no way of reading: get, find, capture, and the notes of unreadable records."""
    accessor = place(tmp_path, name, "[hunter22")
    told = []
    with Store("accounts", accessor, index=None if place is in_sqlite else MemoryIndex(),
               publisher=FakeBus()) as store:  # fmt: skip
        with pytest.raises(EventSyncError) as caught:
            store.get(Account, 1)
        told.append(texts(caught.value))
        errors = []
        assert list(store.find(Account, unreadable=errors.append)) == []
        told += map(texts, errors)
        for _ in store.capture(unreadable=errors.append):
            pass
        told += map(texts, errors)
        told += [repr(note) for note in store.unreadable_records.of("Account").values()]
    assert len(told) >= 4
    assert not [text for text in told if "hunter22" in text]
