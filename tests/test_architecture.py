"""The structure of the code, as it is drawn: which way imports run, and who owns which library."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "eventsync"

# Each may import what stands before it, and what stands beside it in its own layer.
LAYERS = [
    {"errors", "incarnation", "metric"},
    {"value", "tally"},
    {"clock", "key", "shape", "field", "schema", "declaration", "record"},
    {"change", "condition", "query", "lag"},
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
    {"view", "index", "gate", "accessor", "member", "identity"},
    {"store", "joined"},
    {"retry"},
    {"apply", "stores", "transports"},
    {"registry", "bus", "verify", "circuit", "rate", "isolation", "tracing"},
    {"progress", "publisher", "relay", "spool"},
    {"watchdog", "supervisor"},
    {"settlement", "crew", "survey"},
    {"worker", "health", "endpoint"},
    {"exporters"},
    {"config", "log", "testing"},
    {"cli"},
    {"__init__", "__main__"},
]
OWNERS = {
    "msgpack": {"eventsync/value.py"},
    "tenacity": {"eventsync/retry.py"},
    "kombu": {"eventsync/bus.py", "eventsync/transports/"},
    "amqp": {"eventsync/transports/"},
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


def test_import_needs_no_extra():
    """``import eventsync`` loads no optional dependency, and no transport."""
    code = (
        "import sys, eventsync;"
        "print(*sorted({n.split('.')[0] for n in sys.modules}"
        " & {'sqlalchemy', 'hypothesis', 'pytest', 'kombu', 'typer', 'rich', 'pydantic',"
        " 'redis', 'ldap3', 'httpx', 'httpcore', 'prometheus_client', 'opentelemetry'}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.split() == []


def test_every_module_says_what_it_owns():
    """Each module begins with a docstring."""
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
