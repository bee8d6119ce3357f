"""Errors for a missing extra: they name the extra to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

# By store: the modules that are not there, and the extra that brings them.
EXTRAS = {
    "sql": (["sqlalchemy"], "sql"),
    "ldap": (["ldap3"], "ldap"),
    "mongo": (["pymongo"], "mongo"),
    "rest": (["httpx2", "httpcore2"], "rest"),
    "trackers.roundup": (["httpx2", "httpcore2"], "rest"),
    "trackers.github": (["httpx2", "httpcore2"], "rest"),
}


def without(missing, code):
    """Run code in a process where these modules are not installed; what it said in the end."""
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    script = f"import sys\n{block}{code}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout
    return ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("store", EXTRAS)
def test_a_store_names_its_extra(store):
    """The import of a store whose library is missing says how to install it."""
    missing, extra = EXTRAS[store]
    said = without(missing, f"import eventsync.stores.{store}")
    assert said.startswith("eventsync.errors.ConfigError")
    assert f"pip install 'eventsync[{extra}]'" in said


@pytest.mark.parametrize(
    ("driver", "url", "extra"),
    [
        ("psycopg", "postgresql://somebody@localhost/crm", "postgres"),
        ("pymysql", "mysql://somebody@localhost/crm", "mysql"),
    ],
)
def test_a_database_names_the_extra_of_its_driver(driver, url, extra):
    """The URL of a database whose driver is missing says how to install it."""
    said = without([driver], f"from eventsync.stores.sql import SqlIndex\nSqlIndex({url!r})")
    assert said.startswith("eventsync.errors.ConfigError")
    assert f"pip install 'eventsync[{extra}]'" in said
