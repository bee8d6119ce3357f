"""``eventsync worker`` as a process, ``eventsync init`` and shell completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.project import Cli
from support.waiting import eventually


def test_worker_applies_and_leaves_on_sigterm(cli: Cli) -> None:
    """A worker logs JSON lines without a terminal, applies changes, and ends with 0 on SIGTERM."""
    worker = cli.start("worker", "report", "--log-level", "debug")
    try:
        assert worker.stderr is not None
        assert json.loads(worker.stderr.readline())["event"] == "worker started"
        cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
        event = json.loads(worker.stderr.readline())
        assert event["event"] == "applied"
        assert "Ann" not in json.dumps(event)
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=20)
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 0
    assert out == ""
    assert json.loads(err.splitlines()[-1])["event"] == "worker stopped"
    assert "Ann" in Path("report.csv").read_text()


def test_secrets_in_files_stay_there(cli: Cli, tmp_path: Path) -> None:
    """Supervised processes get the broker of ``--broker`` or of a file of secrets.

    The URL is never on their command line, and that of a file is not in their environment.
    """
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "eventsync_broker").write_text("sqlite:///hidden-7.db")
    for options, broker in (((), "hidden-7.db"), (("--broker", "sqlite:///given-8.db"), "given-8")):
        group = cli.start(
            "worker", "crm", "--processes", "1", *options, EVENTSYNC_SECRETS_DIR=str(secrets)
        )
        try:
            assert group.stderr is not None
            lines = map(json.loads, group.stderr)
            pid = next(one["pid"] for one in lines if one["event"] == "worker process started")
            started = next(one for one in lines if one["event"] == "worker started")
            assert broker in started["broker"]
            assert b"hidden-7" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert broker.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        finally:
            group.terminate()
            group.communicate(timeout=20)


def test_publishing_before_any_worker_ran(cli: Cli) -> None:
    """A change that is published before a store's worker has ever run waits for it."""
    cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
    cli.drain("report")
    assert "Ann" in Path("report.csv").read_text()


@pytest.mark.slow
def test_init_writes_a_project_that_runs(bare: Cli) -> None:
    """The project that ``init`` writes runs without changes, in real processes."""
    bare.real("init", "shop").check()
    bare.folder /= "shop"
    findings = bare.real("check", "--json").check().json
    assert {finding["level"] for finding in findings} == {"ok", "risk"}  # nothing is there yet
    bare.real("publish", "shop", "-f", "data/products.csv").check()
    bare.real("worker", "sheet", "--drain").check()
    rows = bare.real("find", "Product", "--json", "--exit-code").check().json
    assert [row["merged"]["name"] for row in rows] == ["Lamp", "Chair", "Crème brûlée dish"]
    # The README's edit by hand comes back into the database.
    sheet = Path("shop", "data", "sheet.csv")
    sheet.write_text(sheet.read_text(encoding="utf-8").replace("19.90", "24.90"), encoding="utf-8")
    bare.real("worker", "sheet", "--drain").check()
    bare.real("worker", "shop", "--drain").check()
    row = bare.real("get", "Product", "1", "--json").check().json
    assert row["stores"]["shop"]["values"]["price"] == "24.90"


@pytest.mark.slow
def test_the_starting_project_is_clean(bare: Cli) -> None:
    """The project that ``init`` writes passes the linter, and the Python in its README runs."""
    bare("init").check()
    config = Path(__file__).parents[2] / "pyproject.toml"
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(config), "."],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ruff.returncode == 0, ruff.stdout
    bare.real("publish", "shop", "-f", "data/products.csv").check()
    code = Path("README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert bare.real("get", "Product", "1", "--json").json["merged"]["stock"] == 39


def test_init_overwrites_nothing(bare: Cli) -> None:
    """``init`` refuses a folder that contains one of its files, and changes nothing."""
    Path("records.py").write_text("mine")
    assert "already contains records.py" in bare("init").check(78).err
    assert [path.name for path in Path().iterdir()] == ["records.py"]
    assert Path("records.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "found"),
    [("eventsync worker ", {"crm", "documents", "report"}), ("eventsync find P", {"Person"})],
)
def test_completion(cli: Cli, words: str, found: set[str]) -> None:
    """Shell completion offers the names of stores and record types."""
    done = subprocess.run(
        [sys.executable, "-c", "from eventsync.cli import main; main()"],
        cwd=cli.folder,
        env=cli.environment(
            _EVENTSYNC_COMPLETE="complete_bash",
            EVENTSYNC_APP="workers:registry",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == found, done.stderr


def test_completion_runs_no_module_that_nobody_named(bare: Cli) -> None:
    """A key press in a folder of somebody else does not run its ``workers.py``."""
    Path("workers.py").write_text("open('ran', 'w')\nregistry = None\n")
    for words in ("eventsync worker ", "eventsync find P", "eventsync capture "):
        done = subprocess.run(
            [sys.executable, "-c", "from eventsync.cli import main; main()"],
            env=bare.environment(
                _EVENTSYNC_COMPLETE="complete_bash",
                COMP_WORDS=words,
                COMP_CWORD=str(len(words.split(" ")) - 1),
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not Path("ran").exists()


def test_completion_without_a_project(bare: Cli) -> None:
    """Without a project, shell completion offers nothing and prints nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "from eventsync.cli import main; main()"],
        cwd=bare.folder,
        env=bare.environment(
            _EVENTSYNC_COMPLETE="complete_bash",
            COMP_WORDS="eventsync worker ",
            COMP_CWORD="2",
            EVENTSYNC_APP="nothing.here:registry",
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.slow
def test_supervised_workers_of_a_project(cli):
    """``worker --processes 2`` applies changes although one worker is killed, and ends with 0."""
    supervisor = cli.start("worker", "report", "--processes", "2")
    try:
        pids = []
        while len(pids) < 2:
            line = json.loads(supervisor.stderr.readline())
            if line["event"] == "worker started":
                pids.append(line["pid"])
        os.kill(pids[0], signal.SIGKILL)
        cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
        report = cli.folder / "report.csv"
        eventually(lambda: report.exists() and "Ann" in report.read_text())
        supervisor.send_signal(signal.SIGTERM)
        _, err = supervisor.communicate(timeout=30)
    finally:
        supervisor.kill()
        supervisor.communicate()
    assert supervisor.returncode == 0, err
    assert re.search(r'"event": "worker ended', err)
