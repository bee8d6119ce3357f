"""The files of the deployment: what they name exists, and the services are confined.

No container engine is needed. ``run.py`` in this folder tries the deployment on a real one.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from servers import program
from servers.redis import RedisServer

import eventsync
from eventsync.config import Settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "docker-compose.yml"
OVERLAYS = sorted((ROOT / "deploy").glob("compose.*.yml"))
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
WORKERS = {path.stem for path in (ROOT / "workers").glob("*.py")} - {"__init__", "records"}
# Variables that compose or a unit reads itself, and not eventsync.
OURS = {"IMAGE", "PULL", "BASE", "BUILD_CA", "PROCESSES"}


class Loader(yaml.SafeLoader):
    """A loader that ignores the tags of compose, such as ``!override``."""


def untagged(loader: Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


Loader.add_multi_constructor("!", untagged)


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


SERVICES: dict[str, dict[str, Any]] = load(BASE)["services"]
ALL = [
    (path.name, name, made)
    for path in (BASE, *OVERLAYS)
    for name, made in load(path)["services"].items()
]
SERVERS = ("broker", "crm-db", "cache-db")
OURSELVES = {name: made for name, made in SERVICES.items() if "eventsync" in made["image"]}


def parses(words: list[str]) -> None:
    """Check that the command line accepts these words; raise a usage error otherwise."""
    from eventsync.cli.program import program

    group = typer.main.get_command(program)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:]).close()


def test_a_service_for_each_module() -> None:
    """Each module in ``workers/`` has a service of its name, which runs that store's worker."""
    commands = {name: made.get("command") for name, made in OURSELVES.items()}
    assert {name for name, words in commands.items() if words and words[0] == "worker"} == WORKERS
    for name in WORKERS:
        assert commands[name] == ["worker", name]


def test_commands_exist() -> None:
    """Services and units run commands of eventsync with options that exist."""
    found = 0
    for made in OURSELVES.values():
        if "entrypoint" not in made:
            parses(made["command"])
            found += 1
        test = made.get("healthcheck", {}).get("test")
        if test:
            assert test[:2] == ["CMD", "eventsync"]
            parses(test[2:])
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=\S+/eventsync (.*)$", unit.read_text(), re.MULTILINE)
        parses(line.replace("%i", "crm").replace("${EVENTSYNC_PROCESSES}", "1").split())
    assert found == len(WORKERS) + 1


def test_variables_exist() -> None:
    """Each variable is a setting, the location of a store, or documented as a variable of ours."""
    known = {name.upper() for name in Settings.model_fields} | {"SECRETS_DIR"}
    known |= {f"STORE_{name.upper()}" for name in WORKERS}
    for path in (BASE, *OVERLAYS, *UNITS, ROOT / "deploy/Dockerfile"):
        named = set(re.findall(r"\bEVENTSYNC_([A-Z_]*[A-Z])\b", path.read_text(encoding="utf-8")))
        assert named <= known | OURS, path
    deploying = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
    for name in OURS:
        assert f"EVENTSYNC_{name}" in deploying


@pytest.mark.parametrize(("file", "name", "made"), ALL, ids=[f"{a}-{b}" for a, b, _ in ALL])
def test_services_are_confined(file: str, name: str, made: dict[str, Any]) -> None:
    """Each service runs without root or capabilities, on a read-only file system, within limits."""
    if file != BASE.name and name in SERVICES:
        made = {**SERVICES[name], **made}  # an overlay of it
    assert str(made["user"]).partition(":")[0] not in ("", "0", "root")
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == made["deploy"]["resources"]["limits"].keys()
    assert made["logging"]["options"]["max-size"]
    assert not made.get("privileged")
    for port in made.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    if name not in ("secrets", "producer"):
        assert made["restart"] == "unless-stopped"
        assert made.get("healthcheck", {}).get("test") or "grafana" in made["image"]
    for mount in made.get("volumes", ()):
        source = mount.partition(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mount.endswith(":ro")
        else:
            assert any(source in load(path)["volumes"] for path in (BASE, *OVERLAYS))


def test_no_secret_is_in_the_environment() -> None:
    """Environment variables name only files of passwords, and URLs in them hold no password."""
    for file, name, made in ALL:
        for variable, value in (made.get("environment") or {}).items():
            secret = re.search("PASS|SECRET|TOKEN|KEY", variable) and "AUTH" not in variable
            assert not secret or variable.endswith("_FILE"), (file, name, variable)
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), (file, name, variable)


def test_workers_have_the_time_to_finish() -> None:
    """The engine and systemd wait longer than a worker may take to finish."""
    for name in {*WORKERS, "relay"}:
        made = OURSELVES[name]
        grace = float(made["environment"]["EVENTSYNC_GRACE"])
        assert float(made["stop_grace_period"].removesuffix("s")) > grace
    for unit in UNITS:
        (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
        # The supervisor waits for five more seconds.
        assert float(seconds) > Settings().grace + 5


def test_monitoring_asks_the_right_ports() -> None:
    """Prometheus scrapes each service that listens, at its port, and its files exist."""
    config = load(ROOT / "deploy/prometheus/prometheus.yml")
    ((discovered,),) = [job["dns_sd_configs"] for job in config["scrape_configs"]]
    listening = {n for n, made in OURSELVES.items() if made.get("healthcheck", {}).get("test")}
    assert set(discovered["names"]) == listening
    ports = {OURSELVES[name]["environment"]["EVENTSYNC_LISTEN"] for name in listening}
    assert ports == {f"0.0.0.0:{discovered['port']}"}
    for rules in config["rule_files"]:
        assert (ROOT / "deploy/prometheus" / rules).exists()
    assert list((ROOT / "deploy/grafana/dashboards").glob("*.json"))


def test_prometheus_takes_its_configuration() -> None:
    """``promtool`` accepts the configuration and its rules."""
    check = [program("promtool"), "check", "config", "deploy/prometheus/prometheus.yml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_image_has_what_it_needs() -> None:
    """The copied files exist and are sent to the engine; the version is that of the package."""
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    taken = [line[1:] for line in sent if line.startswith("!")]
    for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, f"{name}*") for name in taken), source
    assert f"ARG VERSION={eventsync.__version__}\n" in DOCKERFILE
    assert "\nUSER 10001:10001\n" in DOCKERFILE


def test_the_list_with_hashes_fits() -> None:
    """It has the versions of the constraints, a hash for each, and what each extra asks for."""
    pinned = {
        canonicalize_name(name): version
        for name, version in re.findall(
            r"^([\w.-]+)==(\S+)$",
            (ROOT / "deploy/constraints.txt").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    locked: dict[str, str] = {}
    for file in ("requirements.txt", "requirements-build.txt"):
        text = (ROOT / "deploy" / file).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            assert "--hash=sha256:" in line, line
            needed = Requirement(line.partition(" --hash")[0])
            (version,) = [part.version for part in needed.specifier]
            assert pinned.get(needed.name, version) == version, needed
            locked[needed.name] = version
            if needed.marker is None:
                assert needed.name in pinned, needed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = dict(project["project"]["optional-dependencies"])
    del groups["dev"], groups["testing"]
    groups["needed"] = project["project"]["dependencies"]
    groups["build"] = project["build-system"]["requires"]
    for group, lines in groups.items():
        for needed in map(Requirement, lines):
            version = locked.get(canonicalize_name(needed.name))
            assert version, (group, needed)
            assert needed.specifier.contains(version, prereleases=True), (group, needed, version)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_valid(unit: Path, tmp_path: Path) -> None:
    """systemd finds nothing wrong with our units, whatever other units of the machine hold."""
    text = unit.read_text(encoding="utf-8").replace("/opt/eventsync/bin/eventsync", sys.executable)
    copy = tmp_path / unit.name.replace("@", "@crm")
    copy.write_text(text, encoding="utf-8")
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    found = [line for line in done.stderr.splitlines() if copy.stem in line]
    assert (done.returncode, found) == (0, []), done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_commands_bear_the_system_call_filter(unit: Path, tmp_path: Path) -> None:
    """Under the filter of a unit a worker and its children run and stop; ``nice`` is refused."""
    confined = [sys.executable, str(ROOT / "tests/compose/confined.py"), str(unit)]
    refused = "import os\ntry: os.nice(1)\nexcept PermissionError: print('refused')"
    run = subprocess.run(
        [*confined, sys.executable, "-c", refused], capture_output=True, text=True, check=False
    )
    if "libseccomp.so.2" in run.stderr:
        pytest.skip("there is no libseccomp")
    assert run.stdout == "refused\n", run.stderr
    (tmp_path / "documents").mkdir()
    settings = {
        "EVENTSYNC_BROKER": f"sqlite:///{tmp_path}/broker.db",
        "EVENTSYNC_STORE_DOCUMENTS": str(tmp_path / "documents"),
        "EVENTSYNC_STORE_CRM": f"sqlite:///{tmp_path}/crm.db",
        "EVENTSYNC_STORE_CACHE": "redis://127.0.0.1:1/0",
    }
    eventsync = [sys.executable, "-m", "eventsync", "worker", "documents", "--processes", "2"]
    with subprocess.Popen(
        [*confined, *eventsync],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        started: list[str] = []
        for line in worker.stdout:
            started.append(line)
            if sum("worker started" in text for text in started) == 2:
                worker.terminate()
                break
        rest = worker.stdout.read()
    assert worker.returncode == 0, [*started, rest]


# -- the secrets -----------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that creates the secrets of some settings in a temporary folder."""
    spec = importlib.util.spec_from_file_location("secret", ROOT / "deploy/compose/secret.py")
    assert spec is not None
    assert spec.loader is not None
    secret = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(secret)
    monkeypatch.setattr(secret, "FOLDER", tmp_path / "eventsync")
    monkeypatch.setattr(secret, "SERVERS", tmp_path / "servers")
    for folder in ("eventsync", "servers/broker", "servers/crm-db", "servers/cache-db",
                   "servers/127.0.0.1"):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)

    def make(*arguments: str) -> dict[str, str]:
        monkeypatch.setattr(sys, "argv", ["secret.py", *arguments])
        secret.main()
        found = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path.name: path.read_text(encoding="ascii") for path in found}

    return make


def test_secrets_are_drawn_once(made: Any, tmp_path: Path) -> None:
    """Each server gets its own password once, and eventsync gets the URL with it."""
    words = SERVICES["secrets"]["command"]
    first = made(*words)
    assert made(*words) == first
    passwords = {first[f"password_{word.partition('=')[0]}"] for word in words}
    assert len(passwords) == len(words)
    assert first["store_crm.password"] in first["eventsync_store_crm"]
    assert first["password_broker"] not in first["broker.acl"]
    moved = made("broker=amqp://eventsync:{password}@broker:5672/")
    assert moved["eventsync_broker"] == f"amqp://eventsync:{first['password_broker']}@broker:5672/"
    assert first["password_broker"] in moved["broker.conf"]
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        of_server = path.suffix in (".acl", ".conf", ".password")
        assert (path.parent.parent.name == "servers") == of_server, path
        assert stat.S_IMODE(path.stat().st_mode) == (0o444 if of_server else 0o400), path
    held = {path.name: {one.name for one in path.iterdir()}
            for path in (tmp_path / "servers").iterdir()}  # fmt: skip
    assert held["crm-db"] == {"store_crm.password"}
    assert held["cache-db"] == {"store_cache.acl"}


@pytest.mark.parametrize(("file", "name", "made"), ALL)
def test_a_server_mounts_its_own_secret_only(file: str, name: str, made: dict[str, Any]) -> None:
    """Nobody but eventsync's own processes mounts the volume with all secrets."""
    mounted = {
        str(volume).partition(":")[0]
        for volume in made.get("volumes", ())
        if str(volume).startswith("secrets")
    }
    if "eventsync" in made.get("image", "") and name != "secrets":
        assert mounted == {"secrets"}, (file, name)
    elif name == "secrets":
        assert mounted in (set(), {"secrets", *(f"secrets-{one}" for one in SERVERS)})
    else:
        assert mounted <= {f"secrets-{name}"}, (file, name)


class Guarded(RedisServer):
    """A Redis server with the users of the compose deployment."""

    def command(self) -> list[str]:
        return [*super().command(), "--aclfile", str(self.folder / "users.acl")]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, username="health", password="any")


def test_a_guarded_server_keeps_its_data(made: Any) -> None:
    """Without a password only PING is allowed, and what a script wrote survives a kill.

    Redis replays its log as the default user, and leaves out what that user may not do.
    """
    server = Guarded()
    found = made(f"broker=redis://:{{password}}@127.0.0.1:{server.port}/0")
    (server.folder / "users.acl").write_text(found["broker.acl"], encoding="ascii")
    with server:
        with pytest.raises(redis.RedisError):
            server.client().get("k")
        with pytest.raises(redis.RedisError):
            redis.Redis(port=server.port).get("k")
        with redis.Redis.from_url(found["eventsync_broker"]) as client:
            client.eval("redis.call('set', 'a', 1); redis.call('set', 'b', 2)", 0)
            client.config_set("appendfsync", "always")
            client.set("c", 3)
        server.kill()
        server.start()
        with redis.Redis.from_url(found["eventsync_broker"]) as client:
            assert client.mget("a", "b", "c") == [b"1", b"2", b"3"]
