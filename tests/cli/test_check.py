"""``eventsync check``: it creates nothing unless told, and says what is wrong beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ldap3
import pytest
import redis
from servers.mongodb import MongoServer
from servers.objects import ObjectServer
from servers.redis import RedisServer
from servers.slapd import SlapdServer
from support.project import Cli

from eventsync.engine.store import Store
from eventsync.records.record import Field, Record
from eventsync.stores.mongo import MongoAccessor


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


PROJECT = """
from __future__ import annotations

from eventsync import Field, Record, Store, StoreRegistry, View
{imports}


class Item(Record):
    id: {key} = Field(key=True)
    name: str = ""


registry = StoreRegistry(Store("crm", {accessor}))
"""
FILES = "from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor"
SQL = "from eventsync.stores.sql import SqlAccessor"
LDAP = (
    "LdapAccessor(Item, {url!r}, dn='cn={{id}},ou=people,dc=example,dc=org',"
    " object_classes=['device'], user='cn=admin,dc=example,dc=org', password='secret',"
    " view=View(rename={{'id': 'cn', 'name': 'description'}})), index='crm.db'"
)
REST = (
    "RestAccessor(Item, Service({url!r}, allow=['127.0.0.0/8']),"
    " Resource(items='items', item='items/{{id}}')), index='crm.db'"
)
LOCAL = {
    "csv": (FILES, "CsvAccessor(Item, 'crm.csv')"),
    "csv in a folder": (FILES, "CsvAccessor(Item, 'new/crm.csv')"),
    "csv and index": (FILES, "CsvAccessor(Item, 'crm.csv'), index='crm.db'"),
    "json lines": (FILES, "JsonLinesAccessor(Item, 'crm.jsonl')"),
    "documents": (FILES, "JsonFolderAccessor(Item, 'documents')"),
    "documents and index": (FILES, "JsonFolderAccessor(Item, 'documents'), index='crm.db'"),
    "sqlite": (SQL, "SqlAccessor(Item, 'sqlite:///crm.db', create=True)"),
    "memory": (
        "from eventsync.stores.memory import MemoryAccessor",
        "MemoryAccessor(Item), index='crm.db'",
    ),
}
SERVED = {
    "redis": ("from eventsync.stores.redis import RedisAccessor", "RedisAccessor(Item, {url!r})"),
    "mongodb": ("from eventsync.stores.mongo import MongoAccessor", "MongoAccessor(Item, {url!r})"),
    "ldap": ("from eventsync.stores.ldap import LdapAccessor", LDAP),
    "rest": ("from eventsync.stores.rest import Resource, RestAccessor, Service", REST),
}


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def mongodb() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


@pytest.fixture(scope="module")
def slapd() -> Iterator[SlapdServer]:
    with SlapdServer() as server:
        yield server


@pytest.fixture(scope="module")
def rest() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


def project(folder: Path, imports: str, accessor: str, *, key: str = "int") -> Cli:
    """Write a project with one store."""
    text = PROJECT.format(imports=imports, accessor=accessor, key=key)
    (folder / "workers.py").write_text(text, encoding="utf-8")
    return Cli(folder)


def files_in(folder: Path) -> set[str]:
    """Return the paths of all that is in a folder, without Python's own files."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if "__pycache__" not in name}


def texts(findings: Any, level: str) -> str:
    return "\n".join(finding["text"] for finding in findings if finding["level"] == level)


@pytest.mark.parametrize("kind", LOCAL)
def test_check_creates_no_file(folder: Path, kind: str) -> None:
    """In a folder without data, nothing appears; with ``--create`` the next check finds it all."""
    cli = project(folder, *LOCAL[kind])
    before = files_in(folder)
    for _ in range(2):
        findings = cli("check", "--json").check().json
        assert files_in(folder) == before
    said = texts(findings, "ok")
    assert "does not exist yet" in said
    assert "nothing was created" in said
    assert "can be opened" not in said
    assert "broker file" in said
    findings = cli("check", "--create", "--json").check().json
    assert "can be read and written" in texts(findings, "ok")
    assert files_in(folder) > before
    assert "does not exist yet" not in str(cli("check", "--json").check().json)


@pytest.mark.parametrize("kind", SERVED)
def test_check_creates_nothing_in_a_server(
    folder: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """So it is with servers: no key, collection, entry or object appears."""
    name = {"redis": "redis_server", "ldap": "slapd"}.get(kind, kind)
    server = request.getfixturevalue(name)
    url = f"{server.url}/shop" if kind == "mongodb" else server.url
    imports, accessor = SERVED[kind]
    key = "str" if kind in ("ldap", "rest") else "int"
    cli = project(folder, imports, accessor.format(url=url), key=key)
    before = files_in(folder), held_by(kind, server)
    findings = cli("check", "--json").check().json
    assert (files_in(folder), held_by(kind, server)) == before
    assert "the version index" in texts(findings, "ok")
    assert "nothing was created" in texts(findings, "ok")
    findings = cli("check", "--create", "--json").check().json
    assert "can be read and written" in texts(findings, "ok")
    assert "does not exist yet" not in str(cli("check", "--json").check().json)


def held_by(kind: str, server: Any) -> Any:
    """Return all that a server holds, as another client sees it."""
    if kind == "redis":
        with server.client() as client:
            return sorted(client.keys("*"))
    if kind == "mongodb":
        with server.client() as client:
            return sorted(client.shop.list_collection_names())
    if kind == "ldap":
        client = server.client()
        client.search("dc=example,dc=org", "(objectClass=*)", ldap3.SUBTREE)
        found = sorted(entry["dn"] for entry in client.response)
        client.unbind()
        return found
    return {name: dict(held) for name, held in server.objects.items() if held}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.slow
def test_check_declares_nothing_at_a_broker(
    folder: Path, broker: str, redis_server: RedisServer
) -> None:
    """No exchange, queue or key is made at the broker."""
    cli = project(folder, *LOCAL["csv"])
    if broker == "redis":
        before = held_by("redis", redis_server)
        url = f"{redis_server.url}?prefix={{check}}:"
        cli("check", "--json", "--broker", url).check()
        assert held_by("redis", redis_server) == before
        return
    from servers.rabbitmq import RabbitServer

    with RabbitServer() as server:
        cli("check", "--json", "--broker", server.url).check()
        assert "eventsync" not in server.ctl("-q", "list_exchanges", "name").split()


# -- what is wrong beforehand ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ('id,name\n1,Ann\n2,"Bob\n3,Cid\n', "wrong", "line 3: a quote"),
        ('id,name\n1,"', "wrong", "line 2: a quote"),
        ("id,name\n1,Ann\nx,Bob\ny,Cid\n", "risk", "2 records of crm.csv cannot be read"),
        ("id,name\n1,Ann\n1,Bob\n", "risk", "stands there twice"),
    ],
)
def test_what_cannot_be_read_in_a_file(folder: Path, text: str, level: str, said: str) -> None:
    """An open cell, records without a sound key and keys that stand twice are named."""
    (folder / "crm.csv").write_text(text, encoding="utf-8")
    cli = project(folder, *LOCAL["csv"])
    ran = cli("check", "--json").check(1 if level == "wrong" else 0)
    assert said in texts(ran.json, level)
    assert (folder / "crm.csv").read_text(encoding="utf-8") == text


def test_rights_in_redis(folder: Path) -> None:
    """The commands that a user may not run are named with the rule that allows them."""
    with RedisServer() as server:
        client: Any = server.client()
        rules = ("on", ">right", "~Item:*", "+@read", "+@connection", "+hset", "+eval")
        client.execute_command("ACL", "SETUSER", "few", *rules)
        url = server.url.replace("://", "://few:right@")
        cli = project(folder, SERVED["redis"][0], f"RedisAccessor(Item, {url!r})")
        ran = cli("check", "--json").check(1)
        wrong = next(f for f in ran.json if f["level"] == "wrong")
        for word in ("DEL", "XADD", "ZADD", "HDEL"):
            assert word in wrong["text"]
        assert held_by("redis", server) == []
        (statement,) = wrong["statements"]
        client.execute_command(*statement.split())
        client.execute_command("ACL", "SETUSER", "few", "+evalsha", "+script|load")
        assert cli("check", "--json").check().json
        assert "can be read and written" in cli("check", "--create").check().out
        client.close()
        with redis.Redis.from_url(url) as other:
            assert other.ping()


READ = {"resource": {"db": "shop", "collection": ""}, "actions": ["find", "listIndexes"]}
WRITE = {
    "resource": {"db": "shop", "collection": "Item"},
    "actions": ["find", "insert", "update", "remove", "createIndex"],
}
EVERYWHERE = {"resource": {"db": "", "collection": ""}, "actions": WRITE["actions"]}


@pytest.mark.parametrize(
    ("privileges", "lacking"),
    [
        ([READ], {"Item", "eventsync_version", "eventsync_mark"}),
        ([READ, WRITE], {"eventsync_version", "eventsync_mark"}),
        ([EVERYWHERE], set()),
        ([{"resource": {"anyResource": True}, "actions": WRITE["actions"]}], set()),
        ([], set()),
    ],
)
def test_rights_in_mongodb(
    mongodb: MongoServer, monkeypatch: pytest.MonkeyPatch, privileges: Any, lacking: set[str]
) -> None:
    """The actions that a user may not do are named by collection, if the server tells them.

    The stand-in for mongod tells none, so the answers are written here as mongod gives them.
    """
    accessor = MongoAccessor(Item, f"{mongodb.url}/shop")
    told = {"authenticatedUsers": [{"user": "u"}], "authenticatedUserPrivileges": privileges}

    class Told:
        def command(self, name: str, **options: Any) -> Any:
            assert (name, options) == ("connectionStatus", {"showPrivileges": True})
            return {"authInfo": told}

    with Store("crm", accessor) as store:
        monkeypatch.setattr(accessor.database, "_database", Told)
        findings = list(accessor.findings())
        monkeypatch.undo()
        assert store.name == "crm"
    assert {f.text.partition("collection ")[2].split("'")[1] for f in findings} == lacking
    assert all("insert, update, remove, createIndex" in finding.text for finding in findings)
    assert all("readWrite" in finding.statements[0] for finding in findings)


def test_keys_of_a_directory_that_ignore_case(folder: Path, slapd: SlapdServer) -> None:
    """A key attribute whose matching rule ignores case is stated; one with exact case is not."""
    imports, accessor = SERVED["ldap"]
    text = accessor.format(url=slapd.url)
    cli = project(folder, imports, text, key="str")
    assert "the key attribute cn ignores case" in texts(cli("check", "--json").json, "note")
    for changed, key in ((text, "int"), (text.replace("'cn'", "'serialNumber'"), "str")):
        cli = project(folder, imports, changed, key=key)
        said = texts(cli("check", "--json").json, "note")
        assert ("ignores case" in said) is (key == "str")
    exact = text.replace("'id': 'cn'", "'id': 'userPassword'")
    cli = project(folder, imports, exact, key="str")
    assert "ignores case" not in str(cli("check", "--json").json)
