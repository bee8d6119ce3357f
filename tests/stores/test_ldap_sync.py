"""What others write to a directory, asked for every second, with ldap3 as the foreign writer."""

from __future__ import annotations

import itertools
import time

import ldap3
import pytest
from servers.slapd import SlapdServer

from eventsync.engine.store import Store
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.ldap.accessor import escaped
from eventsync.stores.ldap.sync import LdapSync
from eventsync.testing import FakeBus, SourceContract
from eventsync.testing.sources import _Observer

NUMBERS = itertools.count()
FIELDS = "id name amount note email city score active place number guests"


@pytest.fixture(scope="module")
def server():
    with SlapdServer(attributes=[f"x-{name}" for name in FIELDS.split()]) as running:
        yield running


@pytest.fixture
def client(server):
    client = server.client()
    yield client
    client.unbind()


class _Quick(LdapAccessor):
    """Asks more often than once a second, so that the tests take less time."""

    @classmethod
    def sources(cls, accessors, store):
        return [LdapSync(accessors, every=0.05, gone_every=0.05)]


class TestSync(SourceContract):
    """The suite of change sources."""

    kind = "sync"
    complete = installs = False
    keyless = unreadable = None

    @pytest.fixture(autouse=True)
    def _connect(self, server, client):
        self.server, self.client, self.units = server, client, {}

    def unit(self, folder, record_type):
        name = record_type.__record__.name
        if (folder, name) not in self.units:
            self.units[folder, name] = f"ou=s{next(NUMBERS)},dc=example,dc=org"
            assert self.client.add(self.units[folder, name], "organizationalUnit")
        return self.units[folder, name]

    def rdn(self, record_type):
        return "+".join(f"x-{key}={{{key}}}" for key in record_type.__record__.keys)

    def accessor(self, record_type, folder):
        return _Quick(
            record_type,
            self.server.url,
            dn=f"{self.rdn(record_type)},{self.unit(folder, record_type)}",
            object_classes=["testRecord"],
            user=self.server.user_dn,
            password=self.server.password,
            view=View(rename={name: f"x-{name}" for name in record_type.__record__.fields}),
        )

    def index(self, accessor, folder):
        return FileIndex(folder / "versions.db")

    def edit(self, folder, *edits):
        for edit in edits:
            unit, type = self.unit(folder, edit.record_type), edit.record_type.__record__

            def rdn(values, edit=edit, type=type):
                own = {name: escaped(str(values[name])) for name in type.keys}
                return self.rdn(edit.record_type).format(**own)

            if edit.values is None:
                assert self.client.delete(f"{rdn(edit.key)},{unit}"), self.client.result
                continue
            sent = {f"x-{n}": self.sent(value) for n, value in edit.values.items()}
            if edit.key is None:
                sent = {name: values for name, values in sent.items() if values}
                assert self.client.add(f"{rdn(edit.values)},{unit}", ["testRecord"], sent), (
                    self.client.result
                )
                continue
            dn = f"{rdn(edit.key)},{unit}"
            if edit.values.keys() & set(type.keys):
                now = rdn({**edit.key, **edit.values})
                assert self.client.modify_dn(dn, now), self.client.result
                continue
            changes = {name: [(ldap3.MODIFY_REPLACE, values)] for name, values in sent.items()}
            assert self.client.modify(dn, changes), self.client.result

    def sent(self, value):
        if value is None:
            return []
        if isinstance(value, bool):
            return ["TRUE" if value else "FALSE"]
        return [str(value)]


class Person(Record):
    uid: str = Field(key=True)
    name: str
    surname: str


@pytest.fixture
def people(server, tmp_path):
    accessor = LdapAccessor(
        Person,
        server.url,
        dn="uid={uid},ou=people,dc=example,dc=org",
        object_classes=["inetOrgPerson"],
        user=server.user_dn,
        password=server.password,
        view=View(rename={"name": "cn", "surname": "sn"}),
    )
    store = Store(
        "people",
        accessor,
        index=FileIndex(tmp_path / "versions.db"),
        capture="sync",
        capture_every=60.0,
    )
    with store:
        yield store


def person(uid, name="Ada"):
    return f"uid={uid},ou=people,dc=example,dc=org", "inetOrgPerson", {"cn": name, "sn": "X"}


def test_only_what_was_written_is_told(people, client):
    """What is told once is not told again, although the times of writes overlap."""
    accessor = people.accessors["Person"]
    for number in range(20):
        assert client.add(*person(f"p{number}"))
    keys, mark = accessor.changed_since("", None)
    assert len(keys) == 20
    assert accessor.changed_since(mark, None) == ([], mark)
    client.modify(person("p3")[0], {"cn": [(ldap3.MODIFY_REPLACE, ["Bob"])]})
    keys, later = accessor.changed_since(mark, None)
    assert keys == ["p3"]
    assert later != mark
    # What was not captured, because the mark was not saved, is told again.
    again, _ = accessor.changed_since(mark, None)
    assert "p3" in again
    for number in range(20):
        client.delete(person(f"p{number}")[0])


def test_a_written_entry_is_captured_within_seconds(people, client):
    bus = FakeBus()
    follower = people.follower(bus, _Observer())
    follower.open()
    follower.step(0.0)
    began = time.monotonic()
    assert client.add(*person("ada"))
    while not bus.changes():
        follower.step(0.5)
    assert time.monotonic() - began < 5.0
    follower.close()
    client.delete(person("ada")[0])


def test_deleted_entries_are_told_by_their_names(people, client):
    source = LdapSync([people.accessors["Person"]], every=0.0, gone_every=0.0)
    people.add([Person(uid=f"d{number}", name="Ada", surname="X") for number in range(3)])
    source.open("-")
    assert source.changes("-", wait=1.0).keys == {}
    client.delete(person("d1")[0])
    deadline = time.monotonic() + 10.0
    while not (told := source.changes("-", wait=1.0).keys):
        assert time.monotonic() < deadline
    assert {type: set(keys) for type, keys in told.items()} == {"Person": {"d1"}}


def test_a_user_who_may_not_read_the_times(tmp_path):
    """The check says so, and a capture reads all entries."""
    database = "access to attrs=entryCSN,modifyTimestamp by * none\naccess to * by * read\n"
    with SlapdServer(database=database) as server:
        accessor = LdapAccessor(
            Person,
            server.url,
            dn="uid={uid},ou=people,dc=example,dc=org",
            object_classes=["inetOrgPerson"],
            view=View(rename={"name": "cn", "surname": "sn"}),
        )
        store = Store("p", accessor, index=FileIndex(tmp_path / "v.db"), capture="auto")
        source = store.change_source()
        assert [finding.level.name for finding in source.findings()] == ["WRONG"]
        assert not source.state().installed
        assert accessor.changed_since("", None) is None
        accessor.close()


def test_a_source_waits_between_two_questions(people):
    """While it waits, it tells nothing, and the wait of the caller is kept."""
    source = LdapSync([people.accessors["Person"]], every=30.0)
    source.open("-")
    assert source.changes("-", wait=0.0).recent == ["Person"]
    began = time.monotonic()
    assert not source.changes("-", wait=0.2).recent
    assert 0.15 < time.monotonic() - began < 5.0
