"""``eventsync capture`` and ``eventsync worker`` as processes, beside plain programs that write."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.project import Cli
from support.waiting import eventually

RECORDS = """
from eventsync import Field, Record


class Person(Record):
    id: int = Field(key=True)
    name: str | None = None
    amount: int = 0
"""
STORES = """
from eventsync import Store, StoreRegistry
from eventsync.stores.sql import SqlAccessor
from records import Person

registry = StoreRegistry(
    Store("crm", SqlAccessor(Person, {url!r}, table="person"), capture="auto"),
    Store("copy", SqlAccessor(Person, "sqlite:///copy.db", table="person", create=True)),
)
"""
TABLE = "CREATE TABLE person (id bigint PRIMARY KEY, name varchar(50), amount bigint NOT NULL)"


class Program:
    """A program that writes to the database of the store ``crm``, and does not know eventsync."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.mark = "?" if url.startswith("sqlite") else "%s"

    def connect(self) -> Any:
        url = sa.make_url(self.url)
        if self.url.startswith("sqlite"):
            return sqlite3.connect(url.database or "", timeout=30)
        if self.url.startswith("postgresql"):
            return psycopg.connect(self.url.replace("+psycopg", ""))
        return pymysql.connect(
            host=url.host, port=url.port, user=url.username, database=url.database,
            ssl_disabled=True,
        )  # fmt: skip

    def run(self, *statements: tuple[str, tuple[Any, ...]]) -> list[Any]:
        """Run statements in one transaction."""
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            for statement, parameters in statements:
                cursor.execute(statement.replace("?", self.mark), parameters)
            rows = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
            return rows

    def write_at_random(self, rng: random.Random, keys: int) -> None:
        """Insert, change, delete, or give another key to some records in one transaction."""
        statements: list[tuple[str, tuple[Any, ...]]] = []
        for _ in range(rng.choice((1, 1, 1, 10))):
            key, value = rng.randrange(keys), rng.randrange(10**6)
            statements.append(
                rng.choice(
                    [
                        ("UPDATE person SET amount = ? WHERE id = ?", (value, key)),
                        ("UPDATE person SET amount = amount + 1 WHERE id < ?", (key // 10,)),
                        ("DELETE FROM person WHERE id = ?", (key,)),
                        (
                            "INSERT INTO person SELECT ?, 'new', ? FROM (SELECT 1) one"
                            " WHERE NOT EXISTS (SELECT 1 FROM person WHERE id = ?)",
                            (key, value, key),
                        ),
                        (
                            "UPDATE person SET id = ? WHERE id = ? AND ? NOT IN"
                            " (SELECT id FROM (SELECT id FROM person) others)",
                            (key, value % keys, key),
                        ),
                    ]
                )
            )
        self.run(*statements)

    def rows(self) -> set[tuple[Any, ...]]:
        return {tuple(row) for row in self.run(("SELECT id, name, amount FROM person", ()))}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="module")
def mariadb() -> Iterator[str]:
    with MariaServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def program(request: pytest.FixtureRequest, bare: Cli) -> Iterator[Program]:
    """The program that writes to the database of a project with two stores."""
    if request.param == "sqlite":
        url = f"sqlite:///{bare.folder}/crm.db"
    else:
        url = request.getfixturevalue(request.param)
    made = Program(url)
    made.run((TABLE, ()))
    (bare.folder / "records.py").write_text(RECORDS)
    (bare.folder / "workers.py").write_text(STORES.format(url=url))
    yield made
    if request.param != "sqlite":
        bare("capture", "remove", "crm")
        names = ("person", "eventsync_version", "eventsync_outbox", "eventsync_mark")
        made.run(*((f"DROP TABLE IF EXISTS {name}", ()) for name in names))


def child(parent: int, *words: str) -> int | None:
    """Return the process number of a child whose command line contains all these words."""
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in task.read_text().split():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if set(words) <= set(line):
                    return int(pid)
    return None


@contextlib.contextmanager
def running(cli: Cli, *stores: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Run the workers of these stores."""
    with (cli.folder / "log").open("a") as log:
        workers = {store: cli.start("worker", store, log=log) for store in stores}
        try:
            yield workers
        finally:
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.communicate(timeout=30)


def test_the_capturing_process_is_killed_again_and_again(bare: Cli, program: Program) -> None:
    """Every foreign write arrives in the other store, deletes included, and none twice."""
    rng = random.Random(16)
    program.run(
        *(("INSERT INTO person VALUES (?, 'old', ?)", (key, key)) for key in range(0, 200, 2))
    )

    def copied() -> set[tuple[Any, ...]]:
        with contextlib.suppress(sqlite3.OperationalError):  # the worker makes the table
            return Program(f"sqlite:///{bare.folder}/copy.db").rows()
        return set()

    with running(bare, "crm", "copy") as workers:
        eventually(lambda: program.rows() == copied(), what="the first copy", timeout=60)
        for _ in range(6):
            for _ in range(40):
                program.write_at_random(rng, 200)
            pid = child(workers["crm"].pid, "capture", "crm")
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: program.rows() == copied(), what="all arrives", timeout=60)
        program.run(("DELETE FROM person WHERE id < 5", ()))
        eventually(lambda: program.rows() == copied(), what="deletes arrive", timeout=60)
        eventually(
            lambda: (
                program.run(("SELECT COUNT(*) FROM eventsync_change WHERE number > 0", ()))[0][0]
                == 0
            ),
            what="the change table is empty",
        )
    assert "Traceback" not in (bare.folder / "log").read_text()


def test_the_commands(bare: Cli, program: Program) -> None:
    """An operator sees what is missing, shows the statements, installs and removes."""
    status = bare("capture", "status", "crm").check(1)
    assert "not installed" in status.out
    script = bare("capture", "print-sql", "crm").check().out
    run_script(program, script)
    bare("capture", "status", "crm").check()
    bare("capture", "install", "crm").check()
    program.run(("INSERT INTO person VALUES (1, 'Ann', 5)", ()))
    assert bare("capture", "status", "crm", "--json").check().json["waiting"] >= 1
    bare("capture", "remove", "crm").check()
    assert bare("capture", "status", "crm", "--json").check(1).json["installed"] is False
    program.run(("INSERT INTO person VALUES (2, 'Bob', 5)", ()))


def run_script(program: Program, script: str) -> None:
    """Run a script with the command-line client of the database."""
    url = sa.make_url(program.url)
    commands: dict[str, Callable[[], list[str]]] = {
        "sqlite": lambda: ["sqlite3", "-bail", url.database or ""],
        "postgresql": lambda: ["psql", program.url.replace("+psycopg", ""), "-qXv",
                               "ON_ERROR_STOP=1"],
        "mariadb": lambda: ["mariadb", "-uroot", "-h127.0.0.1", f"-P{url.port}", "--skip-ssl",
                            url.database or ""],
    }  # fmt: skip
    command = commands[url.get_backend_name()]()
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    subprocess.run(command, input=script, text=True, check=True, stdout=subprocess.DEVNULL)


LOG = (
    *("--log-bin=log", "--server-id=7", "--binlog-format=ROW", "--binlog-row-metadata=FULL"),
    "--expire-logs-days=1",
)


def test_the_log_of_a_server_that_is_killed_again_and_again(bare: Cli) -> None:
    """Capture by the binary log loses nothing when the server or the process is killed."""
    rng = random.Random(17)
    with MariaServer(options=LOG, durable=True) as server:
        program = Program(server.url)
        program.run((TABLE, ()))
        (bare.folder / "records.py").write_text(RECORDS)
        (bare.folder / "workers.py").write_text(STORES.format(url=server.url))
        program.run(
            *(("INSERT INTO person VALUES (?, 'old', ?)", (key, key)) for key in range(0, 200, 2))
        )

        def copied() -> set[tuple[Any, ...]]:
            with contextlib.suppress(sqlite3.OperationalError):  # the worker makes the table
                return Program(f"sqlite:///{bare.folder}/copy.db").rows()
            return set()

        with running(bare, "crm", "copy") as workers:
            eventually(lambda: program.rows() == copied(), what="the first copy", timeout=60)
            for number in range(6):
                for _ in range(40):
                    program.write_at_random(rng, 200)
                pid = child(workers["crm"].pid, "capture", "crm")
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                if number % 2:
                    server.kill()
                    server.start()
            eventually(lambda: program.rows() == copied(), what="all arrives", timeout=90)
            program.run(("DELETE FROM person WHERE id < 5", ()))
            eventually(lambda: program.rows() == copied(), what="deletes arrive", timeout=60)
            status = bare("capture", "status", "crm", "--json").check().json
            assert status["source"] == "log"
        assert "Traceback" not in (bare.folder / "log").read_text()
