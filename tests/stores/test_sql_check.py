"""What ``eventsync check`` says of SQL tables before a store is opened."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, fresh_database

from eventsync.engine.finding import Level
from eventsync.engine.store import Store
from eventsync.errors import BusUnavailableError, ConfigError
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor, derive


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def foreign(request, servers, tmp_path):
    """A database of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    database.run("CREATE TABLE other (id INTEGER)")
    yield database
    database.engine.dispose()


class Person(Record):
    id: int = Field(key=True)
    name: str = ""
    born: dt.date | None = None


SOUND = "CREATE TABLE person (id BIGINT NOT NULL PRIMARY KEY, name {text} NOT NULL, born DATE)"


def look(accessor):
    """Return the findings about an accessor as a store binds it, before it is opened."""
    Store("people", accessor)
    return list(accessor.findings())


def tables(foreign):
    return set(sa.inspect(foreign.engine).get_table_names())


def levels(findings, text):
    return [finding.level for finding in findings if text in finding.text]


def test_nothing_is_created(foreign):
    """Missing tables are reported with the statements that make them, and not made."""
    for create, level in ((True, Level.OK), (False, Level.WRONG)):
        accessor = SqlAccessor(Person, foreign.engine, table="person", create=create)
        findings = look(accessor)
        assert levels(findings, "'person' does not exist") == [level]
        assert levels(findings, "eventsync_version") == [Level.OK]
        assert tables(foreign) == {"other"}
    statements = [one for finding in findings for one in finding.statements]
    foreign.run(*(one.rstrip(";") for one in statements))
    assert {"person", "eventsync_version", "eventsync_outbox"} <= tables(foreign)
    with Store("people", SqlAccessor(Person, foreign.engine, table="person")) as store:
        store.add(Person(id=1, name="Ann", born="2000-01-02"))
        assert not any(store.capture())
    accessor = SqlAccessor(Person, foreign.engine, table="person")
    assert [f for f in look(accessor) if f.level is not Level.NOTE] == []


def test_an_absent_file_is_not_created(tmp_path):
    """An SQLite file that does not exist is not made by looking for it."""
    (finding,) = look(SqlAccessor(Person, f"sqlite:///{tmp_path}/none.db", create=True))
    assert (finding.level, finding.absent) == (Level.OK, True)
    assert list(tmp_path.iterdir()) == []


def test_a_derived_type_fits_its_table(foreign):
    """Nothing is wrong with a record type that was derived from the table."""
    text = "VARCHAR(40)" if foreign.kind == "mariadb" else "TEXT"
    foreign.run(SOUND.format(text=text))
    person = derive(foreign.engine, "person")
    findings = look(SqlAccessor(person, foreign.engine, table="person"))
    assert {finding.level for finding in findings} <= {Level.OK, Level.NOTE}
    assert [f.text for f in findings if "declared" in f.text] == []


def test_types_that_do_not_fit(foreign):
    """Each field whose column has another type, or takes NULL or not, is named."""
    foreign.run(
        "CREATE TABLE person (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40),"
        " born FLOAT NOT NULL, code INTEGER NOT NULL)"
    )
    findings = look(SqlAccessor(Person, foreign.engine, table="person"))
    assert levels(findings, "Person.born is declared date, but the column person.born is ")
    assert levels(findings, "person.born takes no NULL") == [Level.RISK]
    assert levels(findings, "person.name may be NULL") == [Level.NOTE]
    assert levels(findings, "name (40)") == [Level.NOTE]
    assert levels(findings, "person.code takes no NULL, has no default") == [Level.WRONG]
    view = View(constant={"code": 3})
    findings = look(SqlAccessor(Person, foreign.engine, table="person", view=view))
    assert levels(findings, "person.code") == []


def test_a_key_without_a_constraint_is_wrong(foreign):
    """The check refuses what the store refuses when it opens."""
    foreign.run("CREATE TABLE person (id BIGINT NOT NULL, name VARCHAR(40) NOT NULL, born DATE)")
    with pytest.raises(ConfigError, match="no unique constraint"):
        look(SqlAccessor(Person, foreign.engine, table="person"))


class Named(Record):
    name: str = Field(key=True)
    touched: str | None = None


def test_keys_and_triggers_are_stated(foreign):
    """The check says which keys are one to the table, and which values the table sets itself."""
    kind = {
        "sqlite": "TEXT COLLATE NOCASE",
        "postgresql": "char(8)",
        "mariadb": "VARCHAR(40) COLLATE utf8mb4_general_ci",
    }[foreign.kind]
    foreign.run(f"CREATE TABLE named (name {kind} NOT NULL PRIMARY KEY, touched VARCHAR(40))")
    if foreign.kind == "sqlite":
        foreign.run(
            "CREATE TRIGGER touch AFTER UPDATE ON named BEGIN"
            " UPDATE named SET touched = 'x' WHERE name = NEW.name; END"
        )
    elif foreign.kind == "postgresql":
        foreign.run(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.touched := now()::text; RETURN NEW; END $$",
            "CREATE TRIGGER touch BEFORE UPDATE ON named FOR EACH ROW EXECUTE FUNCTION touch()",
        )
    else:
        foreign.run(
            "CREATE TRIGGER touch BEFORE UPDATE ON named FOR EACH ROW SET NEW.touched = 'x'"
        )
    findings = look(SqlAccessor(Named, foreign.engine, table="named"))
    assert levels(findings, "takes some different keys for one") == [Level.NOTE]
    assert levels(findings, "the trigger touch (") == [Level.RISK]
    assert levels(findings, "sets touched itself") == [Level.RISK]


class Away:
    """A publisher whose broker is away, so that envelopes wait in the outbox."""

    def encode(self, change):
        return b"envelope"

    def publish(self, type, envelopes):
        raise BusUnavailableError("the broker is away")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_missing_rights_are_named_with_their_grants(servers, kind):
    """A user who may only read is told each missing right; the printed grants are enough."""
    owner = ForeignDatabase(fresh_database(servers[kind]))
    place = sa.make_url(owner.url)
    user = f"u{place.database[-8:] if kind == 'mariadb' else id(owner)}"
    if kind == "postgresql":
        (schema,) = owner.rows("SELECT current_schema()")[0]
        owner.run(f"CREATE USER {user}", f"GRANT USAGE ON SCHEMA {schema} TO {user}")
        url = place.set(username=user)
    else:
        owner.run(f"CREATE USER {user}@'%' IDENTIFIED BY 'x'")
        url = place.set(username=user, password="x")
    text = "VARCHAR(40)" if kind == "mariadb" else "TEXT"
    owner.run(SOUND.format(text=text))
    with Store("people", SqlAccessor(Person, owner.engine, table="person")):
        pass
    own = ("person", "eventsync_version", "eventsync_outbox", "eventsync_mark")
    who = f"{user}@'%'" if kind == "mariadb" else user
    owner.run(*(f"GRANT SELECT ON {table} TO {who}" for table in own))
    if kind == "postgresql":
        owner.run(f"GRANT UPDATE (name) ON person TO {user}")
    engine = sa.create_engine(url)
    findings = look(SqlAccessor(Person, engine, table="person"))
    wrong = [finding for finding in findings if finding.level is Level.WRONG]
    assert len(levels(wrong, "lacks INSERT, UPDATE, DELETE")) == 4
    assert len(levels(wrong, "lacks USAGE on")) == (kind == "postgresql")
    owner.run(*(one.rstrip(";") for finding in wrong for one in finding.statements))
    engine.dispose()
    findings = look(SqlAccessor(Person, engine, table="person"))
    assert [f.text for f in findings if f.level is Level.WRONG] == []
    if kind == "mariadb":
        assert levels(findings, "may not see whether person has triggers") == [Level.NOTE]
    accessor = SqlAccessor(Person, engine, table="person")
    with Store("people", accessor, publisher=Away()) as store:
        store.add(Person(id=1, name="Ann"))
        assert not any(store.capture())
        assert len(store.index.outgoing()) == 1
    engine.dispose()
    owner.engine.dispose()


def test_a_user_who_may_not_create(servers):
    """Missing tables are wrong where the user may not create them."""
    owner = ForeignDatabase(fresh_database(servers["postgresql"]))
    (schema,) = owner.rows("SELECT current_schema()")[0]
    user = f"plain{id(owner)}"
    owner.run(f"CREATE USER {user}", f"GRANT USAGE ON SCHEMA {schema} TO {user}")
    engine = sa.create_engine(sa.make_url(owner.url).set(username=user))
    findings = look(SqlAccessor(Person, engine, table="person", create=True))
    assert [finding.level for finding in findings] == [Level.WRONG] * 2
    statements = [one for finding in findings for one in finding.statements]
    assert any(one.startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON") for one in statements)
    engine.dispose()
    owner.engine.dispose()


def test_sequences_that_stay_behind(servers):
    """A sequence that this user may not advance, or that counts down, is named with its grant."""
    owner = ForeignDatabase(fresh_database(servers["postgresql"]))
    (schema,) = owner.rows("SELECT current_schema()")[0]
    user = f"number{id(owner)}"
    owner.run(
        f"CREATE USER {user}",
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {user}",
        "CREATE TABLE person (id BIGSERIAL PRIMARY KEY, name TEXT NOT NULL, born DATE)",
        "CREATE TABLE pair (id INT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
        " name TEXT NOT NULL, born DATE)",
        "CREATE SEQUENCE down INCREMENT -1",
        "CREATE TABLE fall (id BIGINT PRIMARY KEY DEFAULT nextval('down'), name TEXT NOT NULL,"
        " born DATE)",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON person, pair, fall TO {user}",
    )
    engine = sa.create_engine(sa.make_url(owner.url).set(username=user))
    for table, sequence in (("person", "person_id_seq"), ("pair", "pair_id_seq")):
        findings = look(SqlAccessor(Person, engine, table=table))
        assert levels(findings, f"{sequence}, which numbers {table}.id") == [Level.RISK]
        owner.run(*(s.rstrip(";") for f in findings for s in f.statements if "SEQUENCE" in s))
        assert levels(look(SqlAccessor(Person, engine, table=table)), "sequence") == []
        with Store("people", SqlAccessor(Person, engine, table=table)) as store:
            store.add(Person(id=5, name="Ann"))
        owner.run(*(f"INSERT INTO {table} (name) VALUES ('x')" for _ in range(2)))
        assert owner.rows(f"SELECT max(id) FROM {table}") == [(7,)]
    findings = look(SqlAccessor(Person, owner.engine, table="fall"))
    (finding,) = [f for f in findings if "sequence" in f.text]
    assert (finding.level, finding.statements) == (Level.RISK, ())
    assert "advance it yourself" in finding.text
    engine.dispose()
    owner.engine.dispose()


def test_a_sequence_of_mariadb_stays_behind(servers):
    """A DEFAULT with a sequence is named; AUTO_INCREMENT, which advances itself, is not."""
    owner = ForeignDatabase(fresh_database(servers["mariadb"]))
    owner.run(
        "CREATE SEQUENCE numbers",
        "CREATE TABLE person (id BIGINT NOT NULL DEFAULT nextval(numbers) PRIMARY KEY,"
        " name VARCHAR(40) NOT NULL, born DATE)",
        "CREATE TABLE own (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,"
        " name VARCHAR(40) NOT NULL, born DATE)",
    )
    findings = look(SqlAccessor(Person, owner.engine, table="person"))
    assert levels(findings, "which numbers person.id") == [Level.RISK]
    assert levels(look(SqlAccessor(Person, owner.engine, table="own")), "sequence") == []
    owner.engine.dispose()
