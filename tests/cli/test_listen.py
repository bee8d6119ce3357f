"""``--listen`` and ``eventsync health`` with real workers and relays."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import free_port
from support.project import Cli
from support.waiting import eventually


class Listening:
    """A command that listens, and access to its endpoint."""

    def __init__(self, cli: Cli, port: int) -> None:
        self.cli = cli
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path):
        """Return the status code and the body."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def answer(self, path="/progress"):
        return json.loads(self.get(path)[1])

    def samples(self):
        """Return the samples of a scrape: name, labels and value."""
        text = self.get("/metrics")[1]
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    def total(self, name, **labels):
        """Return the sum of the samples with this name and these labels."""
        return sum(
            s.value for s in self.samples() if s.name == name and labels.items() <= s.labels.items()
        )

    def answers(self):
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False


@contextmanager
def listening(cli, *arguments, **environment):
    """Run a command with ``--listen`` and wait until it is ready."""
    port = free_port()
    process = cli.start(*arguments, "--listen", f"127.0.0.1:{port}", **environment)
    found = Listening(cli, port)
    try:
        eventually(lambda: found.answers() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield found
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.communicate()


def publish(cli, *ids):
    lines = "".join(json.dumps({"id": id, "name": f"Ann {id}"}) + "\n" for id in ids)
    cli("publish", "crm", "--type", "Person", input=lines).check()


def test_worker_tells_what_it_does(cli):
    """A worker serves its metrics and its health, and exits normally."""
    with listening(cli, "worker", "report") as worker:
        publish(cli, 1, 2)
        eventually(lambda: worker.total("eventsync_changes_total", outcome="applied") == 2)
        assert worker.total("eventsync_workers", store="report") == 1
        for path in ("/live", "/ready", "/progress"):
            status, body = worker.get(path)
            assert (status, json.loads(body)["reasons"]) == (200, [])
        assert worker.get("/")[0] == 404
        assert cli("health", worker.url).check().err == ""
        (state,) = cli("health", worker.url, "--json").check().json["workers"]
        assert state["outcomes"] == {"applied": 2}
        taken = cli("worker", "crm", "--listen", f"127.0.0.1:{worker.port}").check(78)
        assert "cannot listen" in taken.err
    cli("health", worker.url).check(69)
    cli("health").check(78)
    cli("health", "ftp://somewhere").check(78)
    cli("worker", "crm", "--listen", "nowhere").check(78)
    cli("worker", "crm", "--drain", "--listen", worker.url).check(2)


def test_relay_tells_what_it_does(cli):
    """A relay serves its metrics; ``health`` finds its endpoint in the environment."""
    away = ("--broker", "redis://127.0.0.1:1/0")
    line = '{"id": 1, "name": "Ann"}'
    cli("publish", "crm", "--type", "Person", *away, input=line).check(69)
    with listening(cli, "relay", "crm") as relay:
        eventually(lambda: relay.total("eventsync_published_total", store="crm") == 1)
        listen = f"0.0.0.0:{relay.port}"
        cli.real("health", EVENTSYNC_LISTEN=listen).check()
    cli.real("health", EVENTSYNC_LISTEN=listen).check(69)


def test_broker_that_is_away_is_told_without_its_password(cli):
    """A worker whose broker is unreachable is live but not ready, and shows no password."""
    port = free_port()
    broker = "redis://somebody:hidden-word@127.0.0.1:1/0"
    process = cli.start("worker", "report", "--listen", f"127.0.0.1:{port}", "--broker", broker)
    worker = Listening(cli, port)
    try:
        eventually(lambda: "cannot be reached" in cli("health", worker.url).err)
        ran = cli("health", f"{worker.url}/ready", "--json").check(1)
        assert "hidden-word" not in ran.out + ran.err
        assert worker.get("/live")[0] == 200
        assert worker.total("eventsync_broker_up") == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_processes_take_no_counts_along(cli):
    """When processes are killed, no counter falls and none of their gauges is left."""
    with listening(cli, "worker", "report", "--processes", "4") as group:

        def alive():
            return {state["pid"] for state in group.answer()["workers"]}

        def gauges():
            return [s for s in group.samples() if s.name == "eventsync_worker_memory_bytes"]

        eventually(lambda: len(alive()) == 4)
        for start in range(0, 200, 50):
            publish(cli, *range(start, start + 50))
        eventually(lambda: group.total("eventsync_changes_total") == 200)
        before = {s.labels["worker"]: s.value for s in group.samples() if "worker" in s.labels}
        first = alive()
        worked = [s for s in group.answer()["workers"] if s["outcomes"]]
        killed = {state["pid"] for state in worked[:2]} | {min(first)}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not killed & alive())
        assert group.total("eventsync_changes_total") == 200
        assert group.total("eventsync_lag_seconds_count") == group.total(
            "eventsync_changes_total", outcome="applied"
        )
        eventually(lambda: len(alive()) == 4)
        assert len(alive() & first) == 4 - len(killed)
        assert {s.labels["worker"] for s in gauges()} == set(before)
        assert len(gauges()) == group.total("eventsync_workers") == 4
        assert group.total("eventsync_worker_starts_total") == 4 + len(killed)
        publish(cli, *range(200, 220))
        eventually(lambda: group.total("eventsync_changes_total") == 220)


@pytest.mark.slow
def test_work_that_does_not_move_is_unwell(cli):
    """A frozen worker with waiting work is unhealthy; after it is thawed it is healthy."""
    arguments = ("worker", "report", "--processes", "1")
    with listening(cli, *arguments, EVENTSYNC_STALL_AFTER="2") as group:
        (state,) = group.answer()["workers"]
        os.kill(state["pid"], signal.SIGSTOP)
        try:
            publish(cli, 1)
            eventually(lambda: group.get("/progress")[0] == 503)
            assert "1 messages wait or are in hand" in cli("health", group.url).check(1).err
            assert group.get("/live")[0] == 200
        finally:
            os.kill(state["pid"], signal.SIGCONT)
        eventually(lambda: group.get("/progress")[0] == 200)


def test_health_names_the_endpoint_and_shows_no_password(cli):
    """An unreachable endpoint is named; a URL with a password is refused and not shown."""
    url = f"http://127.0.0.1:{free_port()}"
    assert f"the endpoint {url} does not answer" in cli("health", url).check(69).err
    ran = cli("health", url.replace("//", "//somebody:hidden-word@")).check(78)
    assert "must not have a user or password" in ran.err
    assert "hidden-word" not in ran.out + ran.err
