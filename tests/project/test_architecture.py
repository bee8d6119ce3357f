"""The structure of the code, as it is drawn: which way imports run, and who owns which library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eventsync"

# Each may import what stands before it, and what stands beside it in its own layer.
LAYERS = [
    {"errors", "incarnation", "metric"},
    {"value", "unpacking", "tally"},
    {"clock", "key", "shape", "field", "schema", "reader", "declaration", "record"},
    {"change", "condition", "filter", "query", "lag"},
    {
        "keyring",
        "entry",
        "layout",
        "envelope",
        "framing",
        "interchange",
        "cloudevents",
        "debezium",
        "deadletter",
    },
    {"view", "index", "gate", "echo", "edit", "write"},
    {"step", "accessor", "member", "identity"},
    {"store", "capture", "joined"},
    {"retry"},
    {"apply", "stores", "transports"},
    {"registry", "bus", "verify", "circuit", "rate", "isolation", "tracing", "option"},
    {"progress", "publisher", "relay", "spool"},
    {"watchdog", "supervisor"},
    {"settlement", "crew", "survey"},
    {"upkeep"},
    {"worker", "health", "endpoint"},
    {"process"},
    {"exporters"},
    {"config", "log", "testing"},
    {"cli"},
    {"__init__", "__main__"},
]
OWNERS = {
    "msgpack": {"eventsync/value.py", "eventsync/unpacking.py"},
    "msgspec": {"eventsync/reader.py"},
    "tenacity": {"eventsync/retry.py"},
    "kombu": {"eventsync/bus.py", "eventsync/transports/"},
    "amqp": {"eventsync/transports/"},
    "pymongo": {"eventsync/stores/mongo/"},
    "bson": {"eventsync/stores/mongo/"},
    "prometheus_client": {"eventsync/exporters/prometheus.py"},
    "opentelemetry": {"eventsync/exporters/opentelemetry.py"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The layer's name of a module: its own, or that of its folder."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@cache
def imported(path: Path) -> set[str]:
    """The names of the modules that a file imports anywhere, those for type checking included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    """No module imports one of a later layer."""
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = part(path)
    assert own in level, f"{own} is in no layer of this test"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "eventsync" and len(parts) > 1 and parts[1] in level:
            assert level[parts[1]] <= level[own], f"{own} imports {name}"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_one_owner(library):
    """A library that has an owner is imported by nobody else."""
    for path in modules():
        relative = str(path.relative_to(ROOT))
        if any(name.split(".")[0] == library for name in imported(path)):
            assert any(relative.startswith(owner) for owner in OWNERS[library]), relative


def test_stores_stand_alone():
    """No kind of store imports another, but for those that are built on it."""
    built_on = {"trackers": "rest"}
    for path in sorted((PACKAGE / "stores").rglob("*.py")):
        own = path.relative_to(PACKAGE / "stores").parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith("eventsync.stores."):
                assert name.split(".")[2] in (own, built_on.get(own)), f"{path} imports {name}"


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
    assert {"sqlalchemy", "pymongo", "ldap3", "httpx", "psycopg", "hypothesis"} <= extras
    assert extras.isdisjoint(name.partition(".")[0] for name in loaded(code))


def test_every_module_says_what_it_owns():
    """Each module begins with a docstring."""
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
