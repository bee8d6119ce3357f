"""The repository's own ``workers/``: small modules that do nothing when they are imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from cli.project import ROOT, Cli

MODULES = sorted((ROOT / "workers").glob("*.py"))
STORES = [path for path in MODULES if path.stem not in ("__init__", "records")]


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_a_module_a_store(path: Path) -> None:
    """Each module is short, has one typed function, which makes the store, and no class."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in found] == ["store"]
    assert found[0].returns is not None
    assert "class " not in text


def test_the_sample_runs(bare: Cli) -> None:
    """It opens nothing when it is imported, its stores fit together, and it keeps them in sync."""
    from eventsync.cli.deployment import find_registry

    registry = find_registry("workers:registry")
    assert list(bare.folder.iterdir()) == []
    assert registry.problems() == []
    customers = '{"id": 1, "name": "Ann", "city": "Oslo", "balance": "12.50"}\n'
    bare("publish", "crm", input=customers).check()
    bare.drain()
    bare("verify").check()
    assert "Ann" in Path("report.csv").read_text(encoding="utf-8")
    assert Path("documents", "1.json").exists()
