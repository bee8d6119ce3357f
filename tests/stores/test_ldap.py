"""The LDAP store, against a real OpenLDAP."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace

import ldap3
import pytest
from servers.slapd import SlapdServer
from support.foreign import change_of

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import (
    AlreadyExistsError,
    ConfigError,
    DependencyError,
    EventSyncError,
    FieldError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
    UniqueError,
)
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.ldap.attribute import Attributes
from eventsync.stores.ldap.result import RESULTS, error_of
from eventsync.stores.ldap.schema import AttributeNames, Schema
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing import FakeBus, StoreContract
from eventsync.testing.harness import VALUE_TYPES, put

NUMBERS = itertools.count()
FIELDS = (
    "id name amount note email city score active place number guests key value title origin"
    " flag ratio price text blob day clock moment instant token nested"
)


@pytest.fixture(scope="module")
def server():
    with SlapdServer(attributes=[f"x-{name}" for name in FIELDS.split()]) as running:
        yield running


class TestLdapAccessor(StoreContract):
    """The conformance suite on entries whose attributes hold any bytes.

    The lists of the suite hold a value twice, which no attribute can; lists are tested below.
    """

    holds = VALUE_TYPES - {list}
    longest_key = 200
    examples = 5

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server
        self.units = {}

    def unit(self, folder, name):
        if (folder, name) not in self.units:
            unit = f"ou=u{next(NUMBERS)},dc=example,dc=org"
            client = self.server.client()
            assert client.add(unit, "organizationalUnit"), client.result
            client.unbind()
            self.units[folder, name] = unit
        return self.units[folder, name]

    def accessor(self, record_type, folder, view=None):
        view = view or View()
        fields = record_type.__record__.fields
        named = {name: f"x-{(view.rename or {}).get(name, name)}" for name in fields}
        constant = {f"x-{name}": value for name, value in (view.constant or {}).items()}
        rdn = "+".join(f"{named[key]}={{{key}}}" for key in record_type.__record__.keys)
        return LdapAccessor(
            record_type,
            self.server.url,
            dn=f"{rdn},{self.unit(folder, record_type.__record__.name)}",
            object_classes=["testRecord"],
            user=self.server.user_dn,
            password=self.server.password,
            view=replace(view, rename=named, constant=constant),
        )

    def index(self, accessor, folder):
        return FileIndex(folder / "versions.db")


class Person(Record, rule="field"):
    """An ``inetOrgPerson``, the usual class for people in directories."""

    uid: str = Field(key=True)
    name: str
    surname: str
    title: str | None = None
    mails: list[str] = Field(default_factory=list)
    photo: bytes | None = None
    number: int | None = None
    open: bool | None = None
    seen: dt.datetime | None = Field(default=None, zoned=True)


SCHEMA = """
attributetype ( 1.3.6.1.4.1.55555.3.1 NAME 'y-number' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.3.2 NAME 'y-open' EQUALITY booleanMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.7 SINGLE-VALUE )
attributetype ( 1.3.6.1.4.1.55555.3.3 NAME 'y-seen' EQUALITY generalizedTimeMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.24 SINGLE-VALUE )
objectclass ( 1.3.6.1.4.1.55555.4.1 NAME 'yPerson' SUP top AUXILIARY
  MAY ( y-number $ y-open $ y-seen ) )
"""
VIEW = View(
    rename={"name": "cn", "surname": "sn", "mails": "mail", "photo": "jpegPhoto"}
    | {"number": "y-number", "open": "y-open", "seen": "y-seen"}
)


@pytest.fixture(scope="module")
def people():
    with SlapdServer(more=SCHEMA) as running:
        yield running


def persons(server, **options):
    given = {"user": server.user_dn, "password": server.password, "view": VIEW} | options
    return LdapAccessor(
        Person,
        given.pop("url", server.url),
        dn=given.pop("dn", "uid={uid},ou=people,dc=example,dc=org"),
        object_classes=["inetOrgPerson", "yPerson"],
        **given,
    )


@pytest.fixture
def store(people, tmp_path):
    with Store("people", persons(people), index=FileIndex(tmp_path / "versions.db")) as made:
        yield made
        made.remove(record_type=Person)


def test_syntaxes(people, store):
    """Integers, booleans, times, bytes and lists are stored in the syntaxes of directories."""
    seen = dt.datetime(2026, 11, 24, 10, 30, 0, 250000, dt.timezone(dt.timedelta(hours=2)))
    ada = Person(uid="ada", name="Ada", surname="Lovelace", mails=["a@b", "c@d"], number=-7)
    ada.photo, ada.open, ada.seen = b"\xff\xd8\x00", True, seen
    store.add(ada)
    client = people.client()
    client.search("uid=ada,ou=people,dc=example,dc=org", "(objectClass=*)", attributes=["*"])
    raw = client.response[0]["raw_attributes"]
    client.unbind()
    assert raw["y-seen"] == [b"20261124083000.25Z"]
    assert (raw["y-number"], raw["y-open"]) == ([b"-7"], [b"TRUE"])
    assert sorted(raw["mail"]) == [b"a@b", b"c@d"]
    assert raw["jpegPhoto"] == [b"\xff\xd8\x00"]
    assert raw["objectClass"] == [b"inetOrgPerson", b"yPerson"]
    held = store[Person, "ada"]
    assert held.raw() == ada.raw()
    held.mails, held.photo, held.open = ["e@f"], None, False
    store.update(held)
    assert store[Person, "ada"].raw() == held.raw()
    held.mails = []
    store.update(held)
    assert store[Person, "ada"].mails == []
    assert [change for chunk in store.capture() for change in chunk] == []


@pytest.mark.parametrize("stored", [b"{", b"\xff", b"[" * 100_000])
def test_unreadable_json_is_the_failure_of_its_field(stored):
    """JSON that cannot be read, also because it is too deep, raises ``FieldError``."""
    nested = Record.derive("Nested", {"id": Field(type=str, key=True), "data": Field(type=dict)})
    attributes = Attributes(View().bind(nested.__record__))
    with pytest.raises(FieldError, match="as JSON"):
        attributes.decode({"id": [b"1"], "data": [stored]})


HOSTILE = [
    *(
        "a,b",
        "a+b=c",
        "#x",
        'q"uote',
        "back\\slash",
        "<x>;",
        "*)(uid=*",
        "zoë",
        "日本",
        "a\nb",
        "a/b",
    ),
    "uid=x,ou=people",
]


def test_names_are_escaped(people, store):
    """Special characters in a key do not move its entry, and the entry is found again."""
    store.add([Person(uid=uid, name="x", surname=uid) for uid in HOSTILE])
    found = {person.uid: person.surname for person in store.find(Person)}
    assert found == {uid: uid for uid in HOSTILE}
    for uid in HOSTILE:
        assert store[Person, uid].surname == uid
        store.remove(store[Person, uid])
    assert store.count(Person) == 0


def test_pages(people, tmp_path):
    """A list of several pages is read completely, also if other entries are read meanwhile."""
    accessor = persons(people, page=7)
    with Store("people", accessor, index=FileIndex(tmp_path / "v.db")) as store:
        store.add([Person(uid=f"p{n}", name="x", surname="x") for n in range(30)])
        found = [store[Person, person.uid].uid for person in store.find(Person)]
        assert sorted(found) == sorted(f"p{n}" for n in range(30))
        assert store.remove(record_type=Person) == 30


def test_refusals(store):
    """A record that the directory refuses is rejected, and no part of it is stored."""
    refused = [
        Person(uid="r1", name="", surname="x"),  # the object class requires a name
        Person(uid="r2", name="x", surname="x", title=""),  # the syntax has no empty text
        Person(uid="r3", name="x", surname="x", mails=["a", "a"]),
        Person(uid="r4", name="x", surname="x", mails=["é"]),  # ASCII only
    ]
    for person in refused:
        with pytest.raises(RejectedError):
            store.add(person)
        assert store.get(Person, person.uid) is None
    now = int(Clock().now() * 1000)
    good = Person(uid="good", name="x", surname="x")
    changes = [put(p, Version.of(now - 9 + n, 0, 1)) for n, p in enumerate([*refused, good])]
    outcomes = [settled.outcome for settled in apply(store, changes, clock=store.clock)]
    assert outcomes == ["rejected"] * 4 + ["applied"]
    assert [person.uid for person in store.find(Person)] == ["good"]


def test_keys_that_the_directory_considers_equal(store):
    """A key that differs only in case, where the attribute ignores case, overwrites nothing."""
    store.add(Person(uid="Ada", name="x", surname="first"))
    assert store.get(Person, "ada") is None
    with pytest.raises(RejectedError, match="same"):
        store.add(Person(uid="ada", name="x", surname="second"))
    with pytest.raises(AlreadyExistsError):
        store.add(Person(uid="Ada", name="x", surname="third"))
    assert [person.surname for person in store.find(Person)] == ["first"]


@pytest.mark.parametrize("other", ["ada", "ADA", "Ada  Byron", "AdA Byron"])
def test_change_of_a_key_that_the_directory_considers_equal(store, other):
    """Neither a put nor a delete of such a key reaches the entry of the other."""
    own = "Ada Byron" if " " in other else "Ada"
    store.add(Person(uid=own, name="x", surname="first"))
    clock = store.clock
    changes = [
        put(Person(uid=other, name="x", surname="second"), clock.tick()),
        Change(type="Person", key=other, op="delete", version=clock.tick(), data=None, source="t"),
    ]
    outcomes = [apply(store, [change], clock=clock)[0].outcome for change in changes]
    assert outcomes[0] == "held"
    assert store[Person, own].surname == "first"
    assert [c for found in store.capture() for c in found] == []


def test_update_depends_on_what_was_read(people, store):
    """An entry that another client changes between read and write is kept (RFC 4528)."""
    store.add(Person(uid="ada", name="Ada", surname="Byron"))
    accessor = store.accessor(Person)
    read = accessor.get("ada")
    other = persons(people)
    edited = other.get("ada")
    edited["surname"] = "King"
    other.update(edited)
    other.close()
    read["surname"] = "Lovelace"
    with pytest.raises(StoreUnavailableError, match="same moment"):
        accessor.update(read)
    assert accessor.get("ada").surname == "King"
    read = accessor.get("ada")
    read["surname"] = "Lovelace"
    accessor.update(read)
    assert accessor.get("ada").surname == "Lovelace"


@pytest.mark.parametrize("form", ["007", "+7", "0007"])
def test_a_key_in_another_form(people, tmp_path, form):
    """An entry named by a number in another form is reported and refused, and not deleted."""

    class Member(Record, rule="field"):
        uid: int = Field(key=True)
        cn: str
        sn: str

    people_dn = "ou=people,dc=example,dc=org"
    accessor = LdapAccessor(
        Member,
        people.url,
        dn=f"uid={{uid}},{people_dn}",
        object_classes=["inetOrgPerson"],
        user=people.user_dn,
        password=people.password,
    )
    client = people.client()
    with Store("members", accessor, index=FileIndex(tmp_path / "m.db")) as store:
        store.add(Member(uid=7, cn="Ada", sn="Byron"))
        assert client.modify_dn(f"uid=7,{people_dn}", f"uid={form}"), client.result
        for _ in range(2):
            errors = []
            assert not any(store.capture(unreadable=errors.append))
            assert [form in error.message for error in errors] == [True]
        with pytest.raises(RecordError, match="second entry"):
            store.update(Member(uid=7, cn="Ada", sn="King"), upsert=True)
        assert client.modify_dn(f"uid={form},{people_dn}", "uid=7"), client.result
        assert not any(store.capture())
        store.remove(store[Member, 7])
    client.unbind()


def test_needs_an_index(people):
    """A store of LDAP entries without a version index is refused."""
    with pytest.raises(ConfigError, match="FileIndex"):
        Store("people", persons(people))


@pytest.mark.parametrize(
    "dn", ["uid={uid}", "uid=x,dc=org", "uid={uid},ou={ou},dc=org", "uid={uid,dc=org"]
)
def test_wrong_templates(people, dn):
    """A ``dn`` that does not name each entry by its key is refused."""
    with pytest.raises(ConfigError, match="dn="):
        LdapAccessor(Person, people.url, dn=dn, object_classes=["inetOrgPerson"])


def test_errors_show_no_password(people, tmp_path):
    """Errors show no password, and only those of an unreachable server are retryable."""
    shown = []
    for url, password in ((people.url, "s3cret"), ("ldap://127.0.0.1:1", "s3cret")):
        accessor = persons(people, url=url, password=password)
        with pytest.raises(EventSyncError) as caught:
            Store("people", accessor, index=tmp_path / "v.db").open()
        assert caught.value.retryable == url.endswith(":1")
        shown.append(f"{accessor!r} {caught.value} {caught.value.__cause__!r}")
    assert "s3cret" not in " ".join(shown)
    with pytest.raises(ConfigError) as caught:
        persons(people, url="ldap://admin:s3cret@127.0.0.1")
    assert "s3cret" not in str(caught.value)


def test_killed_and_restarted(tmp_path):
    """A change that fails while the server is down is applied once after its restart."""
    with SlapdServer(more=SCHEMA) as own:
        index = FileIndex(tmp_path / "versions.db")
        with Store("people", persons(own), index=index) as store:
            store.add(Person(uid="ada", name="Ada", surname="Byron"))
            own.kill()
            change = put(Person(uid="ada", name="Ada", surname="King"), store.clock.tick())
            with pytest.raises(StoreUnavailableError):
                apply(store, [change], clock=store.clock)
            own.start()
            (settled,) = apply(store, [change], clock=store.clock)
            assert settled.outcome == "applied"
            assert store[Person, "ada"].surname == "King"
            assert [found for chunk in store.capture() for found in chunk] == []


def test_server_that_hangs(people, tmp_path):
    """A server that does not answer is reported as unavailable after the timeout."""
    accessor = persons(people, timeout=1)
    with Store("people", accessor, index=tmp_path / "v.db"):
        people.pause()
        try:
            with pytest.raises(StoreUnavailableError):
                accessor.get("ada")
        finally:
            people.resume()
        assert accessor.get("ada") is None


def test_encrypted(tmp_path):
    """TLS and StartTLS work, and a server with an unknown certificate is refused."""
    with SlapdServer(more=SCHEMA, tls=True) as own:
        ways = [{"url": own.secure_url}, {"url": own.url, "tls": "starttls"}]
        for number, way in enumerate(ways):
            index = FileIndex(tmp_path / f"{number}.db")
            accessor = persons(own, ca_file=own.certificate, **way)
            with Store("people", accessor, index=index) as store:
                store.add(Person(uid=f"p{number}", name="x", surname="x"))
                assert store.count(Person) == number + 1
            with pytest.raises(EventSyncError):
                Store("people", persons(own, **way), index=index).open()


# -- names of attributes ---------------------------------------------------------------------------

ADA = "uid=ada,ou=people,dc=example,dc=org"


def edit_as_others(server, changes, dn=ADA):
    """Change an entry as another client does."""
    client = server.client()
    assert client.modify(dn, {n: [(ldap3.MODIFY_REPLACE, v)] for n, v in changes.items()})
    client.unbind()


@pytest.mark.parametrize("name", ["SN", "surname", "SurName", "2.5.4.4"])
@pytest.mark.parametrize("edited", ["sn", "Surname"])
def test_another_name_of_an_attribute(people, tmp_path, name, edited):
    """An attribute is read and written by any of its names, and never read as blank."""
    view = replace(VIEW, rename={**VIEW.rename, "surname": name, "mails": "MAIL"})
    with Store("p", persons(people, view=view), index=FileIndex(tmp_path / "v.db")) as store:
        store.add(Person(uid="ada", name="Ada", surname="Byron", mails=["a@b"]))
        assert store[Person, "ada"].surname == "Byron"
        assert [c for found in store.capture() for c in found] == []
        edit_as_others(people, {edited: ["Lovelace"], "title": ["Countess"]})
        (change,) = [c for found in store.capture() for c in found]
        assert change.data == {"surname": "Lovelace", "title": "Countess"}
        ada = store[Person, "ada"]
        assert (ada.surname, ada.mails) == ("Lovelace", ["a@b"])
        ada.title = "Lady"
        store.update(ada)
        client = people.client()
        client.search(ADA, "(objectClass=*)", attributes=["sn", "title"])
        assert client.response[0]["raw_attributes"] == {"sn": [b"Lovelace"], "title": [b"Lady"]}
        client.unbind()
        store.remove(ada)


def test_unknown_attribute_is_refused(people, tmp_path):
    """A name that the server does not declare is refused before anything is read or written."""
    view = replace(VIEW, rename={**VIEW.rename, "surname": "surnam"})
    accessor = persons(people, view=view)
    with pytest.raises(ConfigError, match="declares no attribute 'surnam'"):
        Store("people", accessor, index=FileIndex(tmp_path / "v.db")).open()
    with pytest.raises(ConfigError, match="'surnam'"):
        accessor.get("ada")
    accessor.close()


@pytest.mark.parametrize(("first", "second"), [("sn", "SN"), ("sn", "surname")])
def test_attribute_named_twice_is_refused(people, first, second):
    """Two fields in one attribute are refused."""
    view = replace(VIEW, rename={**VIEW.rename, "surname": first, "title": second})

    def connect():
        accessor = persons(people, view=view)
        try:
            accessor.ping()
        finally:
            accessor.close()

    with pytest.raises(ConfigError, match="one attribute"):
        connect()


def test_options_of_attributes(people, tmp_path):
    """An attribute with a language tag is another attribute, and is kept."""
    with Store("people", persons(people), index=FileIndex(tmp_path / "v.db")) as store:
        store.add(Person(uid="ada", name="Ada", surname="Byron", title="Lady"))
        edit_as_others(people, {"title;lang-fr": ["Dame"]})
        assert store[Person, "ada"].title == "Lady"
        assert [c for found in store.capture() for c in found] == []
        ada = store[Person, "ada"]
        ada.title = "Countess"
        store.update(ada)
        client = people.client()
        client.search(ADA, "(objectClass=*)", attributes=["title"])
        kept = client.response[0]["raw_attributes"]
        assert kept == {"title": [b"Countess"], "title;lang-fr": [b"Dame"]}
        client.unbind()
        store.remove(ada)


def test_part_of_the_values_is_unreadable():
    """An attribute of which the server returns a part (``range=``) is not read as an empty list."""
    names = AttributeNames(["uid", "mail"], Schema(), owner="Person")
    with pytest.raises(RecordError, match="only a part of the values of 'mail'"):
        names.renamed({"uid": [b"a"], "mail": [], "mail;range=0-1499": [b"a@b"]})
    assert names.renamed({"UID": [b"a"], "Mail;binary": [b"x"]}) == {"uid": [b"a"], "mail": [b"x"]}


HIDDEN = """
access to dn.base="" by * read
access to * by * none
"""


def test_hidden_schema(tmp_path):
    """Without the right to read the schema, another case is found and an alias is unreadable."""
    with SlapdServer(more=SCHEMA + HIDDEN) as own:
        upper = replace(VIEW, rename={**VIEW.rename, "surname": "SN"})
        with Store("p", persons(own, view=upper), index=FileIndex(tmp_path / "1.db")) as store:
            store.add(Person(uid="ada", name="Ada", surname="Byron"))
            assert store[Person, "ada"].surname == "Byron"
        alias = replace(VIEW, rename={**VIEW.rename, "surname": "surname"})
        with Store("p", persons(own, view=alias), index=FileIndex(tmp_path / "2.db")) as store:
            unreadable = []
            changes = [c for found in store.capture(unreadable=unreadable.append) for c in found]
            assert changes == []
            assert "use 'sn' in the view" in str(unreadable[0])


READER = """
access to attrs=userPassword by * auth
access to attrs=sn by dn="cn=eventsync,dc=example,dc=org" none by * read
access to * by * read
"""


def test_attribute_without_the_right_to_read_it(tmp_path):
    """An entry whose required attribute is hidden is unreadable, not blank."""
    with SlapdServer(more=SCHEMA, database=READER) as own:
        client = own.client()
        reader = "cn=eventsync,dc=example,dc=org"
        classes = ["organizationalRole", "simpleSecurityObject"]
        assert client.add(reader, classes, {"userPassword": "pw"}), client.result
        with Store("p", persons(own), index=FileIndex(tmp_path / "v.db")) as store:
            store.add(Person(uid="ada", name="Ada", surname="Byron"))
        accessor = persons(own, user=reader, password="pw")
        with Store("p", accessor, index=FileIndex(tmp_path / "v.db")) as store:
            unreadable = []
            assert list(store.capture(unreadable=unreadable.append)) in ([], [[]])
            assert "no value of 'sn'" in str(unreadable[0])
        client.unbind()


@pytest.mark.parametrize("field", ["title", "mails"])
def test_patch_keeps_fields_that_others_edited(people, store, field):
    """A patch of one field does not write back another that somebody edited; that is captured."""
    bus = FakeBus()
    theirs = {"title": "Countess", "mails": ["x@y"]}[field]
    with Store("memory", MemoryAccessor(Person), publisher=bus) as other:
        other.add(Person(uid="ada", name="Ada", surname="Byron", title="Lady", mails=["a@b"]))
        apply(store, bus.changes(), clock=store.clock)
        attribute = VIEW.rename.get(field, field)
        edit_as_others(people, {attribute: theirs if field == "mails" else [theirs]})
        ada = other[Person, "ada"]
        ada.surname = "King"
        other.update(ada)
        (settled,) = apply(store, bus.changes()[-1:], clock=store.clock)
    assert settled.outcome == "applied"
    held = store[Person, "ada"]
    assert (held.surname, held[field]) == ("King", theirs)
    assert [c.data for found in store.capture() for c in found] == [{field: theirs}]


# -- errors ----------------------------------------------------------------------------------------

RETRYABLE, CONFIGURATION, REJECTED = StoreUnavailableError, ConfigError, RejectedError
RESULT_CODES = {
    **dict.fromkeys([1, 3, 11, 51, 52, 118, 122], RETRYABLE),
    **dict.fromkeys([2, 4, 7, 8, 10, 12, 13, 14, 17, 48, 49, 50, 123], CONFIGURATION),
    **dict.fromkeys([16, 18, 19, 20, 21, 32, 33, 34, 36, 53, 54], REJECTED),
    **dict.fromkeys([64, 65, 67, 69, 71, 80, 4711], REJECTED),
    66: DependencyError,
    68: UniqueError,
}


@pytest.mark.parametrize("code", sorted(RESULT_CODES.keys() | RESULTS.keys()))
def test_meaning_of_result_codes(code):
    """Each result code says whether to retry, to reject the record, or to stop."""
    error = error_of(code, "ldap://x: uid=a: said so")
    assert type(error) is RESULT_CODES[code]
    assert "said so" in str(error)
    if isinstance(error, ConfigError):
        assert error.hint


@pytest.mark.parametrize("said", ["shadow context; no update referral", "operation restricted"])
def test_read_only_server_rejects_no_record(said):
    """A server that takes no writes at all is a configuration error, not a dead letter for each."""
    assert isinstance(error_of(53, f"ldap://x: unwillingToPerform: {said}"), ConfigError)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"password": "wrong"}, "password="),
        ({"password": ""}, "password="),
        ({"user": "cn=nobody,dc=example,dc=org"}, "user="),
        ({"user": None, "password": None}, "pass user="),
    ],
)
def test_wrong_credentials_are_configuration(people, tmp_path, options, hint):
    """Refused credentials name the server and the settings, and dead-letter nothing."""
    with Store("p", persons(people), index=FileIndex(tmp_path / "v.db")) as store:
        clock, person = store.clock, Person(uid="eve", name="x", surname="x")
        accessor = persons(people, **options)
        with pytest.raises(ConfigError, match=f"127.0.0.1.*{hint}"):
            accessor.add(person)
        accessor.close()
        assert apply(store, [put(person, clock.tick())], clock=clock)[0].outcome == "applied"
        store.remove(person)


def test_read_only_database(tmp_path):
    """A database that became read-only stops the writes and dead-letters no record."""
    index = FileIndex(tmp_path / "v.db")
    with SlapdServer(more=SCHEMA) as own, Store("p", persons(own), index=index) as store:
        store.add(Person(uid="ada", name="Ada", surname="Byron"))
        own.kill()
        with (own.folder / "slapd.conf").open("a") as config:
            config.write("restrict add modify delete\n")
        own.start()
        change = put(Person(uid="ada", name="Ada", surname="King"), store.clock.tick())
        with pytest.raises(ConfigError, match="takes writes as url="):
            apply(store, [change], clock=store.clock)
        assert store[Person, "ada"].surname == "Byron"


def test_unknown_certificate_is_configuration(tmp_path):
    """A certificate that is not trusted names the setting, and is not retried for ever."""
    with SlapdServer(more=SCHEMA, tls=True) as own:
        for way in ({"url": own.secure_url}, {"url": own.url, "tls": "starttls"}):
            accessor = persons(own, **way)
            with pytest.raises(ConfigError, match="ca_file="):
                accessor.ping()
            accessor.close()


UNIQUE = "overlay unique\nunique_uri ldap:///?mail?sub?"


def test_a_value_that_the_directory_wants_unique(tmp_path):
    """A taken value is held until its release; within one batch the release comes first."""
    with (
        SlapdServer(more=f"moduleload unique\n{SCHEMA}", database=UNIQUE) as own,
        Store("p", persons(own), index=FileIndex(tmp_path / "v.db")) as store,
    ):

        def person(uid, mail, step):
            values = {"uid": uid, "name": uid, "surname": "x", "mails": mail and [mail]}
            return change_of("Person", uid, step, values)

        first = [person("ada", "a@x", 1), person("ben", "b@x", 2)]
        assert [s.outcome for s in apply(store, first, clock=store.clock)] == ["applied"] * 2
        for taking in (person("ben", "a@x", 20), person("cem", "a@x", 21)):
            (early,) = apply(store, [taking], clock=store.clock)
            assert (early.outcome, early.error.reason) == ("held", "unique")
        batch = [person("cem", "b@x", 12), person("ben", "a@x", 11), person("ada", [], 10)]
        settled = apply(store, batch, clock=store.clock)
        assert [s.outcome for s in settled] == ["applied"] * 3
        mails = {one.uid: one.mails for one in store.find(Person)}
        assert mails == {"ada": [], "ben": ["a@x"], "cem": ["b@x"]}
        assert not any(store.capture())


def test_an_entry_renamed_in_another_case(store):
    """A put of ``ann`` waits for the delete of ``Ann``, which the directory takes for the same."""
    store.add(Person(uid="Ann", name="Ann", surname="x"))
    values = {"uid": "ann", "name": "Ann", "surname": "x"}
    put, gone = change_of("Person", "ann", 5001, values), change_of("Person", "Ann", 5000, None)
    (early,) = apply(store, [put], clock=store.clock)
    assert (early.outcome, early.error.reason) == ("held", "unique")
    assert "Person 'Ann'" in early.error.message
    settled = apply(store, [put, gone], clock=store.clock)
    assert [s.outcome for s in settled] == ["applied"] * 2
    assert [one.uid for one in store.find(Person)] == ["ann"]


def test_entry_with_entries_below_it_waits(people, store):
    """An entry that others put entries below is not removed; its delete is held."""
    store.add(Person(uid="ada", name="Ada", surname="Byron"))
    client = people.client()
    assert client.add(f"cn=device,{ADA}", "device"), client.result
    delete = Change(
        type="Person", key="ada", op="delete", version=store.clock.tick(), data=None, source="t"
    )
    (settled,) = apply(store, [delete], clock=store.clock)
    assert (settled.outcome, type(settled.error)) == ("held", DependencyError)
    assert store[Person, "ada"].surname == "Byron"
    client.delete(f"cn=device,{ADA}")
    client.unbind()
    assert apply(store, [delete], clock=store.clock)[0].outcome == "applied"
