"""A trial of the compose deployment on a real container engine.

``python tests/compose/run.py`` builds the image, starts all services under a project name of its
own, edits each of the stores, scales the workers, kills workers and the broker while a producer
writes, and stops and starts everything. It compares all stores after each step. It ends with exit
code 1 at the first failure, and removes what it created. It needs Docker with compose v2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


class Compose:
    """The compose project, driven by ``docker compose``."""

    def __init__(self, project: str, overlays: list[str]) -> None:
        files = ["docker-compose.yml", *(f"deploy/compose.{name}.yml" for name in overlays)]
        self.command = ["docker", "compose", "--project-name", project]
        self.command += [part for file in files for part in ("--file", file)]

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run a command and return its output. Raises ``SystemExit`` if it fails."""
        return run([*self.command, *arguments], check=check)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that keeps running."""
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def eventsync(self, *arguments: str) -> str:
        """Run ``eventsync`` in the container of the relay and return its output."""
        return self("exec", "-T", "relay", "eventsync", *arguments, check=False)

    def json(self, *arguments: str) -> Any:
        """Run ``eventsync`` with ``--json``; return its output, ``None`` if it is not JSON."""
        output = self.eventsync(*arguments, "--json")
        try:
            return json.loads(output)
        except ValueError:
            return None

    def sql(self, statement: str) -> str:
        """Run a statement in the database of the CRM and return its answer."""
        psql = ["psql", "-U", "crm", "-d", "crm", "-tAqc", statement]
        return self("exec", "-T", "crm-db", *psql).strip()

    def containers(self, service: str) -> list[str]:
        return self("ps", "--quiet", service).split()


class Trial:
    """The steps of the trial, each printed with its duration."""

    def __init__(self, compose: Compose) -> None:
        self.compose = compose
        self.began = time.monotonic()

    def tell(self, text: str) -> None:
        now = time.monotonic()
        print(f"{now - self.began:6.1f} s  {text}", flush=True)
        self.began = now

    def until(self, check: Callable[[], object], what: str, *, within: float = 180.0) -> None:
        """Wait until ``check()``. Raises ``SystemExit`` after ``within`` seconds."""
        deadline = time.monotonic() + within
        while not check():
            if time.monotonic() > deadline:
                raise SystemExit(f"NOT within {within:g} s: {what}")
            time.sleep(0.25)

    def up(self, *scale: str) -> None:
        arguments = [part for pair in scale for part in ("--scale", pair)]
        self.compose("up", "--detach", "--wait", "--wait-timeout", "300", *arguments)

    def settled(self) -> bool:
        """Return whether no change waits, is held or is a dead letter."""
        status = self.compose.json("status")
        if status is None:
            return False
        for store in status["stores"].values():
            queues = store["queues"]
            counts = [queues.get(name) for name in ("ready", "in_hand", "held", "dead")]
            if "error" in store or any(counts) or store.get("outbox") != 0:
                return False
        return True

    def agree(self, within: float = 180.0) -> str:
        """Wait until everything is settled and the stores agree; describe their records."""
        found: dict[str, Any] = {}

        def same() -> bool:
            found["verified"] = self.compose.json("verify") if self.settled() else None
            return bool(found["verified"]) and found["verified"]["agree"]

        try:
            self.until(same, "all is settled and the stores agree", within=within)
        except SystemExit:
            print(self.compose.eventsync("status"), self.compose.eventsync("verify"))
            raise
        orders = self.compose.sql("SELECT count(*) FROM sales_order")
        customers = self.compose.sql("SELECT count(*) FROM customer")
        return f"{customers} customers and {orders} orders, all stores agree"


def run(command: list[str], *, check: bool = True) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"FAILED: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def state(container: str, what: str) -> str:
    return run(["docker", "inspect", "--format", f"{{{{.State.{what}}}}}", container]).strip()


def kill(compose: Compose, service: str) -> str:
    """Kill the first process of a container with SIGKILL, and return the container's id.

    The signal comes from outside the container, so the engine sees a crash and not a stop.
    """
    (relay,) = compose.containers("relay")
    victim = compose.containers(service)[0]
    image = run(["docker", "inspect", "--format", "{{.Config.Image}}", relay]).strip()
    options = ["--rm", "--pid", "host", "--user", "0", "--entrypoint", "python"]
    run(["docker", "run", *options, image, "-c", KILL, state(victim, "Pid")])
    return victim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rabbitmq", action="store_true", help="with RabbitMQ as the broker")
    parser.add_argument("--project", default="eventsync-trial")
    parser.add_argument("--seconds", type=float, default=45.0, help="of load")
    parser.add_argument("--rate", type=float, default=40.0, help="edits a second")
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    options = parser.parse_args()
    compose = Compose(options.project, ["rabbitmq"] if options.rabbitmq else [])
    compose("down", "--volumes", "--timeout", "5")
    try:
        steps(Trial(compose), options)
    except BaseException:
        print(compose("ps", "--all", check=False), file=sys.stderr)
        for container in compose("ps", "--quiet", check=False).split():
            print(container, state(container, "Health"), file=sys.stderr)
        print(compose("logs", "--tail", "40", check=False), file=sys.stderr)
        raise
    finally:
        if not options.keep:
            compose("down", "--volumes", "--timeout", "5", check=False)


def cities(compose: Compose) -> set[str]:
    """Return the cities of customer 7 in all stores."""
    found = compose.json("get", "Customer", "7")
    stores = found["stores"].values() if found else ()
    return {(store["values"] or {}).get("city") for store in stores}


def steps(trial: Trial, options: argparse.Namespace) -> None:
    compose = trial.compose
    compose("build")
    trial.tell("docker compose build")
    trial.up()
    trial.tell("docker compose up --wait: every service is healthy")
    trial.tell(f"the existing data of the CRM is in all stores: {trial.agree()}")

    compose.sql("UPDATE customer SET city = 'Bergen', standing = 'active' WHERE customer_id = 7")
    trial.until(lambda: cities(compose) == {"Bergen"}, "Bergen in all stores")
    trial.tell("a foreign UPDATE in the CRM is in all three stores")
    document = "/data/customers/7.json"
    edit = f"sed -i s/Bergen/Stavanger/ {document}"
    compose("exec", "-T", "documents", "sh", "-c", edit)
    trial.until(
        lambda: compose.sql("SELECT city FROM customer WHERE customer_id = 7") == "Stavanger",
        "the document's edit is in the CRM",
    )
    trial.tell("an edit of a document is in the CRM's database")

    trial.up("crm=4", "cache=2")
    assert len(compose.containers("crm")) == 4
    trial.tell("docker compose up --scale crm=4 --scale cache=2: all healthy")

    before = int(compose.sql("SELECT count(*) FROM sales_order"))
    produce = ["--rate", str(options.rate), "--seconds", str(options.seconds)]
    producer = compose.start("run", "--rm", "-T", "producer", *produce)
    time.sleep(options.seconds * 0.25)
    for service in ("crm", "cache", "documents"):
        victim = kill(compose, service)
        trial.until(lambda v=victim: state(v, "Running") == "true", "it was started again")
    trial.tell("a worker of each store was killed with SIGKILL under load, and started again")
    time.sleep(options.seconds * 0.15)
    broker = kill(compose, "broker")
    trial.until(lambda: state(broker, "Health.Status") == "healthy", "the broker is back")
    trial.tell("the broker was killed with SIGKILL under load, and is back")
    victim = compose.containers("crm")[1]
    run(["docker", "stop", victim])
    assert state(victim, "ExitCode") == "0", (
        "a worker that was stopped did not end with exit code 0"
    )
    run(["docker", "start", victim])
    trial.tell("a worker was stopped under load: it finished its work")
    output, _ = producer.communicate(timeout=options.seconds + 120)
    assert producer.returncode == 0, output
    made = json.loads(output.strip().splitlines()[-1])
    trial.tell(f"the producer is done: {made}")
    agreed = trial.agree()
    after = int(compose.sql("SELECT count(*) FROM sales_order"))
    assert after == before + made.get("order", 0), (before, after, made)
    trial.tell(f"no change lost, no difference, no dead letter: {agreed}")

    compose("down")
    assert not compose("ps", "--all", "--quiet").split()
    trial.tell("docker compose down")
    trial.up()
    assert int(compose.sql("SELECT count(*) FROM sales_order")) == after
    trial.tell(f"docker compose up again: {trial.agree()}")


if __name__ == "__main__":
    main()
