"""Failing commands print one clear line, no secrets, and end with the right exit code."""

from __future__ import annotations

import pytest
from support.project import RECORDS, Cli


def test_no_project(bare: Cli) -> None:
    """Without a registry, the error names the folder that was searched and the next command."""
    ran = bare("status", "--app", "shop.workers:registry").check(78)
    assert ran.err.startswith("eventsync: there is no module 'shop'")
    assert str(bare.folder) in ran.err
    assert "eventsync init" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("workers", "write module:attribute"),
        ("workers:nothing", "the module defines registry; write --app workers:registry"),
        ("workers:DATABASE", "is of type str, not a StoreRegistry"),
        ("nowhere:registry", "there is no module 'nowhere'"),
    ],
)
def test_wrong_app(cli: Cli, app: str, said: str) -> None:
    """An ``--app`` that names no registry is a configuration error that says what to write."""
    assert said in cli("status", "--app", app).check(78).err


def test_app_may_be_a_function(cli: Cli) -> None:
    """``--app`` may name a function that returns the registry."""
    assert set(cli("status", "--app", "workers:make", "--json").json["stores"]) == {
        "crm",
        "documents",
        "report",
    }


def test_app_from_the_environment(cli: Cli) -> None:
    """``EVENTSYNC_APP`` and ``EVENTSYNC_BROKER`` replace the options."""
    ran = cli.real(
        "status", "--json", EVENTSYNC_APP="workers:make", EVENTSYNC_BROKER="sqlite:///other.db"
    )
    assert ran.json["broker"] == "sqlite:///other.db"


def test_broken_project(bare: Cli) -> None:
    """An error in the user's module is reported in one line, with ``--debug`` as a traceback."""
    (bare.folder / "workers.py").write_text("registry = 1 / 0\n", encoding="utf-8")
    ran = bare("status").check(78)
    assert "ZeroDivisionError" in ran.err
    assert "Traceback" not in ran.err
    assert 'workers.py", line 1' in bare("status", "--debug").check(78).err


def test_missing_import_in_project(bare: Cli) -> None:
    """A failing import in the user's module is not reported as a missing user's module."""
    (bare.folder / "workers.py").write_text("import no_such_library\n", encoding="utf-8")
    assert "No module named 'no_such_library'" in bare("status").check(78).err


def test_unknown_names(cli: Cli) -> None:
    """An error for an unknown store or record type names the known ones."""
    assert "the stores are crm, documents, report" in cli("worker", "cmr", "--drain").check(78).err
    assert "known types: Person, Line" in cli("find", "Preson").check(78).err


def test_wrong_usage(cli: Cli) -> None:
    """Wrong usage ends with exit code 2."""
    cli("publish").check(2)
    cli("find", "Person", "--filter", "{").check(2)
    cli("find", "Person", "--filter", "[]").check(2)
    cli("find", "Person", "--filter", '{"nmae": 1}').check(2)
    cli("dlq", "replay", "crm").check(2)
    cli("nonsense").check(2)


def test_broker_away(cli: Cli) -> None:
    """An unreachable broker ends with exit code 69, and its password is not shown."""
    url = "redis://:hunter2@127.0.0.1:1/0"
    for command in (
        ["publish", "--type", "Person"],
        ["worker", "crm", "--drain"],
        ["dlq", "list", "crm"],
        ["status"],
        ["check"],
    ):
        for more in ([], ["--debug"]):
            ran = cli(*command, *more, "--broker", url, input='{"id": 1, "name": "Ann"}').check(69)
            assert "127.0.0.1" in ran.out + ran.err
            assert "hunter2" not in ran.out + ran.err


def test_no_way_of_failing_shows_a_password(bare: Cli) -> None:
    """Not the errors of drivers in a traceback, and not a fault of the program either."""
    (bare.folder / "records.py").write_text(RECORDS, encoding="utf-8")
    (bare.folder / "workers.py").write_text(
        "from eventsync import Store, StoreRegistry, location\n"
        "from eventsync.stores.sql import SqlAccessor\n"
        "from records import Person\n"
        "class Faulty(SqlAccessor):\n"
        "    def count(self, query):\n"
        "        raise KeyError(f'a fault at {location(\"crm\")}')\n"
        "registry = StoreRegistry(Store('crm', SqlAccessor(Person, location('crm'))))\n"
        "faulty = StoreRegistry(Store('crm', Faulty(Person, 'sqlite:///a.db', create=True)))\n",
        encoding="utf-8",
    )
    places = {
        "postgresql": "postgresql://u:hunter%2F22@127.0.0.1:1/db",
        "mariadb": "mariadb://u:hunter%2F22@127.0.0.1:1/db",
        "wrong": "postgresql//u:hunter%2F22@127.0.0.1:1/db",
    }
    for url in places.values():
        for app in ("workers:registry", "workers:faulty"):
            for more in ((), ("--debug",)):
                ran = bare.real("status", *more, EVENTSYNC_APP=app, EVENTSYNC_STORE_CRM=url)
                assert ran.code != 0
                assert "hunter" not in ran.out + ran.err


def test_unknown_transport(cli: Cli) -> None:
    """An unknown scheme in the broker URL is a configuration error."""
    cli("dlq", "list", "crm", "--broker", "carrier-pigeon://x").check(78)


def test_wrong_setting(cli: Cli) -> None:
    """A wrong setting is named as it is written in the environment."""
    ran = cli.real("status", EVENTSYNC_LEASE="soon", EVENTSYNC_KEYS="c2VjcmV0").check(78)
    assert "EVENTSYNC_LEASE" in ran.err
    assert "c2VjcmV0" not in ran.err


def test_store_away(cli: Cli) -> None:
    """``check`` reports a store that cannot be opened, and the other stores as well."""
    (cli.folder / "documents").write_text("not a folder", encoding="utf-8")
    findings = cli("check", "--json").check(1).json
    wrong = {finding["about"] for finding in findings if finding["level"] == "wrong"}
    assert wrong == {"store documents"}
