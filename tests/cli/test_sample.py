"""The sample ``workers/`` and the project that ``eventsync init`` writes: small, alike, without
work at import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import psycopg
import pytest
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from support.project import ROOT, Cli
from support.waiting import eventually

from eventsync.cli.deployment import find_registry

FOLDERS = [ROOT / "workers", ROOT / "eventsync/cli/starter/workers"]
MODULES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py*"))]
STORES = [path for path in MODULES if path.name.partition(".")[0] not in ("__init__", "records")]


def functions(path: Path) -> dict[str, str]:
    """Return the functions of a module, with their return types."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.unparse(node.returns) if node.returns else "" for node in found}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", STORES, ids=name)
def test_a_module_a_store(path: Path) -> None:
    """Each module is short and has one function, which makes the store, and no class."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert functions(path) == {"store": "Store"}
    assert "class " not in text


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_registry_is_a_function(folder: Path) -> None:
    """The registry is a function, so that importing the package makes no store."""
    (package,) = folder.glob("__init__.py*")
    assert functions(package) == {"registry": "StoreRegistry"}
    stores = [path for path in STORES if path.parent == folder]
    for path in stores:
        assert f"{path.name.partition('.')[0]}.store()" in package.read_text(encoding="utf-8")


def test_importing_asks_for_nothing(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the modules opens nothing and reads no setting."""
    monkeypatch.syspath_prepend(str(ROOT))
    __import__("workers")
    assert callable(sys.modules["workers"].registry)
    assert list(bare.folder.iterdir()) == []
    ran = bare("status").check(78)
    assert "EVENTSYNC_STORE_CRM" in ran.err


def test_the_sample_runs(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample keeps an existing CRM database, a cache and documents in sync."""
    with PostgresServer() as postgres, RedisServer() as redis, Path("log").open("w") as log:
        postgres.run_sql(ROOT / "deploy/compose/crm.sql")
        settings = {
            "EVENTSYNC_STORE_CRM": postgres.url,
            "EVENTSYNC_STORE_CACHE": redis.url,
            "EVENTSYNC_STORE_DOCUMENTS": "documents",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        registry = find_registry("workers:registry")
        assert registry.problems() == []
        assert [path.name for path in bare.folder.iterdir()] == ["log"]
        names = ("crm", "cache", "documents")
        # The first captures what was in the database before eventsync came.
        bare.drain(*names)
        bare("verify").check()
        customer = '{"id": 1, "city": "Bergen", "standing": "active"}\n'
        bare("publish", "crm", "--type", "Customer", input=customer).check()
        bare.drain(*names)
        bare("verify").check()
        client = redis.client()
        assert client.hget("customer:1", "city") == b"Bergen"
        # A program that knows nothing of eventsync writes to the CRM. The next poll is far away.
        processes = [
            bare.start("worker", name, log=log, PYTHONPATH=str(ROOT), **settings) for name in names
        ]
        try:
            with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as crm:
                eventually(
                    lambda: bare("capture", "status", "crm", "--json").json["installed"],
                    timeout=60,
                )
                crm.execute("UPDATE customer SET city = 'Molde' WHERE customer_id = 1")
                crm.execute("DELETE FROM sales_order WHERE order_id = 1001")
                document = Path("documents/customers/1.json")
                eventually(lambda: client.hget("customer:1", "city") == b"Molde")
                eventually(lambda: "Molde" in document.read_text(encoding="utf-8"))
                eventually(lambda: not client.exists("order:1001"))
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.communicate(timeout=60)
        client.close()
