"""The structure of the code: import contracts, the environment, what an import loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eventsync"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_import_contracts_hold():
    """Imports run one way, without a circle, and each library has one owner; see pyproject.toml."""
    linted = subprocess.run(
        ["lint-imports", "--no-logo"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert linted.returncode == 0, linted.stdout


def test_only_config_reads_the_environment():
    """Nobody but the settings (and what starts an editor or a process) looks at the environment."""
    allowed = {"config.py", "cli"}
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if "os.environ" in text or "getenv" in text:
            assert path.relative_to(PACKAGE).parts[0] in allowed, path


def loaded(code: str) -> set[str]:
    """The names of the modules that code loads in a process of its own."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(answer.stdout.split())


def optional() -> set[str]:
    """The modules of the libraries that only extras bring, those of tests among them."""
    required = [re.match(r"[\w.-]+", line).group() for line in requires("eventsync") or ()]
    always = [n for n, line in zip(required, requires("eventsync"), strict=True) if ";" not in line]
    extra = {name.lower() for name in required} - {name.lower() for name in always} - {"eventsync"}
    return {
        module
        for module, owners in packages_distributions().items()
        if not extra.isdisjoint(owner.lower() for owner in owners)
    }


def test_import_loads_nothing_else():
    """``import eventsync`` loads no module of a dependency but the lazy loader itself."""
    foreign = {
        name.partition(".")[0] for name in loaded("import eventsync")
    } - sys.stdlib_module_names
    assert foreign <= {"eventsync", "lazy_loader"}
    assert not any(name.startswith("eventsync.") for name in loaded("import eventsync"))


@pytest.mark.parametrize(
    "code",
    [
        "import eventsync; [getattr(eventsync, name) for name in eventsync.__all__]",
        "import eventsync.cli.program",
    ],
    ids=["public names", "command line"],
)
def test_extras_are_optional(code):
    """No public name and no part of the command line needs a library that only an extra brings."""
    extras = optional() - {"yaml", "_yaml"}  # which kombu takes where it is there
    assert {"sqlalchemy", "pymongo", "ldap3", "httpx2", "psycopg", "hypothesis"} <= extras
    assert extras.isdisjoint(name.partition(".")[0] for name in loaded(code))


def test_every_module_says_what_it_owns():
    """Each module begins with a docstring."""
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
