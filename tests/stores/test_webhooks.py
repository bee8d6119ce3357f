"""Webhooks, posted over HTTP in the documented forms, become captured changes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import threading
import time

import pytest
from servers.github import GitHubSimulator
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator
from servers.objects import ObjectServer
from structlog.testing import CapturingLogger
from support.waiting import eventually

from eventsync.engine.store import Store
from eventsync.engine.webhook import Hint, HintBox, StandardWebhook, WebhookSource
from eventsync.errors import RecordError, SignatureError, StoreUnavailableError
from eventsync.index import FileIndex
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.http_server import LONGEST_BODY, HttpServer
from eventsync.monitoring.webhook_endpoint import WebhookEndpoint
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Resource, RestAccessor, Service
from eventsync.stores.trackers import Comment, Issue, Label, Milestone
from eventsync.stores.trackers.github import (
    GitHubComments,
    GitHubIssues,
    GitHubLabels,
    GitHubMilestones,
    GitHubService,
)
from eventsync.stores.trackers.gitlab import (
    GitLabComments,
    GitLabIssues,
    GitLabMilestones,
    GitLabService,
)
from eventsync.stores.trackers.jira import JiraComments, JiraIssues, JiraMilestones, JiraService
from eventsync.stores.trackers.projects import InProjects
from eventsync.stores.trackers.webhook import GitHubWebhook, GitLabWebhook, JiraWebhook
from eventsync.testing import FakeBus
from eventsync.testing.sources import _Observer

SECRET = "It's a Secret to Everybody"
LOCAL = ["127.0.0.0/8"]


class Tracked:
    """A store that webhooks capture, with the HTTP server that takes them."""

    def __init__(self, folder, *accessors, secrets=(SECRET,)):
        self.bus, self.counters, self.log = FakeBus(), Counters(), CapturingLogger()
        self.store = Store(
            "tracker",
            *accessors,
            index=FileIndex(folder / "versions.db"),
            publisher=self.bus,
            capture="webhooks",
            capture_every=600.0,
        ).open()
        list(self.store.capture())
        self.bus.envelopes.clear()
        self.follower = self.store.follower(self.bus, _Observer())
        self.follower.open()
        endpoint = WebhookEndpoint(
            self.store, self.store.webhook(), secrets, counters=self.counters, log=self.log
        )
        self.server = HttpServer("127.0.0.1:0", {}, posts={"/webhooks/tracker": endpoint})

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *exc_info):
        self.server.__exit__(*exc_info)
        self.follower.close()
        self.store.close()

    def post(self, body, headers, path="/webhooks/tracker"):
        """Post as a service does; the status of the answer."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
        ) as connection:
            connection.request("POST", path, body, headers)
            return connection.getresponse().status

    def captured(self):
        """What is captured until nothing waits, as pairs of operation and type."""
        self.follower.step(0.0)
        while self.follower.copies or HintBox(self.store.index).waiting():
            self.follower.step(0.0)
        found = sorted((str(one.op), one.type) for one in self.bus.changes())
        self.bus.envelopes.clear()
        return found

    def outcomes(self):
        totals = self.counters.totals()
        return {labels[1]: n for metric, labels, n in totals if metric is catalogue.WEBHOOKS}


def signed(body, name="X-Hub-Signature-256", secret=SECRET):
    digest = hmac.digest(secret.encode(), body, hashlib.sha256).hex()
    return {name: f"sha256={digest}"}


# -- GitHub ------------------------------------------------------------------------------------


def github(event, **payload):
    body = json.dumps({"repository": {"full_name": "ann/shop"}, **payload}).encode()
    return body, {"X-GitHub-Event": event, **signed(body)}


@pytest.fixture
def hub(tmp_path):
    with GitHubSimulator() as service:
        client = GitHubService(service.token, url=service.url, allow=LOCAL)
        identity = IdentityMap(tmp_path / "ids.db", name="tracker")
        kinds = [
            (GitHubIssues, Issue),
            (GitHubComments, Comment),
            (GitHubMilestones, Milestone),
        ]
        first = service.opens(title="Lamp")
        accessors = [kind(of, client, "ann/shop", identity=identity) for kind, of in kinds]
        accessors.append(GitHubLabels(Label, client, "ann/shop"))
        with Tracked(tmp_path, *accessors) as tracked:
            tracked.first = first
            yield service, tracked


def test_github_issues(hub):
    service, tracked = hub
    service.edits(tracked.first, title="Lamp, green")
    payload = {"action": "edited", "issue": {"number": tracked.first}}
    assert tracked.post(*github("issues", **payload)) == 202
    assert tracked.captured() == [("patch", "Issue")]
    number = service.opens(title="Chair")
    payload = {"action": "opened", "issue": {"number": number}}
    assert tracked.post(*github("issues", **payload)) == 202
    assert tracked.captured() == [("patch", "Issue")]


def test_github_comments_milestones_and_labels(hub):
    service, tracked = hub
    id = service.says(tracked.first, "Too bright")
    payload = {"action": "created", "issue": {"number": tracked.first}, "comment": {"id": id}}
    assert tracked.post(*github("issue_comment", **payload)) == 202
    assert ("patch", "Comment") in tracked.captured()
    del service.comments[id]
    payload["action"] = "deleted"
    assert tracked.post(*github("issue_comment", **payload)) == 202
    assert tracked.captured() == [("delete", "Comment")]
    service._label({"name": "ui", "color": "ff0000", "description": None})
    label = {"action": "created", "label": {"name": "ui"}}
    assert tracked.post(*github("label", **label)) == 202
    assert tracked.captured() == [("patch", "Label")]
    service._milestone({"title": "June"})
    (number,) = service.milestones
    milestone = {"action": "created", "milestone": {"number": number}}
    assert tracked.post(*github("milestone", **milestone)) == 202
    assert tracked.captured() == [("patch", "Milestone")]


def test_events_about_nothing_that_is_held_are_ignored(hub):
    _, tracked = hub
    pull = {"issue": {"number": 9, "pull_request": {}}, "comment": {"id": 5}}
    for event, payload in (("ping", {"zen": "x"}), ("push", {}), ("issue_comment", pull)):
        assert tracked.post(*github(event, **payload)) == 202
    assert tracked.outcomes() == {"ignored": 3}
    # Of another repository.
    body, _ = github("issues", issue={"number": 1}, repository={"full_name": "ann/other"})
    assert tracked.post(body, {"X-GitHub-Event": "issues", **signed(body)}) == 202
    assert tracked.captured() == []


def test_a_wrong_signature_is_refused_and_its_body_not_shown(hub):
    _, tracked = hub
    body, headers = github("issues", issue={"number": 1}, secret_of_ours="42")
    assert tracked.post(body, {**headers, **signed(body, secret="wrong")}) == 401
    assert tracked.post(body, {"X-GitHub-Event": "issues"}) == 401
    assert tracked.post(body + b" ", headers) == 401
    assert tracked.outcomes() == {"refused": 3}
    assert len(tracked.log.calls) == 1  # not one for each
    assert "42" not in str(tracked.log.calls)
    assert HintBox(tracked.store.index).waiting() == {}


def test_a_body_that_is_no_json_is_refused(hub):
    _, tracked = hub
    for body in (b"no json", b"[" * 100_000, b"[]", b'{"repository": 5}', b"{}"):
        headers = {"X-GitHub-Event": "issues", **signed(body)}
        assert tracked.post(body, headers) == 400, body[:20]
    assert tracked.outcomes() == {"unreadable": 5}


def test_the_documented_example_of_github():
    """The secret, body and signature with which GitHub's documentation lets receivers be tested."""
    given = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    hook = GitHubWebhook()
    hook.check({"x-hub-signature-256": given}, b"Hello, World!", [SECRET], 0.0)
    with pytest.raises(SignatureError):
        hook.check({"x-hub-signature-256": given}, b"Hello, world!", [SECRET], 0.0)


def test_github_tells_moved_issues_and_lists():
    hook = GitHubWebhook()

    def hints(event, **payload):
        body = json.dumps({"repository": {"full_name": "ann/shop"}, **payload}).encode()
        return hook.hints({"x-github-event": event}, body)

    moved = {
        "issue": {"number": 3},
        "changes": {
            "new_issue": {"number": 8},
            "new_repository": {"full_name": "ann/site"},
        },
    }
    assert hints("issues", **moved) == [
        Hint("Issue", "ann/shop", "3"),
        Hint("Issue", "ann/site", "8"),
    ]
    renamed = {"label": {"name": "ux"}, "changes": {"name": {"from": "ui"}}}
    assert [hint.id for hint in hints("label", **renamed)] == ["ux", "ui"]
    assert [hint.what for hint in hints("membership")] == ["Member", "Group"]
    child = {"sub_issue": {"number": 4}, "sub_issue_repo": {"full_name": "ann/site"}}
    assert hints("sub_issues", **child) == [Hint("Issue", "ann/site", "4")]


def test_several_projects_in_one_store(tmp_path):
    """The hint says of which project the object is; both have an issue 1."""
    with GitHubSimulator() as service:
        other = service.more("site")
        service.opens(title="Lamp")
        other.opens(title="Page")
        client = GitHubService(service.token, url=service.url, allow=LOCAL)
        accessor = InProjects(
            GitHubIssues,
            Issue,
            client,
            ["ann/shop", "ann/site"],
            identity=IdentityMap(tmp_path / "ids.db", name="tracker"),
        )
        with Tracked(tmp_path, accessor) as tracked:
            other.edits(1, title="Page two")
            body, _ = github("issues", issue={"number": 1}, repository={"full_name": "ann/site"})
            headers = {"X-GitHub-Event": "issues", **signed(body)}
            assert tracked.post(body, headers) == 202
            assert tracked.captured() == [("patch", "Issue")]


# -- GitLab ------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path):
    with GitLabSimulator() as service:
        client = GitLabService(service.token, url=service.url, allow=LOCAL)
        identity = IdentityMap(tmp_path / "ids.db", name="tracker")
        kinds = [
            (GitLabIssues, Issue),
            (GitLabComments, Comment),
            (GitLabMilestones, Milestone),
        ]
        first = service.opens(title="Lamp")
        accessors = [kind(of, client, "acme/shop", identity=identity) for kind, of in kinds]
        with Tracked(tmp_path, *accessors) as tracked:
            tracked.first = first
            yield service, tracked


def gitlab(kind, **payload):
    payload = {
        "object_kind": kind,
        "project": {"path_with_namespace": "acme/shop"},
        **payload,
    }
    return json.dumps(payload).encode(), {"X-Gitlab-Token": SECRET}


def test_gitlab_issues_and_notes(lab):
    service, tracked = lab
    service.edits(tracked.first, title="Lamp, green")
    changed = gitlab("issue", object_attributes={"iid": tracked.first, "action": "update"})
    assert tracked.post(*changed) == 202
    assert tracked.captured() == [("patch", "Issue")]
    id = service.says(tracked.first, "Too bright")
    note = {
        "object_attributes": {"id": id, "noteable_type": "Issue"},
        "issue": {"iid": tracked.first},
    }
    assert tracked.post(*gitlab("note", **note)) == 202
    assert tracked.captured() == [("patch", "Comment")]
    service.notes[id] |= {"body": "Fine now"}
    assert tracked.post(*gitlab("note", **note)) == 202
    assert tracked.captured() == [("patch", "Comment")]
    merge = {"object_attributes": {"id": id, "noteable_type": "MergeRequest"}}
    assert tracked.post(*gitlab("note", **merge)) == 202
    assert tracked.outcomes() == {"accepted": 3, "ignored": 1}


def test_gitlab_with_a_wrong_token(lab):
    _, tracked = lab
    body, _ = gitlab("issue", object_attributes={"iid": 1})
    assert tracked.post(body, {"X-Gitlab-Token": "wrong"}) == 401
    assert tracked.post(body, {}) == 401


def test_gitlab_with_a_signing_token(lab):
    """It signs as Standard Webhooks says; then the plain token is not even looked at."""
    _, tracked = lab
    body, _ = gitlab("issue", object_attributes={"iid": tracked.first})
    assert tracked.post(body, standard(body)) == 202
    assert tracked.post(body, standard(body, secret="wrong") | {"X-Gitlab-Token": SECRET}) == 401
    assert tracked.post(body, standard(body, moment=time.time() - 400)) == 401


def test_gitlab_tells_groups_and_users():
    hook = GitLabWebhook()

    def whats(event):
        return [hint.what for hint in hook.hints({}, json.dumps({"event_name": event}).encode())]

    assert whats("project_create") == ["Project"]
    assert whats("user_add_to_team") == ["Account", "Member"]
    assert whats("group_create") == ["Group", "Member"]
    assert whats("push") == []


# -- Jira --------------------------------------------------------------------------------------


def test_jira(tmp_path):
    with JiraSimulator() as service:
        client = JiraService(service.url, "eventsync@example.org", service.token, allow=LOCAL)
        identity = IdentityMap(tmp_path / "ids.db", name="tracker")
        accessors = [
            JiraIssues(Issue, client, "SHOP", identity=identity, settle=0.0),
            JiraComments(Comment, client, "SHOP", identity=identity),
            JiraMilestones(Milestone, client, "SHOP", identity=identity),
        ]
        first = service.opens(summary="Lamp")

        def jira(event, **payload):
            issue = {"id": first, "key": "SHOP-1"}
            body = json.dumps({"webhookEvent": event, "issue": issue, **payload}).encode()
            return body, signed(body, "X-Hub-Signature")

        with Tracked(tmp_path, *accessors) as tracked:
            service.edits(first, summary="Lamp, green")
            assert tracked.post(*jira("jira:issue_updated")) == 202
            assert tracked.captured() == [("patch", "Issue")]
            id = service.says(first, "Too bright")
            assert tracked.post(*jira("comment_created", comment={"id": id})) == 202
            assert tracked.captured() == [("patch", "Comment")]
            del service.issues[first]
            assert tracked.post(*jira("jira:issue_deleted")) == 202
            assert tracked.captured() == [("delete", "Issue")]
            assert tracked.post(*jira("sprint_created")) == 202
            body, _ = jira("jira:issue_updated")
            assert tracked.post(body, signed(body, "X-Hub-Signature", "wrong")) == 401
            assert tracked.post(body, {"Authorization": "JWT abc"}) == 401


def test_jira_tells_moved_issues_and_versions():
    hook = JiraWebhook()

    def hints(event, **payload):
        return hook.hints({}, json.dumps({"webhookEvent": event, **payload}).encode())

    moved = {
        "issue": {"id": "10002", "key": "SITE-4"},
        "changelog": {"items": [{"field": "Key", "fromString": "SHOP-1", "toString": "SITE-4"}]},
    }
    assert hints("jira:issue_updated", **moved) == [
        Hint("Issue", "SITE", "10002"),
        Hint("Issue", "SHOP", "10002"),
    ]
    assert hints("jira:version_released", version={"id": "7"}) == [Hint("Milestone", id="7")]
    with pytest.raises(RecordError):
        hints("jira:issue_updated")


# -- any service -------------------------------------------------------------------------------


class Product(Record):
    id: int = Field(key=True)
    name: str


def standard(body, *, secret=SECRET, moment=None, id="msg_1"):
    moment = str(int(time.time() if moment is None else moment))
    key = secret.encode()
    digest = hmac.digest(key, b".".join([id.encode(), moment.encode(), body]), hashlib.sha256)
    return {
        "webhook-id": id,
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


@pytest.fixture
def shop(tmp_path):
    with ObjectServer() as service:
        service.objects["products"] = {"1": {"id": 1, "name": "Lamp"}}
        accessor = RestAccessor(
            Product,
            Service(service.url, allow=LOCAL),
            Resource(items="/products", item="/products/{id}"),
        )
        with Tracked(tmp_path, accessor) as tracked:
            yield service, tracked


def test_any_service(shop):
    service, tracked = shop
    service.objects["products"]["1"]["name"] = "Chair"
    body = b'{"type": "Product", "key": "1"}'
    assert tracked.post(body, standard(body)) == 202
    assert tracked.captured() == [("put", "Product")]
    del service.objects["products"]["1"]
    service.objects["products"]["2"] = {"id": 2, "name": "Desk"}
    body = b'[{"type": "Product", "key": "1"}, {"type": "Product", "key": "2"}]'
    assert tracked.post(body, standard(body)) == 202
    assert tracked.captured() == [("delete", "Product"), ("put", "Product")]


def test_a_type_without_a_key_is_looked_through(shop):
    service, tracked = shop
    service.objects["products"]["2"] = {"id": 2, "name": "Desk"}
    body = b'{"type": "Product"}'
    assert tracked.post(body, standard(body)) == 202
    assert tracked.captured() == [("put", "Product")]


def test_a_key_that_is_none_stops_nothing(shop):
    service, tracked = shop
    service.objects["products"]["2"] = {"id": 2, "name": "Desk"}
    body = b'[{"type": "Product", "key": "x"}, {"type": "Else"}, {"type": "Product", "key": "2"}]'
    assert tracked.post(body, standard(body)) == 202
    assert tracked.captured() == [("put", "Product")]


def test_an_old_request_is_refused(shop):
    """A request that somebody has recorded cannot be sent again later."""
    _, tracked = shop
    body = b'{"type": "Product"}'
    for moment in (time.time() - 400, time.time() + 400):
        assert tracked.post(body, standard(body, moment=moment)) == 401
    late = {**standard(body, moment=time.time() - 400), "webhook-timestamp": str(int(time.time()))}
    assert tracked.post(body, late) == 401


def test_the_documented_example_of_standard_webhooks():
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v2,abc v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    hook = StandardWebhook()
    hook.check(headers, b'{"test": 2432232314}', ["other", secret], 1614265330.0)
    with pytest.raises(SignatureError):
        hook.check(headers, b'{"test": 2432232315}', ["other", secret], 1614265330.0)


def test_a_body_of_the_wrong_form(shop):
    _, tracked = shop
    for body in (b"5", b'{"type": 5}', b'{"key": "1"}', b"[[]]"):
        assert tracked.post(body, standard(body)) == 400


# -- the endpoint and the hints ----------------------------------------------------------------


def test_without_a_secret_nothing_is_accepted(tmp_path):
    """An empty secret would be one that everybody knows."""
    with ObjectServer() as service:
        accessor = RestAccessor(
            Product,
            Service(service.url, allow=LOCAL),
            Resource(items="/products", item="/products/{id}"),
        )
        with Tracked(tmp_path, accessor, secrets=[""]) as tracked:
            body = b'{"type": "Product"}'
            assert tracked.post(body, standard(body, secret="")) == 401
            endpoint = WebhookEndpoint(
                tracked.store, GitHubWebhook(), [""], counters=Counters(), log=CapturingLogger()
            )
            headers = {name.lower(): value for name, value in signed(body, secret="").items()}
            assert endpoint(headers, body).status == 401
    for secret in ("", "whsec_"):
        with pytest.raises(SignatureError):
            StandardWebhook().check(standard(b"", secret=""), b"", [secret], time.time())


def test_what_the_server_refuses(shop):
    _, tracked = shop
    body = b'{"type": "Product"}'
    assert tracked.post(body, standard(body), path="/webhooks/other") == 404
    assert tracked.post(b"x" * 10, {"Content-Length": str(LONGEST_BODY + 1)}) == 413
    assert tracked.post(b"x" * 10, {"Content-Length": "9" * 30}) == 413
    assert tracked.post(iter([b"x"]), {}) == 411  # in chunks, without a length


def test_a_hint_survives_the_end_of_the_process(tmp_path, shop):
    """It is on disk when the answer is sent, and stays until its capture is."""
    _, tracked = shop
    body = b'{"type": "Product", "key": "1"}'
    assert tracked.post(body, standard(body)) == 202
    box = HintBox(FileIndex(tmp_path / "versions.db"))
    assert list(box.waiting().values()) == [Hint("Product", key="1")]
    changes = tracked.follower.source.changes("-", wait=0.0)
    assert {type: list(keys) for type, keys in changes.keys.items()} == {"Product": ["1"]}
    assert len(box.waiting()) == 1
    tracked.follower.source.settle(changes)
    assert box.waiting() == {}


def test_hints_that_nobody_captures_do_not_fill_the_index(shop):
    _, tracked = shop
    box = HintBox(tracked.store.index)
    box.put(Hint("Product", key=str(number)) for number in range(10_000))
    with pytest.raises(StoreUnavailableError, match="wait for the capture"):
        box.put([Hint("Product", key="x")])
    body = b'{"type": "Product", "key": "1"}'
    assert tracked.post(body, standard(body)) == 503
    changes = tracked.follower.source.changes("-", wait=0.0)
    assert changes.behind
    assert changes.count == 2000


def test_an_index_that_hangs_keeps_no_health_check_out(shop):
    """Eight requests wait for it; the others are refused at once."""
    _, tracked = shop
    body = b'{"type": "Product", "key": "1"}'
    statuses = []

    def post():
        statuses.append(tracked.post(body, standard(body)))

    hanging, going_on = threading.Event(), threading.Event()

    def hang(prefix, marks=tracked.store.index.marks):
        hanging.set()
        going_on.wait(20)
        return marks(prefix)

    tracked.store.index.marks = hang
    try:
        threads = [threading.Thread(target=post) for _ in range(20)]
        for thread in threads:
            thread.start()
        assert hanging.wait(10)
        eventually(lambda: len(statuses) == 12)
        assert set(statuses) == {503}
    finally:
        going_on.set()
        for thread in threads:
            thread.join()
        del tracked.store.index.marks
    assert sorted(statuses)[:8] == [202] * 8


def test_a_source_waits_for_a_hint(shop):
    _, tracked = shop
    source = WebhookSource([tracked.store.accessors["Product"]])
    began = time.monotonic()
    assert source.changes("-", wait=0.3).count == 0
    assert 0.25 < time.monotonic() - began < 3.0
    assert source.state().waiting == 0
