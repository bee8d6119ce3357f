"""One object of a REST service or tracker that cannot be read or written stops no other."""

from __future__ import annotations

from typing import Any

import pytest
from servers.github import GitHubSimulator
from servers.http_service import HttpService
from servers.objects import ObjectServer

from eventsync.changes.change import Change
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import (
    AccessRefusedError,
    Links,
    Resource,
    RestAccessor,
    Service,
    Within,
)
from eventsync.stores.trackers import Account, Comment, Issue, Label, Member
from eventsync.stores.trackers.github import (
    GitHubAccounts,
    GitHubComments,
    GitHubIssues,
    GitHubLabels,
    GitHubMembers,
    GitHubService,
)


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""


class Line(Record, rule="field"):
    id: str = Field(key=True)
    note: str | None = None
    text: str = ""


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def github():
    with GitHubSimulator() as running:
        yield running


def store_of(server, folder, *, accessor=RestAccessor, **more):
    described = {"items": "/notes", "item": "/notes/{key}", "create": "PUT"} | more
    service = Service(server.url, allow=["127.0.0.1"])
    return Store(
        "rest",
        accessor(Note, service, Resource(pages=Links(size=10), **described)),
        index=FileIndex(folder / "v.db"),
    )


def github_store(github, folder, *parts):
    service = GitHubService("good-token", url=github.url, allow=["127.0.0.1"])
    identity = IdentityMap(folder / "ids.db", name="github")
    made = [part(service, identity) for part in parts]
    return Store("github", *made, index=FileIndex(folder / "v.db"))


def answering(server: HttpService, path: str, *answer: Any, method: str = "GET") -> None:
    """Answer all requests for one path with this status, body and headers."""
    act = server.act

    def odd(asked):
        return answer if (asked.method, asked.path) == (method, path) else act(asked)

    vars(server)["act"] = odd


def patch(clock, type, key, **data):
    return Change(type=type, key=key, op="patch", version=clock.tick(), data=data, source="t")


def captured(store):
    errors: list[RecordError] = []
    changes = [c for found in store.capture(unreadable=errors.append) for c in found]
    return changes, errors


# -- reading ---------------------------------------------------------------------------------------

MOVED = {"Location": "/notes-of-others/1"}


@pytest.mark.parametrize(
    "answer",
    [
        (301, {"message": "Moved Permanently"}, MOVED),
        (302, None, MOVED),
        (308, None, {"Location": "https://example.org/somewhere/else"}),
        (403, {"message": "private"}),
        (451, {"message": "withheld"}),
        (200, [1, 2]),
        (200, b"<html>"),
        (200, b'{"id": "1", "name": 1e9999999999999999999}'),
        (200, b'{"id": "1", "name": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_one_object_that_cannot_be_read(server, tmp_path, answer):
    """Its siblings are captured and written; it is named, and neither deleted nor overwritten."""
    with store_of(server, tmp_path) as store:
        store.add([Note(id=str(n), name="a") for n in range(3)])
        answering(server, "/notes/1", *answer)
        server.objects["notes"]["2"]["name"] = "theirs"
        changes, errors = captured(store)
        assert [(c.key, c.data) for c in changes] == [("2", {"name": "theirs"})]
        assert errors == [] or all("1" in str(error) for error in errors)
        batch = [patch(store.clock, "Note", str(n), name="b") for n in range(3)]
        settled = apply(store, batch, clock=store.clock)
        assert [item.outcome for item in settled] == ["applied", "rejected", "applied"]
        assert "1" in str(settled[1].error)
        names = {id: data["name"] for id, data in server.objects["notes"].items()}
        assert names == {"0": "b", "1": "a", "2": "b"}


def test_service_that_moved_is_configuration(server, tmp_path):
    """A redirect to the same path at another host concerns all records, so nothing is rejected."""
    with store_of(server, tmp_path) as store:
        store.add(Note(id="1", name="a"))
        answering(server, "/notes/1", 301, None, {"Location": "https://example.org/notes/1"})
        change = patch(store.clock, "Note", "1", name="b")
        with pytest.raises(ConfigError, match="pass the final URL"):
            apply(store, [change], clock=store.clock)


def test_refused_credentials_concern_all(server, tmp_path):
    """A refusal of one object and of the list is no record's failure."""
    with store_of(server, tmp_path) as store:
        store.add(Note(id="1", name="a"))
        server.token = "another"
        with pytest.raises(AccessRefusedError, match="auth="):
            apply(store, [patch(store.clock, "Note", "1", name="b")], clock=store.clock)


@pytest.mark.parametrize("odd", [None, 7, "text", [], {}, {"id": None}, {"id": ["a"]}])
def test_odd_member_of_a_list(server, tmp_path, odd):
    """An item that is no readable object is named, and the others are captured."""
    with store_of(server, tmp_path) as store:
        store.add([Note(id=str(n), name="a") for n in range(12)])
        server.objects["notes"]["0"]["name"] = "theirs"
        server.objects["notes"]["05x"] = odd
        changes, errors = captured(store)
        assert [(c.key, c.data) for c in changes] == [("0", {"name": "theirs"})]
        assert len(errors) == 1
        batch = [patch(store.clock, "Note", str(n), name="b") for n in range(12)]
        assert {s.outcome for s in apply(store, batch, clock=store.clock)} == {"applied"}


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    "odd",
    [
        '{"id": "9", "name": 1e9999999999999999999}',
        '{"id": "9", "name": NaN}',
        '{"id": "9", "name": ' + "1" * 5000 + "}",
        '{"id": "9", "name": "a", "name": "b"}',
        '{"id": "9", "name": {"a": 1, "a": 2}}',
        '{"id": "9", "name": [{"b": {"a": 1, "a": 2}}]}',
        '{"id": "9", "name": ' + DEEP + "}",
    ],
)
def test_odd_json_in_a_list(server, tmp_path, odd):
    """JSON that cannot be read in one object of a list leaves the others readable."""
    with store_of(server, tmp_path) as store:
        store.add([Note(id="1", name="a"), Note(id="9", name="a")])
        server.objects["notes"]["1"]["name"] = "theirs"
        listed = '[{"id": "1", "name": "theirs"}, ' + odd + "]"
        answering(server, "/notes", 200, listed.encode())
        answering(server, "/notes/9", 200, odd.encode())
        changes, errors = captured(store)
        assert [(c.key, c.data) for c in changes] == [("1", {"name": "theirs"})]
        assert len(errors) == 1
        answering(server, "/notes", 200, b'[{"id": "1", "name": "theirs"}]')
        assert captured(store)[0] == []  # unreadable, and not taken for deleted


class Choosy(RestAccessor[Note]):
    def present(self, data):
        return not data["meta"]["hidden"]


def test_present_that_raises(server, tmp_path):
    """An object about which ``present`` raises is unreadable, and is not taken for deleted."""
    with store_of(server, tmp_path, accessor=Choosy) as store:
        server.objects["notes"] = {
            str(n): {"id": str(n), "name": "a", "meta": {"hidden": False}} for n in range(3)
        }
        captured(store)
        server.objects["notes"]["1"]["meta"] = None
        server.objects["notes"]["2"]["name"] = "theirs"
        changes, errors = captured(store)
        assert [(c.key, c.data) for c in changes] == [("2", {"name": "theirs"})]
        assert "Choosy" in str(errors[0])
        with pytest.raises(RecordError, match="Note '1'"):
            store.get(Note, "1")


@pytest.mark.parametrize("answer", [(404, None), (410, None), (301, None, MOVED), (200, {"a": 1})])
def test_one_inner_list_that_cannot_be_read(server, tmp_path, answer):
    """The inner lists of other outer objects are captured."""
    server.ids = True
    server.objects = {"notes": {"7": {"id": "7"}, "8": {"id": "8"}, "9": {}}}
    server.objects |= {"lines-8": {"1": {"id": "1", "text": "x"}}, "lines-7": {}}
    described = Resource(
        items="/lines-{in}",
        item="/lines-{in}/{id}",
        within=Within(items="/notes"),
        paths={"note": "@in.id"},
        pages=Links(size=10),
    )
    service = Service(server.url, allow=["127.0.0.1"])
    identity = IdentityMap(tmp_path / "ids.db", name="rest")
    accessor = RestAccessor(Line, service, described, identity=identity)
    with Store("rest", accessor, index=FileIndex(tmp_path / "v.db")) as store:
        answering(server, "/lines-7", *answer)
        changes, errors = captured(store)
        assert [change.key for change in changes] == ["rest:8:1"]
        assert len(errors) == 2


# -- trackers --------------------------------------------------------------------------------------


def github_issues(service, identity):
    return GitHubIssues(Issue, service, "ann/shop", identity=identity)


def github_comments(service, identity):
    return GitHubComments(Comment, service, "ann/shop", identity=identity)


def github_labels(service, identity):
    return GitHubLabels(Label, service, "ann/shop")


def test_issue_that_was_transferred(github, tmp_path):
    """An issue that answers 301 is the failure of its record; others are captured and written."""
    with github_store(github, tmp_path, github_issues) as store:
        store.add([Issue(id=key, title="t") for key in ("A", "B")])
        number = int(store.accessor(Issue).identity.id_of("Issue", "A"))
        path = f"/repos/ann/shop/issues/{number}"
        moved = {"Location": f"{github.url}/repositories/99/issues/1"}
        answering(github, path, 301, {"message": "Moved Permanently"}, moved)
        del github.issues[number]
        github.edits(2, title="theirs")
        changes, _ = captured(store)
        assert [(c.key, c.op, c.data) for c in changes] == [("B", "patch", {"title": "theirs"})]
        batch = [patch(store.clock, "Issue", key, title="u") for key in ("A", "B")]
        settled = apply(store, batch, clock=store.clock)
        assert [item.outcome for item in settled] == ["rejected", "applied"]
        assert "301" in str(settled[0].error)


@pytest.mark.parametrize("odd", [{"labels": None}, {"labels": [7]}, {"state": 5}, {"body": [1]}])
def test_odd_issue(github, tmp_path, odd):
    """An issue with odd members is named, and is neither captured nor deleted."""
    with github_store(github, tmp_path, github_issues) as store:
        store.add([Issue(id=key, title="t") for key in ("A", "B")])
        github.issues[1] |= odd
        github.edits(2, title="theirs")
        changes, errors = captured(store)
        found = [(c.key, c.op) for c in changes]
        assert ("B", "patch") in found
        assert all(op != "delete" for _, op in found)
        assert errors or found == [("B", "patch")]


def test_account_that_left_between_list_and_request(github, tmp_path):
    """A member whose profile is gone stops no other member."""
    with github_store(
        github, tmp_path, lambda service, _: GitHubAccounts(Account, service, "acme")
    ) as store:
        before = {change.key for change in captured(store)[0]}
        assert "ann" in before
        answering(github, "/users/ann", 404, {"message": "Not Found"})
        changes, errors = captured(store)
        assert "'ann' is a member and has no profile" in str(errors[0])
        assert {change.key for change in changes} <= {"ann"}


def test_team_that_is_gone_between_list_and_request(github, tmp_path):
    """The members of other teams are captured."""
    acme = github.organization
    with github_store(
        github, tmp_path, lambda service, _: GitHubMembers(Member, service, "acme")
    ) as store:
        for name in ("one", "two"):
            service = store.accessor(Member).service
            service.request("POST", "/orgs/acme/teams", body={"name": name})
            acme.roles[name] = {"ann": "member"}
        answering(github, "/orgs/acme/teams/one/members", 404, {"message": "Not Found"})
        changes, errors = captured(store)
        assert [change.key for change in changes] == ["two/ann"]
        assert len(errors) == 1


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", ["PUT", "POST"])
@pytest.mark.parametrize("status", [404, 410, 301])
def test_creation_without_a_place(server, tmp_path, create, status):
    """A creation that answers 404 is that record's failure, if the list is there."""
    with store_of(server, tmp_path, create=create, creations="/made") as store:
        path = "/notes/1" if create == "PUT" else "/made"
        answering(server, path, status, {"message": "no parent"}, MOVED, method=create)
        change = patch(store.clock, "Note", "1", name="a")
        change = change.replace(op="put", data={"id": "1", "name": "a"})
        (settled,) = apply(store, [change], clock=store.clock)
        assert (settled.outcome, type(settled.error)) == ("rejected", RejectedError)
        assert str(status) in str(settled.error)


def test_wrong_path_is_configuration(server, tmp_path):
    """If the list answers 404 too, the path is wrong and no record is rejected."""
    with store_of(server, tmp_path, create="POST") as store:
        answering(server, "/notes", 404, None, method="POST")
        answering(server, "/notes", 404, None)
        with pytest.raises(AccessRefusedError, match="correct the path"):
            store.add(Note(id="1", name="a"))


def test_comment_on_an_issue_that_is_gone(github, tmp_path):
    """The comment is a dead letter, and other changes are applied."""
    with github_store(github, tmp_path, github_issues, github_comments) as store:
        store.add([Issue(id=key, title="t") for key in ("A", "B")])
        del github.issues[1]
        comments = [
            patch(store.clock, "Comment", key).replace(
                op="put", data={"id": key, "issue": issue, "body": "x"}
            )
            for key, issue in (("1", "A"), ("2", "B"))
        ]
        settled = apply(store, comments, clock=store.clock)
        assert [item.outcome for item in settled] == ["rejected", "applied"]


# -- keys that the service takes for one -----------------------------------------------------------


def fold_case(server):
    """Let the service ignore the case of keys, and keep the one that was first."""
    act = server.act

    def folded(asked):
        held = server.objects.setdefault("notes", {})
        same = [key for key in held if key.lower() == asked.names[-1].lower()]
        names = [*asked.names[:-1], *same] if same else asked.names
        answer = act(asked._replace(names=names))
        if asked.method == "PUT" and same:
            held[same[0]] = {**held[same[0]], "id": same[0]}
        return answer

    vars(server)["act"] = folded


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("other", ["ann", "ANN", "aNn"])
def test_keys_that_the_service_takes_for_one(server, tmp_path, etags, other):
    """The second key is held, and neither its put nor its delete reaches the first object."""
    with store_of(server, tmp_path, etags=etags) as store:
        store.add(Note(id="Ann", name="first"))
        fold_case(server)
        assert store.get(Note, other) is None
        changes = [
            patch(store.clock, "Note", other).replace(op="put", data={"id": other, "name": "2"}),
            patch(store.clock, "Note", other).replace(op="delete", data=None),
        ]
        settled = [apply(store, [change], clock=store.clock)[0] for change in changes]
        assert (settled[0].outcome, settled[0].error.reason) == ("held", "unique")
        assert "the existing 'Ann' for the same" in str(settled[0].error)
        assert server.objects["notes"] == {"Ann": {"id": "Ann", "name": "first"}}
        assert captured(store) == ([], [])


@pytest.mark.parametrize("create", ["PUT", "POST"])
@pytest.mark.parametrize(
    ("status", "text", "unique"),
    [
        (409, {"message": "name has already been taken"}, True),
        (422, {"errors": [{"code": "already_exists"}]}, True),
        (422, {"detail": "Name must be unique."}, True),
        (409, {"message": "the project is archived"}, False),
        (422, {"message": "name is too long"}, False),
    ],
)
def test_a_value_that_the_service_wants_unique(server, tmp_path, create, status, text, unique):
    """What names uniqueness is held until the release arrives; any other refusal is final."""
    act = server.act

    def refusing(asked):
        values = asked.body if isinstance(asked.body, dict) else {}
        others = server.objects.get("notes", {}).values()
        taken = any(o["name"] == values.get("name") and o["id"] != values["id"] for o in others)
        return (status, text) if asked.method in ("PUT", "POST") and taken else act(asked)

    described = {"create": create, "update": "PUT", "etags": False}
    with store_of(server, tmp_path, **described) as store:

        def note(key, name):
            return patch(store.clock, "Note", key).replace(op="put", data={"id": key, "name": name})

        assert apply(store, [note("1", "a")], clock=store.clock)[0].outcome == "applied"
        vars(server)["act"] = refusing
        release = note("1", "b")
        take = note("2", "a")
        (early,) = apply(store, [take], clock=store.clock)
        assert early.outcome == ("held" if unique else "rejected")
        settled = apply(store, [take, release], clock=store.clock)
        assert [s.outcome for s in settled] == ["applied" if unique else "rejected", "applied"]


def test_labels_that_differ_in_case(github, tmp_path):
    """GitHub takes them for one: the second is refused, and its delete removes nothing."""
    with github_store(github, tmp_path, github_labels, github_issues) as store:
        store.add(Label(id="Bug", color="ff0000"))
        with pytest.raises(RejectedError, match="'Bug' for the same"):
            store.add(Label(id="bug", color="00ff00"))
        delete = patch(store.clock, "Label", "bug").replace(op="delete", data=None)
        apply(store, [delete], clock=store.clock)
        assert github.labels["bug"].items() >= {"name": "Bug", "color": "ff0000"}.items()
        assert captured(store) == ([], [])
        with pytest.raises(RejectedError, match="'Bug' and 'bug'"):
            store.add(Issue(id="A", title="t", labels=["Bug", "bug"]))
        assert github.issues == {}
