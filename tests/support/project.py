"""A project of three stores, and the command line run in it.

``RECORDS`` and ``STORES`` are the files ``records.py`` and ``workers.py`` of the project: the store
``crm`` (SQLite) holds people and lines; ``documents`` (JSON) holds people in Oslo, without their
balance; ``report`` (CSV) holds three fields of people. The fixture ``cli`` of ``tests/cli`` writes
them to a folder and returns a ``Cli`` for it::

    def test_status(cli: Cli) -> None:
        cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
        assert cli("status", "--json").check().json["stores"]["report"]["queues"]["ready"] == 1
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import structlog
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]

RECORDS = """
from __future__ import annotations

from decimal import Decimal

from eventsync import Field, Record


class Person(Record, rule="field"):
    id: int = Field(key=True)
    name: str = Field(length=20)
    city: str | None = None
    balance: Decimal = Decimal(0)
    photo: bytes | None = None
    token: str | None = Field(default=None, secret=True)


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    text: str = ""
"""

STORES = """
from __future__ import annotations

from eventsync import Store, StoreRegistry, View
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor
from eventsync.stores.sql import SqlAccessor
from records import Line, Person

DATABASE = "sqlite:///crm.db"
registry = StoreRegistry(
    Store(
        "crm",
        SqlAccessor(Person, DATABASE, table="person", create=True),
        SqlAccessor(Line, DATABASE, table="line", create=True),
    ),
    Store(
        "documents",
        JsonFolderAccessor(
            Person, "documents", view=View(omit=("balance",), where={"city": "Oslo"})
        ),
        index="documents.db",
    ),
    Store(
        "report",
        CsvAccessor(
            Person,
            "report.csv",
            view=View(only=("id", "name", "balance"), rename={"name": "who"}),
        ),
        index="report.db",
    ),
)


def make():
    return registry
"""


@dataclass
class Ran:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as JSON."""
        return json.loads(self.out)

    def check(self, code: int = 0) -> Ran:
        """Fail the test unless the exit code is ``code``; return this."""
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.out}\n{self.err}"
        return self


class Cli:
    """The command line in the folder of a project.

    Calling it runs a command in this process, which is fast. ``real`` and ``start`` run it in a
    process of its own, where a test needs signals, other settings or the real start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, input: str | bytes | None = None) -> Ran:
        """Run a command in this process."""
        from eventsync.cli.program import program

        _forget_project()
        path = list(sys.path)
        try:
            done = CliRunner().invoke(program, list(arguments), input=input)
        finally:
            sys.path[:] = path
            structlog.reset_defaults()
            _forget_project()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(done.exit_code, done.stdout, done.stderr)

    def real(self, *arguments: str, **environment: str) -> Ran:
        """Run a command in a process of its own, with these settings in its environment."""
        done = subprocess.run(
            [sys.executable, "-m", "eventsync", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(
        self, *arguments: str, log: IO[str] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command that keeps running; the caller ends it.

        ``log``: a file for its standard error, instead of a pipe.
        """
        return subprocess.Popen(
            [sys.executable, "-m", "eventsync", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=log or subprocess.PIPE,
            text=True,
        )

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command: this one without settings, and ``more``."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("EVENTSYNC_")}
        return {**kept, "PYTHONPATH": str(ROOT), **more}

    def drain(self, *stores: str) -> None:
        """Apply the waiting changes of these stores, by default of all three."""
        for store in stores or ("crm", "documents", "report"):
            self("worker", store, "--drain").check()


def _forget_project() -> None:
    """Forget the imported modules of the project, so that the next command imports them anew."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("workers", "records"):
            del sys.modules[name]
