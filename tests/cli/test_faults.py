"""Each fault of docs/errors.md at a real server: exit codes, names, and no secret in any output."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
from servers import free_port
from servers.certificate import self_signed
from servers.mariadb import MariaServer
from servers.mongodb import MongoServer
from servers.objects import ObjectServer
from servers.postgres import PostgresServer
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer
from servers.slapd import SlapdServer
from support.project import ROOT, Cli
from support.waiting import eventually

SECRET = "s3cret-of-nobody"
PAGE = ROOT / "docs" / "errors.md"
_HEAD = "| fault | at | a command | `check` | a worker | the error names |"


@dataclass(frozen=True)
class Row:
    """A row of the table, for one kind of store or broker."""

    fault: str
    at: str
    command: int
    check: int
    worker: int | None
    names: tuple[str, ...]


def rows() -> Iterator[Row]:
    """Yield the rows of the table in the documentation."""
    lines = PAGE.read_text(encoding="utf-8").partition(_HEAD)[2].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            break
        fault, places, command, check, worker, names = (c.strip() for c in line.split("|")[1:-1])
        for at in places.split(", "):
            ends = None if worker == "waits" else int(worker)
            named = tuple(re.findall("`([^`]+)`", names))
            yield Row(fault, at, int(command), int(check), ends, named)


ROWS = list(rows())


class _TlsPostgres(PostgresServer):
    def command(self) -> list[str]:
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        files = ["-c", "ssl=on", "-c", f"ssl_cert_file={certificate}", "-c", f"ssl_key_file={key}"]
        return [*super().command(), *files]

    def prepare(self) -> None:
        super().prepare()
        _, key = self_signed(self.folder)
        key.chmod(0o600)
        if self.user():
            shutil.chown(key, "postgres")


class _TlsMaria(MariaServer):
    def command(self) -> list[str]:
        files = [f"--ssl-cert={self.folder / 'cert.pem'}", f"--ssl-key={self.folder / 'key.pem'}"]
        return [*super().command(), *files]

    def prepare(self) -> None:
        super().prepare()
        self_signed(self.folder)


class _TlsRedis(RedisServer):
    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()

    def command(self) -> list[str]:
        options = ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
        options += ["--tls-cert-file", str(self.folder / "cert.pem")]
        options += ["--tls-key-file", str(self.folder / "key.pem")]
        return [*super().command(), *options]

    def prepare(self) -> None:
        super().prepare()
        self_signed(self.folder)


class _TlsRabbit(RabbitServer):
    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()

    def prepare(self) -> None:
        super().prepare()
        certificate, key = self_signed(self.folder)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.ssl.default = {self.tls_port}\n"
            f"ssl_options.cacertfile = {certificate}\n"
            f"ssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_none\n"
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the certificate of an authority that has issued none of the servers' certificates."""
    return self_signed(tmp_path_factory.mktemp("authority"))[0]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with _TlsPostgres() as server:
        hba = server.folder / "data" / "pg_hba.conf"
        hba.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        script = server.folder / "faults.sql"
        script.write_text(
            "CREATE ROLE guarded LOGIN PASSWORD 'right'; CREATE ROLE stranger LOGIN;"
            "CREATE TABLE item (id BIGINT PRIMARY KEY, name TEXT NOT NULL);"
            "SELECT pg_reload_conf();"
        )
        server.run_sql(script)
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaServer]:
    with _TlsMaria() as server:
        connection = pymysql.connect(
            host="127.0.0.1", port=server.port, user="root", database="test", ssl_disabled=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER guarded IDENTIFIED BY 'right'")
            cursor.execute("CREATE USER stranger")
            cursor.execute("CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40) NOT NULL)")
            cursor.execute("CREATE TABLE other (id BIGINT PRIMARY KEY)")
            cursor.execute("GRANT SELECT ON test.other TO stranger")
        yield server


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with _TlsRedis() as server:
        client: Any = server.client()
        client.execute_command("ACL", "SETUSER", "guarded", "on", ">right", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "stranger", "on", ">right", "~*", "+ping")
        client.close()
        yield server


@pytest.fixture(scope="module")
def mongodb() -> Iterator[MongoServer]:
    with MongoServer() as server:
        with server.client() as client:
            client.admin.command("createUser", "root", pwd="right", roles=["root"])
            client.other.command("createUser", "stranger", pwd="right", roles=["read"])
        server.stop()
        server.auth = True
        server.start()
        yield server


@pytest.fixture(scope="module")
def slapd() -> Iterator[SlapdServer]:
    with SlapdServer(tls=True) as server:
        yield server


@pytest.fixture(scope="module")
def rest() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.token = "right"
        yield server


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitServer]:
    with _TlsRabbit() as server:
        server.ctl("add_user", "stranger", "right")
        server.ctl("add_vhost", "walled")
        server.ctl("set_permissions", "-p", "/", "stranger", "^$", "^$", "^$")
        yield server


SQL = "SqlAccessor(Item, {url!r}, table='item')"
REDIS = "RedisAccessor(Item, {url!r})"
MONGO = "MongoAccessor(Item, {url!r})"
LDAP = (
    "LdapAccessor(Item, {url!r}, dn={dn!r}, object_classes=['device'],"
    " user='cn=admin,dc=example,dc=org', password={password!r},"
    " view=View(rename={{'id': 'cn', 'name': 'description'}}))"
)
REST = (
    "RestAccessor(Item, Service({url!r}, auth=Token({token!r}), allow=['127.0.0.0/8']),"
    " Resource(items={items!r}, item='items/{{id}}'))"
)
PEOPLE = "cn={id},ou=people,dc=example,dc=org"
IMPORTS = {
    "postgresql": "from eventsync.stores.sql import SqlAccessor",
    "mariadb": "from eventsync.stores.sql import SqlAccessor",
    "redis": "from eventsync.stores.redis import RedisAccessor",
    "mongodb": "from eventsync.stores.mongo import MongoAccessor",
    "ldap": "from eventsync.stores.ldap import LdapAccessor",
    "rest": "from eventsync.stores.rest import Resource, RestAccessor, Service, Token",
    "files": "from eventsync.stores.files import JsonFolderAccessor",
}
PROJECT = """
from __future__ import annotations

from eventsync import Field, Record, Store, StoreRegistry, View
from eventsync.stores.memory import MemoryAccessor
{imports}


class Item(Record):
    id: {key} = Field(key=True)
    name: str = ""


registry = StoreRegistry(
    Store("crm", {accessor}{index}),
    Store("other", MemoryAccessor(Item)),
)
"""


def accessor_for(row: Row, server: Callable[[str], Any]) -> str:
    """Return the declaration of an accessor whose store has the fault of ``row``."""
    fault, closed = row.fault, f"u:{SECRET}@127.0.0.1:{free_port()}"
    host = {"server unreachable": closed, "unknown host": f"u:{SECRET}@nowhere.invalid"}.get(fault)
    if row.at in ("postgresql", "mariadb"):
        held = server("postgres" if row.at == "postgresql" else "mariadb")
        place, other = f"127.0.0.1:{held.port}", server("authority")
        if row.at == "postgresql":
            scheme, plain = "postgresql://", ""
            secure = f"?sslmode=verify-full&sslrootcert={other}"
        else:
            scheme, plain = "mysql://", "?ssl_disabled=true"
            secure = f"?ssl_ca={other}&ssl_check_hostname=false"
        url = {
            "wrong password": f"guarded:{SECRET}@{place}/test{plain}",
            "unknown database": f"eventsync:{SECRET}@{place}/nowhere{plain}",
            "no right to read": f"stranger@{place}/test{plain}",
            "certificate not trusted": f"eventsync:{SECRET}@localhost:{held.port}/test{secure}",
        }
        if row.at == "mariadb":
            url["unknown database"] = f"root@{place}/nowhere{plain}"
        if fault == "URL without scheme":
            return SQL.format(url=f"{scheme.replace('://', '//')}u:{SECRET}@{place}/test")
        return SQL.format(url=scheme + url.get(fault, f"{host}/test{plain}"))
    if row.at == "redis":
        held = server("redis_server")
        place = f"127.0.0.1:{held.port}"
        url = {
            "wrong password": f"redis://guarded:{SECRET}@{place}/0",
            "unknown database": f"redis://guarded:right@{place}/99",
            "no right to read": f"redis://stranger:right@{place}/0",
            "certificate not trusted": f"rediss://guarded:right@localhost:{held.tls_port}/0",
            "URL without scheme": f"redis//guarded:{SECRET}@{place}/0",
        }
        return REDIS.format(url=url.get(fault, f"redis://{host}/0"))
    if row.at == "mongodb":
        place = server("mongodb").url.removeprefix("mongodb://")
        end = "shop?serverSelectionTimeoutMS=1000"
        url = {
            "wrong password": f"mongodb://root:{SECRET}@{place}/{end}&authSource=admin",
            "no right to read": f"mongodb://stranger:right@{place}/{end}&authSource=other",
            "URL without scheme": f"mongodb//root:{SECRET}@{place}/{end}",
        }
        return MONGO.format(url=url.get(fault, f"mongodb://{host}/{end}"))
    if row.at == "ldap":
        held = server("slapd")
        bare = "" if host is None else host.rpartition("@")[2]
        url = {
            "server unreachable": f"ldap://{bare}",
            "unknown host": f"ldap://{bare}",
            "certificate not trusted": held.secure_url,
            "URL without scheme": f"ldap//u:{SECRET}@127.0.0.1:{held.port}",
        }
        return LDAP.format(
            url=url.get(fault, held.url),
            dn=PEOPLE.replace("people", "nobody") if "parent" in fault else PEOPLE,
            password=SECRET if fault == "wrong password" else "secret",
        )
    if row.at == "rest":
        held = server("rest")
        bare = "" if host is None else host.rpartition("@")[2]
        url = {
            "server unreachable": f"http://{bare}",
            "unknown host": f"http://{bare}",
            "certificate not trusted": f"https://localhost:{server('redis_server').tls_port}",
            "URL without scheme": f"http//u:{SECRET}@127.0.0.1",
        }
        return REST.format(
            url=url.get(fault, held.url),
            token=SECRET if fault == "wrong token" else "right",
            items="nowhere/at/all" if fault == "unknown path" else "items",
        )
    return "JsonFolderAccessor(Item, 'workers.py')"


def broker_for(row: Row, server: Callable[[str], Any]) -> str:
    """Return the URL of a broker that has the fault of ``row``."""
    kind = row.at.removeprefix("broker").strip()
    if row.fault == "unknown scheme":
        return f"carrier-pigeon://u:{SECRET}@127.0.0.1"
    if kind == "sqlite":
        return "sqlite:///nowhere/broker.db"
    held = server("redis_server" if kind == "redis" else "rabbitmq")
    scheme, end = ("redis", "0") if kind == "redis" else ("amqp", "/")
    user = "guarded" if kind == "redis" else "guest"
    right = "right" if kind == "redis" else "guest"
    place = f"127.0.0.1:{held.port}"
    return {
        "server unreachable": f"{scheme}://{user}:{SECRET}@127.0.0.1:{free_port()}/{end}",
        "unknown host": f"{scheme}://{user}:{SECRET}@nowhere.invalid/{end}",
        "wrong password": f"{scheme}://{user}:{SECRET}@{place}/{end}",
        "no right": f"{scheme}://stranger:right@{place}/{end}",
        "unknown database": f"{scheme}://{user}:{right}@{place}/99",
        "unknown virtual host": f"{scheme}://{user}:{right}@{place}/nowhere",
        "certificate not trusted": f"{scheme}s://{user}:{right}@localhost:{held.tls_port}/{end}",
        "URL without scheme": f"{scheme}//{user}:{SECRET}@{place}/{end}",
    }[row.fault]


@pytest.fixture
def project(folder: Path, request: pytest.FixtureRequest) -> Callable[[Row], tuple[Cli, str]]:
    """Return a function that writes a project with a fault; it returns its broker's URL, too."""

    def write(row: Row) -> tuple[Cli, str]:
        server = request.getfixturevalue
        if row.at.startswith("broker"):
            broker, accessor, imports = broker_for(row, server), "MemoryAccessor(Item)", ""
        else:
            broker = "sqlite:///broker.db"
            accessor, imports = accessor_for(row, server), IMPORTS[row.at]
        indexed = row.at in ("ldap", "rest")
        (folder / "workers.py").write_text(
            PROJECT.format(
                imports=imports,
                key="str" if row.at in ("ldap", "rest") else "int",
                accessor=accessor,
                index=", index='crm.db'" if indexed else "",
            ),
            encoding="utf-8",
        )
        return Cli(folder), broker

    return write


def start(cli: Cli, broker: str, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a command whose whole output goes to a file."""
    output = cli.folder / f"{'-'.join(arguments)}.out".replace("/", "_")
    with output.open("w", encoding="utf-8") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "eventsync", *arguments],
            cwd=cli.folder,
            env=cli.environment(EVENTSYNC_BROKER=broker, EVENTSYNC_RETRY_FOR="0.5"),
            stdout=written,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    return process, output


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.at}-{row.fault}".replace(" ", "-"))
def test_fault(row: Row, project: Callable[[Row], tuple[Cli, str]]) -> None:
    """A command, ``check`` and a worker end, or wait, as the table says, and name what it says."""
    cli, broker = project(row)
    of_broker = row.at.startswith("broker")
    once = ["dlq", "list", "crm"] if of_broker else ["find", "Item"]
    ran = {
        "command": start(cli, broker, *once),
        "check": start(cli, broker, "check", "--json"),
        "worker": start(cli, broker, "worker", "crm"),
    }
    try:
        for name, code in (("command", row.command), ("check", row.check)):
            process, output = ran[name]
            assert process.wait(180) == code, output.read_text()
        process, output = ran["worker"]
        if row.worker is None:
            waiting = "broker unreachable" if of_broker else "circuit opened"
            eventually(
                lambda: waiting in output.read_text() or process.poll() is not None, timeout=120
            )
            assert process.poll() is None, output.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, output.read_text()
        else:
            assert process.wait(180) == row.worker, output.read_text()
    finally:
        for process, _ in ran.values():
            process.kill()
            process.wait()
    for name, (_, output) in ran.items():
        text = output.read_text()
        assert SECRET not in text, name
        assert "Traceback" not in text, text
        for part in row.names:
            assert part.lower() in text.lower(), f"{name} does not name {part}:\n{text}"
        if not of_broker and row.fault != "URL without scheme":
            assert "crm" in text, name
            if name == "command":
                assert "store 'crm'" in text, text


COMMANDS = {
    False: (
        "get Item 1",
        "verify",
        "sync --from crm --to other",
        "sync --from crm --to other --dry-run",
        "publish crm --type Item -f items.jsonl",
        "relay crm --once",
        "worker crm --drain",
        "status",
    ),
    True: (
        "publish --type Item -f items.jsonl",
        "relay crm --once",
        "worker crm --drain",
        "dlq replay crm --all",
        "status",
    ),
}
"""The other commands that use a store, and those that use the broker."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        row
        for row in ROWS
        if row.at in ("postgresql", "rest", "broker redis")
        and row.fault in ("server unreachable", "wrong password", "wrong token")
    ],
    ids=lambda row: f"{row.at}-{row.fault}".replace(" ", "-"),
)
def test_every_command(row: Row, project: Callable[[Row], tuple[Cli, str]]) -> None:
    """Every command that needs what has failed ends with the code of the table."""
    cli, broker = project(row)
    (cli.folder / "items.jsonl").write_text('{"id": "1", "name": "Ann"}\n', encoding="utf-8")
    ran = [
        (line, *start(cli, broker, *line.split()))
        for line in COMMANDS[row.at.startswith("broker")]
        # The outbox of a REST store is in a file, so a relay does not need the service.
        if row.at != "rest" or "relay" not in line
    ]
    try:
        codes = {line: process.wait(240) for line, process, _ in ran}
        texts = {line: output.read_text() for line, _, output in ran}
    finally:
        for _, process, _ in ran:
            process.kill()
            process.wait()
    assert codes == dict.fromkeys(codes, row.command), texts
    for line, text in texts.items():
        assert SECRET not in text, line
        assert "Traceback" not in text, text
        if not row.at.startswith("broker"):
            assert "crm" in text, line


def test_the_table_is_whole() -> None:
    """The table was found, and names each kind of store and broker with a server."""
    places = {row.at for row in ROWS}
    assert {"postgresql", "mariadb", "redis", "mongodb", "ldap", "rest", "files"} <= places
    assert {"broker redis", "broker rabbitmq", "broker sqlite"} <= places
    assert len(ROWS) > 50
