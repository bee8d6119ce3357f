"""A record that cannot be read, in each kind of store, as an operator meets it.

A foreign writer makes one record unreadable. The worker names it once and goes on, a change from
another store does not overwrite it, and ``verify``, ``find`` and ``synchronize`` report it.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid

import pytest
import sqlalchemy as sa
from servers.github import GitHubSimulator
from servers.mariadb import MariaServer
from servers.mongodb import MongoServer
from servers.objects import ObjectServer
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.slapd import SlapdServer
from structlog.testing import capture_logs

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.engine.gate import Outcome
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.identity import IdentityMap
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.mongo import MongoAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.rest import Links, Resource, RestAccessor, Service
from eventsync.stores.sql import SqlAccessor
from eventsync.stores.trackers import Issue
from eventsync.stores.trackers.github import GitHubIssues, GitHubService
from eventsync.verify import Kind, compare
from eventsync.worker.worker import Worker

DEEP = "[" * 900 + "]" * 900


class PerRecord(Record):
    id: str = Field(key=True)
    name: str
    count: int = 0
    born: dt.date | None = None
    tags: list[str] | None = None


class PerField(Record, rule="field"):
    id: str = Field(key=True)
    name: str
    count: int = 0
    born: dt.date | None = None
    tags: list[str] | None = None


# -- kinds of stores, with a foreign writer --------------------------------------------------------


class _Database:
    """A table of somebody else. The foreign writer uses plain SQL; odd values are SQL."""

    index = None

    def __init__(self, type, folder, servers, kind):
        self.table = type.__record__.name.lower()
        if kind == "sqlite":
            url = f"sqlite:///{folder}/data.db"
        else:
            name = f"t{uuid.uuid4().hex}"
            engine = sa.create_engine(servers(kind).url)
            with engine.begin() as connection:
                connection.exec_driver_sql(f"CREATE SCHEMA {name}")
            engine.dispose()
            url = f"{servers(kind).url}?options=-csearch_path%3D{name}"
            if kind == "mariadb":
                named = sa.make_url(servers(kind).url).set(database=name)
                url = named.render_as_string(hide_password=False)
        self.engine = sa.create_engine(url)
        self.run(
            f"CREATE TABLE {self.table} (id varchar(600) PRIMARY KEY, name varchar(50),"
            " count INTEGER, born date, tags text)"
        )
        self.accessor = SqlAccessor(type, url, table=self.table)

    def close(self):
        self.engine.dispose()

    def run(self, statement):
        with self.engine.begin() as connection:
            if self.engine.dialect.name in ("mysql", "mariadb"):
                connection.exec_driver_sql("SET sql_mode = ''")
            return connection.execute(sa.text(statement))

    def fill(self, key):
        self.run(f"INSERT INTO {self.table} (id, name, count) VALUES ('{key}', 'x', 1)")

    def set(self, key, field, value):
        self.run(f"UPDATE {self.table} SET {field} = {value} WHERE id = '{key}'")

    def raw(self, key):
        columns = "id, name, count, CAST(born AS char(20)), tags"
        return list(self.run(f"SELECT {columns} FROM {self.table} WHERE id = '{key}'"))

    def heal(self, key):
        self.run(f"UPDATE {self.table} SET name = 'mended', born = NULL, tags = NULL, count = 5"
                 f" WHERE id = '{key}'")  # fmt: skip


class _Json:
    """The base of stores of JSON objects, whose members a foreign writer sets as text."""

    index = None

    def close(self):
        """Close the connection of the foreign writer, if it has one."""

    def fill(self, key):
        self.write(key, {"id": json.dumps(key), "name": '"x"', "count": "1"})

    def set(self, key, field, text):
        members = {"id": json.dumps(key), "name": '"y"', "count": "7"}
        self.write(key, members | {field: text})

    def heal(self, key):
        self.write(key, {"id": json.dumps(key), "name": '"mended"', "count": "5"})

    @staticmethod
    def text(members):
        return "{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}"


class _Folder(_Json):
    """A folder of documents."""

    def __init__(self, type, folder, servers, kind):
        self.path = folder / "documents"
        self.accessor = JsonFolderAccessor(type, self.path)
        self.path.mkdir()

    def write(self, key, members):
        (self.path / f"{key}.json").write_text(self.text(members), encoding="utf-8")

    def raw(self, key):
        return (self.path / f"{key}.json").read_text(encoding="utf-8")


class _Lines(_Json):
    """A file of JSON lines, in the order of the keys."""

    def __init__(self, type, folder, servers, kind):
        self.path = folder / "records.jsonl"
        self.accessor = JsonLinesAccessor(type, self.path)

    def lines(self):
        found = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return {line.partition('"id": "')[2][:1] or line.partition('"id":"')[2][:1]: line
                for line in found}  # fmt: skip

    def write(self, key, members):
        lines = {**self.lines(), key: self.text(members)}
        self.path.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")

    def raw(self, key):
        return self.lines()[key]


class _Csv(_Json):
    """A CSV file; odd values are the text of a cell."""

    def __init__(self, type, folder, servers, kind):
        self.path = folder / "records.csv"
        self.accessor = CsvAccessor(type, self.path)
        self.rows = {}

    def write(self, key, members):
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines()[1:]:
                self.rows[line[:1]] = line
        cells = [members.get(name, "") for name in ("id", "name", "count", "born", "tags")]
        self.rows[key] = ",".join(cell.strip('"') for cell in cells)
        text = "id,name,count,born,tags\n" + "".join(f"{row}\n" for row in self.rows.values())
        self.path.write_text(text, encoding="utf-8")

    def raw(self, key):
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(f"{key},"))


class _Redis(_Json):
    """Redis keys, as hashes or as JSON."""

    def __init__(self, type, folder, servers, kind):
        self.client = servers("redis").client()
        self.client.flushall()
        self.layout = kind.partition(" ")[2]
        self.accessor = RedisAccessor(type, servers("redis").url, layout=self.layout)
        self.type = type.__record__.name

    def write(self, key, members):
        if self.layout == "json":
            self.client.set(f"{self.type}:{key}", self.text(members))
        else:
            plain = {n: t if n == "tags" else t.strip('"') for n, t in members.items()}
            self.client.hset(f"{self.type}:{key}", mapping=plain)

    def heal(self, key):
        self.client.delete(f"{self.type}:{key}")
        super().heal(key)

    def close(self):
        self.client.close()

    def raw(self, key):
        if self.layout == "json":
            return self.client.get(f"{self.type}:{key}")
        return self.client.hgetall(f"{self.type}:{key}")


class _Mongo(_Json):
    """MongoDB documents."""

    def __init__(self, type, folder, servers, kind):
        self.client = servers("mongo").client()
        self.client.drop_database("shop")
        self.documents = self.client["shop"][type.__record__.name]
        self.accessor = MongoAccessor(type, f"{servers('mongo').url}/shop")

    def write(self, key, members):
        values = {name: json.loads(text) for name, text in members.items()}
        self.documents.replace_one({"_id": key}, values, upsert=True)

    def raw(self, key):
        return self.documents.find_one({"_id": key})

    def close(self):
        self.client.close()


class _Rest(_Json):
    """A REST service."""

    def __init__(self, type, folder, servers, kind):
        self.server = servers("rest")
        self.server.objects["things"] = {}
        service = Service(self.server.url, allow=["127.0.0.1"])
        described = Resource(
            items="/things", item="/things/{key}", create="PUT", pages=Links(size=10)
        )
        self.accessor = RestAccessor(type, service, described)
        self.index = FileIndex(folder / "rest.db")

    def write(self, key, members):
        values = {name: json.loads(text) for name, text in members.items()}
        self.server.objects["things"][key] = values

    def raw(self, key):
        return dict(self.server.objects["things"][key])


class _Ldap(_Json):
    """A directory whose attributes hold any bytes."""

    def __init__(self, type, folder, servers, kind):
        server = servers("ldap")
        self.client = server.client()
        unit = f"ou=u{uuid.uuid4().hex},dc=example,dc=org"
        assert self.client.add(unit, "organizationalUnit"), self.client.result
        names = ("id", "name", "count", "born", "tags")
        self.dn = f"x-id={{}},{unit}"
        self.accessor = LdapAccessor(
            type,
            server.url,
            dn=f"x-id={{id}},{unit}",
            object_classes=["testRecord"],
            user=server.user_dn,
            password=server.password,
            view=View(rename={name: f"x-{name}" for name in names}),
        )
        self.index = FileIndex(folder / "ldap.db")

    def write(self, key, members):
        self.client.delete(self.dn.format(key))
        values = {f"x-{name}": text.strip('"') for name, text in members.items()}
        assert self.client.add(self.dn.format(key), "testRecord", values), self.client.result

    def close(self):
        self.client.unbind()

    def raw(self, key):
        self.client.search(self.dn.format(key), "(objectClass=*)", attributes=["*"])
        return [dict(entry["raw_attributes"]) for entry in self.client.response]


class _Memory(_Json):
    """Memory."""

    def __init__(self, type, folder, servers, kind):
        self.accessor = MemoryAccessor(type)

    def write(self, key, members):
        values = {name: json.loads(text) for name, text in members.items()}
        self.accessor.data[key] = {"born": None, "tags": None, **values}

    def raw(self, key):
        return dict(self.accessor.data[key])


KINDS = {
    "postgres": _Database,
    "mariadb": _Database,
    "sqlite": _Database,
    "folder": _Folder,
    "lines": _Lines,
    "csv": _Csv,
    "redis json": _Redis,
    "redis hash": _Redis,
    "mongo": _Mongo,
    "rest": _Rest,
    "ldap": _Ldap,
    "memory": _Memory,
}
ODD = [
    ("postgres", "born", "'infinity'"),
    ("postgres", "born", "'0044-03-15 BC'"),
    ("postgres", "born", "'15000-01-01'"),
    ("postgres", "tags", "''"),
    ("postgres", "tags", "'[broken'"),
    ("postgres", "name", "NULL"),
    ("mariadb", "born", "'0000-00-00'"),
    ("mariadb", "tags", "'[broken'"),
    ("sqlite", "born", "'infinity'"),
    ("sqlite", "name", "NULL"),
    ("folder", "count", "1e9999999999999999999"),
    ("folder", "tags", DEEP),
    ("folder", "name", "null"),
    ("lines", "count", "1e9999999999999999999"),
    ("lines", "tags", "[broken"),
    ("csv", "count", "many"),
    ("csv", "tags", "[broken"),
    ("redis json", "count", "1e9999999999999999999"),
    ("redis json", "tags", DEEP),
    ("redis hash", "count", "many"),
    ("redis hash", "tags", "[broken"),
    ("mongo", "count", '"many"'),
    ("mongo", "name", "null"),
    ("rest", "count", '"many"'),
    ("rest", "name", "null"),
    ("ldap", "count", "many"),
    ("ldap", "born", "0044-03-15 BC"),
    ("memory", "count", '"many"'),
    ("memory", "name", "null"),
]


@pytest.fixture(scope="module")
def servers():
    """Return a function that returns a server by its kind, and starts it if need be."""
    started = {}

    def server(kind):
        if kind not in started:
            attributes = [f"x-{name}" for name in ("id", "name", "count", "born", "tags")]
            made = {
                "postgres": PostgresServer,
                "mariadb": MariaServer,
                "redis": RedisServer,
                "mongo": MongoServer,
                "rest": ObjectServer,
                "ldap": lambda: SlapdServer(attributes=attributes),
            }[kind]()
            started[kind] = made, made.__enter__()
        return started[kind][1]

    yield server
    for made, _ in started.values():
        made.__exit__(None, None, None)


@pytest.fixture
def foreign_of(servers, tmp_path):
    """Return a function that returns a store of some kind with a foreign writer."""
    made = []

    def foreign(type, kind):
        made.append(KINDS[kind](type, tmp_path, servers, kind))
        return made[-1]

    yield foreign
    for one in made:
        one.close()


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("theirs", ["PerRecord", "PerField"])
        bus.declare("peer", ["PerRecord", "PerField"])
        yield bus


def named(logs):
    """Return what the log says of unreadable records, as (event, store, type, key or place)."""
    return [
        (line["event"], line["store"], line["type"], line.get("key") or line["place"])
        for line in logs
        if "unreadable" in line["event"]
    ]


@pytest.mark.parametrize("type", [PerRecord, PerField])
@pytest.mark.parametrize(("kind", "field", "value"), ODD, ids=lambda value: str(value)[:14])
def test_one_record_that_cannot_be_read(foreign_of, bus, type, kind, field, value):
    """It is named once, left as it is, counted, reported, and captured as soon as it is mended."""
    name = type.__record__.name
    foreign = foreign_of(type, kind)
    for key in "abc":
        foreign.fill(key)
    theirs = Store("theirs", foreign.accessor, index=foreign.index, capture_every=0.01)
    peer = Store("peer", MemoryAccessor(type), publisher=bus)
    registry = StoreRegistry(theirs, peer)
    with registry.open(publisher=bus):
        worker = Worker(theirs, bus)
        with capture_logs() as logs:
            worker.drain(timeout=0.02)
            Worker(peer, bus).drain(timeout=0.02)
            assert peer.count() == 3
            foreign.set("b", field, value)
            before = foreign.raw("b")
            foreign.fill("d")
            worker.drain(timeout=0.02)
            worker.drain(timeout=0.02)
        ((event, store, of, about),) = named(logs)
        assert (event, store, of) == ("record unreadable, not captured", "theirs", name)
        assert about == "b" or (kind == "lines" and about.endswith("line 2"))
        # A new process of the worker does not repeat it, and the others were captured.
        Worker(peer, bus).drain(timeout=0.02)
        assert sorted(record.key for record in peer.find()) == ["a", "b", "c", "d"]
        # A change from another store, and a delete, do not touch it; others are applied.
        changed = {record.key: record for record in peer.find()}
        for key in "ab":
            changed[key]["name"] = "from the peer"
        peer.update([changed["a"], changed["b"]])
        worker = Worker(theirs, bus)
        with capture_logs() as logs:
            worker.drain(timeout=0.02)
        assert named(logs) == []
        assert worker.outcomes[Outcome.HELD] == 1
        assert worker.outcomes[Outcome.APPLIED] == 1
        assert foreign.raw("b") == before
        assert theirs.get(type, "a").name == "from the peer"
        with bus.letters("theirs", held=True) as held:
            ((letter, _),) = held.read()
        assert (letter.reason, letter.key) == ("unreadable", "b")
        gone = Change(type=name, key="b", op="delete", version=peer.clock.tick(), data=None)
        bus.publish(name, [bus.encode(gone)])
        worker.drain(timeout=0.02)
        assert foreign.raw("b") == before
        # The checks tell.
        comparison = compare(registry)
        assert not comparison
        counts = comparison.stores["theirs"][name]
        assert (counts.unreadable, counts.error) == (1, "")
        (difference,) = (d for d in comparison.differences if d.store == "theirs")
        assert difference.kind is Kind.UNREADABLE
        unreadable = []
        found = registry.find(type, unreadable=lambda store, error: unreadable.append(store))
        assert sorted(record.key for record in found["theirs"]) == ["a", "c", "d"]
        assert unreadable == ["theirs"]
        report = registry.synchronize()
        assert foreign.raw("b") == before
        assert {store for store, _ in report.unreadable} == {"theirs"}
        # The owner mends it: the mended record is the later write.
        foreign.heal("b")
        with capture_logs() as logs:
            worker.drain(timeout=0.02)
        ((event, *_, about),) = named(logs)
        assert event == "record no longer unreadable"
        assert theirs.unreadable_records.of(name) == {}
        assert theirs.get(type, "b").name == "mended"


@pytest.mark.parametrize("odd", ["301", {"labels": [7]}, {"state": 5}], ids=str)
def test_an_issue_of_a_tracker(tmp_path, odd):
    """One that was moved away, or has odd members, is named once; the others go both ways."""
    with GitHubSimulator() as github, Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("github", ["Issue"])
        bus.declare("peer", ["Issue"])
        service = GitHubService("good-token", url=github.url, allow=["127.0.0.1"])
        identity = IdentityMap(tmp_path / "ids.db", name="github")
        accessor = GitHubIssues(Issue, service, "ann/shop", identity=identity)
        tracker = Store("github", accessor, index=FileIndex(tmp_path / "v.db"), capture_every=0.01)
        peer = Store("peer", MemoryAccessor(Issue))
        with StoreRegistry(tracker, peer).open(publisher=bus) as registry:
            tracker.add([Issue(id=key, title="t") for key in ("A", "B")])
            Worker(peer, bus).drain(timeout=0.02)
            number = int(identity.id_of("Issue", "A"))
            if odd == "301":
                act, path = github.act, f"/repos/ann/shop/issues/{number}"
                moved = 301, {"message": "Moved Permanently"}, {"Location": f"{github.url}/x/1"}
                vars(github)["act"] = lambda asked: moved if asked.path == path else act(asked)
                del github.issues[number]
            else:
                github.issues[number] |= odd
            github.edits(int(identity.id_of("Issue", "B")), title="theirs")
            worker = Worker(tracker, bus)
            with capture_logs() as logs:
                worker.drain(timeout=0.02)
                tracker.capture_whole_every = 0.0
                worker.drain(timeout=0.02)
                worker.drain(timeout=0.02)
            assert named(logs) == [("record unreadable, not captured", "github", "Issue", "A")]
            Worker(peer, bus).drain(timeout=0.02)
            assert peer.get(Issue, "B").title == "theirs"
            issues = [peer.get(Issue, key) for key in "AB"]
            for issue in issues:
                issue.title = "ours"
            peer.update(issues)
            worker.drain(timeout=0.02)
            assert tracker.get(Issue, "B").title == "ours"
            assert worker.outcomes[Outcome.HELD] == 1
            assert compare(registry).stores["github"]["Issue"].unreadable == 1
            assert peer.get(Issue, "A").title == "ours"


def test_a_key_that_is_too_long(foreign_of, bus):
    """A row whose key no record can have is named by what the row holds; the others go on."""
    foreign = foreign_of(PerRecord, "postgres")
    for key in ("a", "k" * 513):
        foreign.fill(key)
    theirs = Store("theirs", foreign.accessor, capture_every=0.01)
    peer = Store("peer", MemoryAccessor(PerRecord))
    with StoreRegistry(theirs, peer).open(publisher=bus) as registry:
        worker = Worker(theirs, bus)
        with capture_logs() as logs:
            worker.drain(timeout=0.02)
            worker.drain(timeout=0.02)
        ((_, _, of, place),) = named(logs)
        assert of == "PerRecord"
        assert place.startswith("kkkkk")
        assert len(place) <= 512
        Worker(peer, bus).drain(timeout=0.02)
        assert [record.key for record in peer.find()] == ["a"]
        comparison = compare(registry)
        assert comparison.stores["theirs"]["PerRecord"].unreadable == 1
        assert comparison.total == 1
        report = registry.synchronize()
        assert [store for store, _ in report.unreadable] == ["theirs"]
        foreign.run(f"DELETE FROM {foreign.table} WHERE id <> 'a'")
        worker.drain(timeout=0.02)
        assert theirs.unreadable_records.count("PerRecord") == 0
        assert compare(registry)
