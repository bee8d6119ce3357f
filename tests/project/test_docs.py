"""The documentation: its examples run, its vectors are right, its links lead somewhere."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from servers.github import GitHubSimulator
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator
from servers.mongodb import MongoServer
from servers.objects import ObjectServer
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.roundup import RoundupServer
from servers.slapd import SlapdServer

from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.envelope import codec
from eventsync.envelope.signing import Keyring
from eventsync.errors import SignatureError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    """The code blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(arguments, folder):
    """Run a command in ``folder`` as a user would; what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVENTSYNC_")}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md", "docs/stores.md"])
def test_python_examples_run(page, tmp_path):
    """The examples of a page run as they stand, one after another."""
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    printed = run([sys.executable, script.name], tmp_path)
    if page == "README.md":
        assert "Lamp" in printed
        assert (tmp_path / "products.csv").read_text(encoding="utf-8").splitlines() == [
            "id,title,price",
            "1,Lamp,19.90",
        ]


def test_capture_by_triggers_as_its_guide_shows(tmp_path):
    """The project and the commands of the guide run one after another."""
    (code,) = blocks("docs/capture/triggers.md", "python")
    (tmp_path / "workers.py").write_text(code, encoding="utf-8")
    printed = []
    (commands,) = blocks("docs/capture/triggers.md", "sh")
    for line in commands.splitlines():
        command, *arguments = shlex.split(line)
        start = [sys.executable, "-m", "eventsync"] if command == "eventsync" else [command]
        printed.append(run([*start, *arguments], tmp_path))
    assert "CREATE TRIGGER" in printed[1]
    assert re.search(r"waiting changes\W+2", printed[-1])


def test_capture_by_the_log_of_postgresql_as_its_guide_shows(tmp_path):
    """The project and the commands of the guide run one after another."""
    code, more = blocks("docs/capture/postgresql.md", "python"), "python continued"
    (continued,) = blocks("docs/capture/postgresql.md", more)
    printed = []
    with PostgresServer(options=("wal_level=logical",)) as server:
        address = server.url.replace("+psycopg", "")
        (tmp_path / "table.sql").write_text("CREATE TABLE product (id int PRIMARY KEY, name text)")
        server.run_sql(tmp_path / "table.sql")
        text = "".join([*code, continued]).replace("postgresql://crm@localhost/crm", address)
        (tmp_path / "workers.py").write_text(text, encoding="utf-8")
        (commands,) = blocks("docs/capture/postgresql.md", "sh")
        for line in commands.splitlines():
            _, *arguments = shlex.split(line)
            printed.append(run([sys.executable, "-m", "eventsync", *arguments], tmp_path))
    assert "CREATE PUBLICATION" in printed[0]
    assert "pg_create_logical_replication_slot" in printed[0]
    assert "eventsync_test_crm" in printed[2]


# By the mark of a fence: the server that the example needs, and where the example looks for it.
SERVERS = {
    "github": (GitHubSimulator, "http://localhost:8918"),
    "gitlab": (GitLabSimulator, "http://localhost:8919"),
    "jira": (JiraSimulator, "http://localhost:8920"),
    "ldap": (SlapdServer, "ldap://localhost"),
    "mongo": (MongoServer, "mongodb://localhost:27017"),
    "redis": (RedisServer, "redis://localhost:6379/0"),
    "rest": (ObjectServer, "http://localhost:8080"),
    "roundup": (RoundupServer, "http://localhost:8917"),
}


@pytest.mark.parametrize("mark", sorted(SERVERS))
def test_store_examples_run(mark, tmp_path):
    """The examples of a store run, one after another, on a server of the test's own."""
    server, address = SERVERS[mark]
    pages = ("docs/stores.md", "docs/trackers.md")
    code = "\n".join(code for page in pages for code in blocks(page, f"python {mark}"))
    assert address in code
    with server() as running:
        if mark == "github":
            running.more("site")
        script = tmp_path / "example.py"
        script.write_text(code.replace(address, running.url), encoding="utf-8")
        run([sys.executable, script.name], tmp_path)


CAPTURED = {
    "files": (None, ""),
    "ldap": (SlapdServer, "ldap://localhost"),
    "redis": (RedisServer, "redis://localhost:6379/0"),
    "webhook": (None, ""),
}


@pytest.mark.parametrize("mark", sorted(CAPTURED))
def test_capture_examples_run(mark, tmp_path):
    """The example of a guide runs, on a server of the test's own where it needs one."""
    server, address = CAPTURED[mark]
    page = f"docs/capture/{'webhooks' if mark == 'webhook' else mark}.md"
    (code,) = blocks(page, f"python {mark}")
    script = tmp_path / "example.py"
    with contextlib.ExitStack() as stack:
        if server is not None:
            assert address in code
            code = code.replace(address, stack.enter_context(server()).url)
        script.write_text(code, encoding="utf-8")
        printed = run([sys.executable, script.name], tmp_path)
    for shown in re.findall(r"print\(.*  # (.*)$", code, re.MULTILINE):
        assert shown in printed


@pytest.mark.slow
def test_quickstart_runs(tmp_path):
    """The commands of the quickstart work in a fresh folder, in their order."""
    folder = tmp_path
    lines = "".join(blocks("docs/quickstart.md", "console")).splitlines()
    commands = [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]
    assert len(commands) > 8
    for command in commands:
        if command[0] == "cd":
            folder = folder / command[1]
        elif command[0] == "eventsync":
            run([sys.executable, "-m", *command], folder)
        else:
            assert command[:2] == ["pip", "install"]


@pytest.mark.slow
def test_accessor_of_the_documentation_passes_the_suite(tmp_path):
    """The accessor that is shown passes the conformance suite that is shown."""
    for code in blocks("docs/accessor.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None
        (tmp_path / name[1]).write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_ini.py"]
    printed = run(command, tmp_path)
    assert re.search(r"^\d\d+ passed", printed, re.MULTILINE), printed


def test_envelope_vectors():
    """The vectors of the specification are what this implementation writes and reads."""
    raws = {
        name: bytes.fromhex("".join(blocks("docs/envelope.md", f"hex {name}")))
        for name in (PUT, PATCH, DELETE)
    }
    put = codec.decode(raws[PUT])
    assert put.data == {
        "id": 1,
        "name": "Lämp",
        "price": Decimal("19.90"),
        "since": dt.date(2026, 11, 24),
    }
    assert put.version == Version.of(1_764_000_000_000, 0, 7)
    assert codec.encode(put) == raws[PUT]
    assert put.digest.hex() in (ROOT / "docs/envelope.md").read_text(encoding="utf-8")
    patch = codec.decode(raws[PATCH])
    assert patch.data == {"price": Decimal(21)}
    assert patch.known.stamp == put.stamp
    assert patch.known.values == {"name": "Lämp"}
    keys = Keyring("k1", {"k1": b"0123456789abcdef"})
    assert codec.decode(raws[DELETE], keys=keys).op == DELETE
    with pytest.raises(SignatureError):
        codec.decode(raws[DELETE], keys=Keyring("k1", {"k1": b"another key 0123"}))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Each relative link is to a file that is there, and each anchor to a heading."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_what_errors_refer_to_is_there():
    """A hint that sends its reader to a section of the documentation names one that exists."""
    found = 0
    for path in (ROOT / "eventsync").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for section, page in re.findall(r"'([^']+)' in (docs/[a-z]+\.md)", text):
            found += 1
            headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
            assert section in headings, f"{path.name} refers to {section!r} in {page}"
    assert found >= 3


def test_journeys_are_as_the_architecture_page_draws_them(tmp_path):
    """The page lists the modules that an edit and a message really visit, in this order."""
    code = "import journey, pathlib, sys; page = journey.PAGE.read_text(); "
    code += "print(journey.put(page, journey.journeys(pathlib.Path(sys.argv[1]))) == page)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"},
        check=True,
    )
    assert done.stdout == "True\n", "run: python tests/project/journey.py --write"
