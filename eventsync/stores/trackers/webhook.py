"""What GitHub, GitLab and Jira tell by webhooks, as their documentation describes it."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from eventsync.engine.webhook import Hint, StandardWebhook, Webhook, check_hmac, parse_json
from eventsync.errors import RecordError, SignatureError

__all__ = ["GitHubWebhook", "GitLabWebhook", "JiraWebhook"]


class _TrackerWebhook(Webhook):
    def hints(self, headers: Mapping[str, str], body: bytes) -> Collection[Hint]:
        parsed = parse_json(body)
        try:
            return self.read(self.event(headers, parsed), parsed)
        except (LookupError, TypeError, AttributeError) as error:
            raise RecordError(
                "the body does not have the form that is documented for the event"
            ) from error

    def event(self, headers: Mapping[str, str], parsed: Any) -> str:
        """Return the name of the event."""
        raise NotImplementedError

    def read(self, event: str, parsed: Any) -> Collection[Hint]:
        """Return what an event says. Raises a ``LookupError`` or such if a member is missing."""
        raise NotImplementedError


_GITHUB_LISTS: Final = {
    "repository": ["Project"],
    "organization": ["Account", "Member"],
    "member": ["Member"],
    "membership": ["Member", "Group"],
    "team": ["Group", "Member"],
    "team_add": ["Group"],
}
"""By event: the shared types whose records may have changed, without a usable id."""


class GitHubWebhook(_TrackerWebhook):
    """GitHub and GitHub Enterprise Server. Events: issues, issue_comment, label, milestone, ...

    An issue that was transferred is told for the repository that it has left, too.
    """

    def check(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
    ) -> None:
        check_hmac(headers.get("x-hub-signature-256", ""), body, secrets, prefix="sha256=")

    def event(self, headers: Mapping[str, str], parsed: Any) -> str:
        return headers.get("x-github-event", "")

    def read(self, event: str, parsed: Any) -> Collection[Hint]:
        if event in _GITHUB_LISTS:
            return [Hint(what) for what in _GITHUB_LISTS[event]]
        if event not in ("issues", "issue_comment", "milestone", "label", "sub_issues"):
            return ()
        place = parsed["repository"]["full_name"]
        if event == "issue_comment":
            if "pull_request" in parsed["issue"]:
                return ()
            return [Hint("Comment", place, str(parsed["comment"]["id"]))]
        if event == "milestone":
            return [Hint("Milestone", place, str(parsed["milestone"]["number"]))]
        if event == "label":
            former = parsed.get("changes", {}).get("name", {}).get("from", "")
            names = dict.fromkeys([parsed["label"]["name"], *([former] if former else [])])
            return [Hint("Label", place, name) for name in names]
        if event == "sub_issues":
            of = parsed.get("sub_issue_repo", parsed["repository"])["full_name"]
            return [Hint("Issue", of, str(parsed["sub_issue"]["number"]))]
        found = [Hint("Issue", place, str(parsed["issue"]["number"]))]
        changes = parsed.get("changes", {})
        for part in ("new", "old"):
            if f"{part}_issue" in changes:
                there = changes[f"{part}_repository"]["full_name"]
                found.append(Hint("Issue", there, str(changes[f"{part}_issue"]["number"])))
        return found


class GitLabWebhook(_TrackerWebhook):
    """GitLab. It sends the secret token itself, or signs each request with a signing token.

    GitLab tells neither that an issue was deleted nor what happens to labels.
    """

    def check(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
    ) -> None:
        if "webhook-signature" in headers:
            StandardWebhook().check(headers, body, secrets, now)
            return
        given = headers.get("x-gitlab-token", "").encode()
        if not any(hmac.compare_digest(given, secret.encode()) for secret in secrets):
            raise SignatureError("the token is wrong or missing")

    def event(self, headers: Mapping[str, str], parsed: Any) -> str:
        return str(parsed.get("object_kind") or parsed.get("event_name") or "")

    def read(self, event: str, parsed: Any) -> Collection[Hint]:
        if event.startswith(("project_", "repository_")):
            return [Hint("Project")]
        if event.startswith("user_"):
            return [Hint("Account"), *([Hint("Member")] if "_team" in event else [])]
        if event.startswith(("group_", "subgroup_")):
            return [Hint("Group"), Hint("Member")]
        if event not in ("issue", "work_item", "note", "milestone"):
            return ()
        place, about = parsed["project"]["path_with_namespace"], parsed["object_attributes"]
        if event == "milestone":
            return [Hint("Milestone", place, str(about["id"]))]
        if event != "note":
            return [Hint("Issue", place, str(about["iid"]))]
        if about["noteable_type"] not in ("Issue", "WorkItem"):
            return ()
        number = (parsed.get("issue") or parsed["work_item"])["iid"]
        return [Hint("Comment", place, f"{number}:{about['id']}")]


class JiraWebhook(_TrackerWebhook):
    """Jira Cloud. The secret of a webhook that an administrator has made signs each request.

    Webhooks of Connect apps, which carry a token of the app instead, are refused.
    """

    def check(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
    ) -> None:
        given = headers.get("x-hub-signature", "")
        check_hmac(given, body, secrets, prefix="sha256=")

    def event(self, headers: Mapping[str, str], parsed: Any) -> str:
        return str(parsed["webhookEvent"]).removeprefix("jira:")

    def read(self, event: str, parsed: Any) -> Collection[Hint]:
        what = event.partition("_")[0]
        if what == "project":
            return [Hint("Project")]
        if what == "user":
            return [Hint("Account"), Hint("Member")]
        if what == "version":
            return [Hint("Milestone", id=str(parsed["version"]["id"]))]
        if what not in ("issue", "comment"):
            return ()
        issue = parsed["issue"]
        place = str(issue["key"]).rpartition("-")[0]
        if what == "comment":
            return [Hint("Comment", place, f"{issue['id']}:{parsed['comment']['id']}")]
        if not event.startswith(("issue_created", "issue_updated", "issue_deleted")):
            return ()
        found = [Hint("Issue", place, str(issue["id"]))]
        for item in (parsed.get("changelog") or {}).get("items", ()):
            if item.get("field") == "Key" and item.get("fromString"):
                # The issue was moved here from another project.
                found.append(Hint("Issue", item["fromString"].rpartition("-")[0], found[0].id))
        return found
