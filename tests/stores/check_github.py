"""Hold what the GitHub store sends, and what its simulator answers, against GitHub's description.

Not a part of the test run, for the description is large. To do it::

    npm pack @octokit/openapi && tar xf octokit-openapi-*.tgz
    pip install openapi-schema-validator
    PYTHONPATH=.:tests python tests/stores/check_github.py \\
        package/generated/api.github.com.deref.json
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from openapi_schema_validator import OAS30Validator
from servers.github import GitHubSimulator
from stores.test_github import captured, store_in, tour

from eventsync.stores.trackers import Comment, Issue, Label, Milestone


def operation(paths: dict[str, Any], method: str, path: str) -> tuple[str, dict[str, Any]]:
    """The operation that a request is of: the template with the fewest variables."""
    fitting = [
        template
        for template in paths
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), path)
        and method.lower() in paths[template]
    ]
    template = min(fitting, key=lambda one: one.count("{"))
    return template, paths[template][method.lower()]


def with_nulls(schema: Any) -> Any:
    """The schema with its ``nullable`` in force beside ``enum`` and ``oneOf`` too.

    The letter of OpenAPI 3.0 has it otherwise, but it is what the description means.
    """
    if isinstance(schema, list):
        return [with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: with_nulls(part) for name, part in schema.items()}
    if made.get("nullable") is True:
        nothing = {"enum": [None], "nullable": True}
        if isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
        for name in ("oneOf", "anyOf"):
            if isinstance(made.get(name), list):
                made[name] = [*made[name], nothing]
    return made


def problems(schema: dict[str, Any], value: Any) -> list[str]:
    found = OAS30Validator(with_nulls(schema)).iter_errors(value)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


def main(description: Path) -> int:
    paths = json.loads(description.read_text(encoding="utf-8"))["paths"]
    with tempfile.TemporaryDirectory() as folder, GitHubSimulator() as github:
        with store_in(github, Path(folder)) as store:
            number = github.opens(title="Theirs")
            github.says(number, "x")
            captured(store)
            tour(store, github)
            captured(store, whole=False)
            removed = ((Comment, "C1"), (Milestone, "M1"), (Label, "ui"), (Issue, "K1"))
            for record_type, key in removed:
                store.remove(store[record_type, key])
        wrong, seen = 0, set()
        for asked, status, answer in github.exchanges:
            template, described = operation(paths, asked.method, asked.path)
            seen.add((asked.method, template))
            found = []
            names = {parameter["name"] for parameter in described.get("parameters", ())}
            found += [f"no parameter {name}" for name in asked.query if name not in names]
            body = described.get("requestBody", {}).get("content", {}).get("application/json")
            if asked.body is not None:
                schema = body["schema"] if body else {"not": {}}
                found += problems({**schema, "additionalProperties": False}, asked.body)
            if str(status) not in described["responses"]:
                found.append(f"no answer {status} is described")
            content = described["responses"].get(str(status), {}).get("content")
            if content:
                found += problems(content["application/json"]["schema"], answer)
            for problem in found:
                wrong += 1
                print(f"{asked.method} {template} -> {status}: {problem}")
    for method, template in sorted(seen, key=lambda one: one[::-1]):
        print(f"checked {method} {template}")
    print(f"{len(github.exchanges)} exchanges of {len(seen)} operations, {wrong} problems")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
