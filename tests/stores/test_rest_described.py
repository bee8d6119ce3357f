"""What a ``Resource`` describes: queries, absent members, wrapped requests, pages, references."""

from __future__ import annotations

import pytest
from servers.objects import ObjectServer

from eventsync.changes.change import Change
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import (
    Links,
    NextLink,
    Reference,
    Resource,
    RestAccessor,
    Service,
    jql,
    phrase,
)


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""
    score: int = 0
    remark: str | None = None


class Line(Record, rule="field"):
    id: str = Field(key=True)
    note: Note | None = None
    others: list[str] = Field(default_factory=list)
    text: str = ""


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


def service_of(server):
    return Service(server.url, allow=["127.0.0.1"])


def store_of(server, folder, *, identity=None, **more):
    path = {"items": "/notes", "item": "/notes/{key}" if identity is None else "/notes/{id}"}
    create = {"create": "PUT" if identity is None else "POST", "pages": Links(size=10)}
    described = Resource(**{**path, **create, **more})
    accessor = RestAccessor(Note, service_of(server), described, identity=identity)
    return Store("rest", accessor, index=FileIndex(folder / "v.db"))


def put(clock, record):
    return Change(
        type=type(record).__record__.name,
        key=record.key,
        op="put",
        version=clock.tick(),
        data=record.raw(),
        source="t",
    )


def captured(store):
    return [(c.key, c.op, c.data) for found in store.capture() for c in found]


# -- queries ---------------------------------------------------------------------------------------

HOSTILE = ['a"b', "a\\", 'x" OR project = "Y', "a\nb", "AND", "a b", "ü", "%22"]


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_stays_inside_its_quotation(key):
    """A key in a query is one string of the language, whatever characters it has."""
    text = jql(key)
    assert text[0] == text[-1] == '"'
    inner = text[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner
    assert "\n" not in text
    assert '"' not in phrase(key)[1:-1]
    assert "\\" not in phrase(key)


@pytest.mark.parametrize("key", HOSTILE)
def test_marker_is_searched_for_as_written(server, tmp_path, key):
    """An object whose creation had no answer is found by its quoted marker, and created once."""
    server.ids = True
    identity = IdentityMap(tmp_path / "ids.db", name="rest")
    asked = []
    act = server.act

    def searched(request):
        if request.method == "GET" and "jql" in request.query:
            asked.append(request.query["jql"])
        return act(request)

    vars(server)["act"] = searched
    marked = {"marker": "ref", "marked": {"jql": "ref = {key}"}, "quote": jql}
    with store_of(server, tmp_path, identity=identity, **marked) as store:
        server.only = lambda method, path: method == "POST"
        server.failures.append(("lose",))
        store.add(Note(id=key, name="a"))
        text = Note(id=key).key
        assert asked[-1] == f"ref = {jql(text)}"
        assert [data["ref"] for data in server.objects["notes"].values()] == [text]


@pytest.mark.parametrize("text", ['ref = "{key}"', "ref:{key}", "{key} in:body"])
def test_raw_marker_in_a_query_is_refused(server, tmp_path, text):
    """A query around a key needs a declaration of how the key is quoted."""
    identity = IdentityMap(tmp_path / "ids.db", name="rest")
    with pytest.raises(ConfigError, match="quote="):
        store_of(server, tmp_path, identity=identity, marker="ref", marked={"q": text})
    store_of(server, tmp_path, identity=identity, marker="ref", marked={"q": "{key}"})


# -- absent members --------------------------------------------------------------------------------


def test_absent_member_is_no_default(server, tmp_path):
    """A member that an object lacks is not captured as a default, and nothing overwrites it."""
    with store_of(server, tmp_path) as store:
        server.objects["notes"] = {"1": {"id": "1", "name": "a"}}
        assert captured(store) == [("1", "patch", {"name": "a"})]
        assert "score" not in store[Note, "1"].raw()
        assert captured(store) == []


def test_declared_absent_member_agrees(server, tmp_path):
    """A service that leaves out empty members agrees with a store that has the empty value."""
    act = server.act

    def leaving_out(request):
        answer = act(request)
        for data in server.objects.get("notes", {}).values():
            for name in [n for n, held in data.items() if held in ("", 0, None)]:
                del data[name]
        return answer

    vars(server)["act"] = leaving_out
    with store_of(server, tmp_path, absent={"name": "", "score": 0, "remark": None}) as store:
        store.add(Note(id="1", name="", score=0))
        assert server.objects["notes"] == {"1": {"id": "1"}}
        assert store[Note, "1"].raw() == Note(id="1").raw()
        assert captured(store) == []
        change = put(store.clock, Note(id="1"))
        assert apply(store, [change], clock=store.clock)[0].outcome == "applied"
        server.objects["notes"]["1"]["score"] = 7
        assert captured(store) == [("1", "patch", {"score": 7})]
        del server.objects["notes"]["1"]["score"]
        assert captured(store) == [("1", "patch", {"score": 0})]


@pytest.mark.parametrize("lacks", ["name", "remark", "score"])
def test_list_of_summaries(server, tmp_path, lacks):
    """A list that shows a part of each object blanks nothing: the objects are read alone."""
    act = server.act

    def summary(request):
        status, body, *headers = act(request)
        if isinstance(body, list):
            body = [{n: v for n, v in data.items() if n != lacks} for data in body]
        return status, body, *headers

    vars(server)["act"] = summary
    with store_of(server, tmp_path) as store:
        store.add([Note(id=f"{n:02}", name="a", score=1, remark="r") for n in range(12)])
        assert captured(store) == []
        assert {(n.name, n.score, n.remark) for n in store.find(Note)} == {("a", 1, "r")}
        changes = [put(store.clock, Note(id=f"{n:02}", name="b")) for n in range(12)]
        assert {s.outcome for s in apply(store, changes, clock=store.clock)} == {"applied"}
        assert {data["remark"] for data in server.objects["notes"].values()} == {None}


@pytest.mark.parametrize("lacks", [["name"], ["score"], ["name", "score"], ["remark"], []])
@pytest.mark.parametrize("ids", [False, True])
def test_check_names_members_that_are_not_there(tmp_path, lacks, ids):
    """A check says which members objects lack, if nobody said what that means. It only reads."""
    with ObjectServer(ids=ids) as server:
        whole = {"id": "1", "name": "a", "score": 1, "remark": None}
        data = {name: value for name, value in whole.items() if name not in lacks}
        server.objects["notes"] = {"1": data, "2": {**whole, "id": "2"}}
        identity = IdentityMap(tmp_path / "ids.db", name="rest") if ids else None
        store = store_of(server, tmp_path, identity=identity)
        findings = list(store.accessor(Note).findings())
        named = [name for name in lacks if name != "remark"]
        assert len(findings) == len(named)
        for name, finding in zip(named, findings, strict=True):
            assert (f"'{name}'" in finding.text, finding.level) == (True, "risk")
        assert (server.writes(), list(tmp_path.glob("ids.db"))) == ([], [])
        declared = store_of(server, tmp_path, identity=identity, absent={"name": "", "score": 0})
        assert list(declared.accessor(Note).findings()) == []


def test_check_of_an_odd_list(server, tmp_path):
    """Objects that cannot be read, and those that only the list shows in part, are no findings."""
    act = server.act

    def summary(request):
        status, body, *headers = act(request)
        if isinstance(body, list):
            body = [*({"id": data["id"]} for data in body), 7, {"name": "no key"}]
        return status, body, *headers

    vars(server)["act"] = summary
    server.objects["notes"] = {
        "1": {"id": "1", "name": "a", "score": 1, "remark": None},
    }
    with store_of(server, tmp_path) as store:
        assert list(store.accessor(Note).findings()) == []


def test_names_that_are_no_fields_are_refused(server, tmp_path):
    """``absent`` and ``references`` with a name that the view does not have are refused."""
    with pytest.raises(ConfigError, match="absent= names 'nam'"):
        store_of(server, tmp_path, absent={"nam": ""})
    with pytest.raises(ConfigError, match="identity map"):
        store_of(server, tmp_path, references={"name": Reference("Note")})


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["note", "data.attributes"])
@pytest.mark.parametrize("update", ["PUT", "PATCH"])
def test_wrapped_requests(server, tmp_path, wrap, update):
    """Requests and answers have the object at a path, and other members are kept."""
    act = server.act

    def unwrapped(request):
        body = request.body
        for name in wrap.split(".") if body is not None else ():
            body = body[name]
        status, answer, *headers = act(request._replace(body=body))
        if isinstance(answer, dict) and status < 300:
            for name in reversed(wrap.split(".")):
                answer = {name: answer}
        return status, answer, *headers

    vars(server)["act"] = unwrapped
    with store_of(server, tmp_path, wrap=wrap, body=wrap, update=update) as store:
        store.add(Note(id="1", name="a", remark="r"))
        server.objects["notes"]["1"]["theirs"] = [1]
        note = store[Note, "1"]
        note.name = "b"
        store.update(note)
        held = server.objects["notes"]["1"]
        assert held == {"id": "1", "name": "b", "score": 0, "remark": "r", "theirs": [1]}
        assert captured(store) == []


def test_members_of_every_new_object(server, tmp_path):
    """They are sent at creation only, and a value of the record takes precedence."""
    new = {"kind": "memo", "meta.lang": "en", "name": "unnamed"}
    with store_of(server, tmp_path, new=new) as store:
        store.add(Note(id="1", name="a"))
        own = {"id": "1", "name": "a", "score": 0, "remark": None}
        assert server.objects["notes"]["1"] == {**own, "kind": "memo", "meta": {"lang": "en"}}
        server.objects["notes"]["1"] |= {"kind": "theirs"}
        note = store[Note, "1"]
        note.name = "b"
        store.update(note)
        assert server.objects["notes"]["1"]["kind"] == "theirs"


# -- pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{url}{path}?page={page}", "{path}?page={page}", "?page={page}"])
@pytest.mark.parametrize("count", [0, 3, 7])
def test_next_page_in_the_body(server, tmp_path, form, count):
    """The URL of the next page is followed, whole or relative, also below a base path."""

    def act(request):
        page = int(request.query.get("page", 1))
        found = [{"id": str(n)} for n in range(count)][(page - 1) * 3 : page * 3]
        more = form.format(url=server.url, path=request.path, page=page + 1)
        return 200, {"items": found, "links": {"next": more if count > page * 3 else None}}

    vars(server)["act"] = act
    service = Service(f"{server.url}/api/v1", allow=["127.0.0.1"])
    pages = NextLink(items="items", at="links.next", size=3)
    walked = [data["id"] for page in pages.walk(service, "/things", {}) for data in page]
    assert walked == [str(n) for n in range(count)]
    service.close()


@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/x?page=2", "//example.org/things", "https://127.0.0.1/things"]
)
def test_next_page_at_another_host_is_refused(server, target):
    """It is named, without its query, and receives no request."""
    service = service_of(server)
    server.failures.append(("status", 200, {}, {"items": [], "next": target}))
    with pytest.raises(ConfigError, match=r"refers to another host: https?://[0-9e]") as caught:
        list(NextLink(items="items").walk(service, "/things", {}))
    assert "page=2" not in str(caught.value)
    service.close()


@pytest.mark.parametrize("odd", [7, ["/x"], {"href": "/x"}])
def test_odd_next_page_is_an_error(server, odd):
    """A list that cannot be continued does not look like a whole one."""
    service = service_of(server)
    server.failures.append(("status", 200, {}, {"items": [], "next": odd}))
    with pytest.raises(RecordError, match="not a URL"):
        list(NextLink(items="items").walk(service, "/things", {}))
    service.close()


# -- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [str, int])
def test_references_between_records(server, tmp_path, write):
    """A reference is the key here and the id at the service, and waits for its record."""
    server.ids = True
    identity = IdentityMap(tmp_path / "ids.db", name="rest")
    service = service_of(server)
    lines = Resource(
        items="/lines",
        item="/lines/{id}",
        marker="ref",
        paths={"note": "note_id"},
        references={"note": Reference("Note", write), "others": Reference("Note", write)},
        pages=Links(size=10),
    )
    notes = Resource(items="/notes", item="/notes/{id}", marker="ref", pages=Links(size=10))
    with Store(
        "rest",
        RestAccessor(Line, service, lines, identity=identity),
        RestAccessor(Note, service, notes, identity=identity),
        index=FileIndex(tmp_path / "v.db"),
    ) as store:
        line = put(store.clock, Line(id="L", note="N", others=["N"], text="x"))
        (settled,) = apply(store, [line], clock=store.clock)
        assert settled.outcome == "held"
        assert "refers to Note 'N'" in str(settled.error)
        batch = [line, put(store.clock, Note(id="N"))]
        assert {s.outcome for s in apply(store, batch, clock=store.clock)} == {"applied"}
        (held,) = server.objects["lines"].values()
        (note,) = server.objects["notes"]
        assert (held["note_id"], held["others"]) == (write(note), [write(note)])
        assert (store[Line, "L"]["note"], store[Line, "L"].others) == ("N", ["N"])
        assert captured(store) == []
        server.objects["notes"]["77"] = {"id": "77", "name": "t", "score": 1, "remark": None}
        held["note_id"] = write("77")
        changes = captured(store)
        assert ("L", "patch", {"note": "rest:77"}) in changes
        held["note_id"] = None
        assert captured(store) == [("L", "patch", {"note": None})]
