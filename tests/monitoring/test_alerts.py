"""Alert rules and dashboard: when alerts fire, and that every metric they use is exported."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import program
from support.records import Product
from support.scripted_source import ScriptedAccessor
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.stamp import PUT
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.monitoring import catalogue
from eventsync.monitoring.backlog import BacklogMonitor
from eventsync.monitoring.catalogue import Metric
from eventsync.monitoring.exporters.prometheus import Exporter
from eventsync.monitoring.worker_group import WorkerGroup
from eventsync.worker.capture_service import CaptureService
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
RULES_TEST = ROOT / "deploy/prometheus/rules_test.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/eventsync.json"
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
CATALOGUE = {one.name: one for one in vars(catalogue).values() if isinstance(one, Metric)}
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))


class Moody(ScriptedAccessor):
    """Is busy once, at the second write."""

    tries = 0

    def write_rows(self, writes, removals, transaction):
        self.tries += 1
        if self.tries == 2:
            raise StoreUnavailableError("busy for the test")
        super().write_rows(writes, removals, transaction)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """The text of a scrape after everything that is counted has happened once."""
    folder = tmp_path_factory.mktemp("scraped")
    with Bus(f"sqlite:///{folder / 'broker.db'}") as bus, Spool(folder / "spool.db") as spool:
        bus.declare("crm", ["Product"])
        away = Bus("redis://127.0.0.1:1/0")
        store = Store("crm", Moody(Product), publisher=away, capture_every=60.0, capture="auto")
        store.open()
        store.add(Product(id=1, name="a"))
        first = Change(
            type="Product", key="2", op=PUT, version=store.clock.tick(), data={"name": 2}
        )
        second = first.replace(key="3", data={"id": 3, "name": "b"})
        third = second.replace(data={"id": 3, "name": "c"})
        bus.publish("Product", [bus.encode(change) for change in (first, second)])
        spool.publish("Product", [spool.encode(second)])
        worker = Worker(store, bus, options=Options(retry_for=5.0))
        workers = WorkerGroup(worker.counters)
        workers.expect("crm", store.accessors)
        workers.join("crm", worker.progress)
        workers.started("crm-1")
        worker.drain()
        bus.publish("Product", [bus.encode(third)])
        worker.drain()
        capture = CaptureService(store, bus, counters=worker.counters)
        follow_once(capture, store)
        backlog = BacklogMonitor(bus, [store], spools=[spool])
        for poller in (backlog.broker, *backlog.outboxes.values()):
            poller.poll()
        return Exporter(workers, backlog).answer("").body.decode()


def follow_once(capture, store):
    """Let a foreign program write a record, and capture it."""
    accessor = store.accessors["Product"]
    thread = threading.Thread(target=capture.run)
    thread.start()
    try:
        eventually(lambda: capture.progress.doing == "capturing")
        accessor.data["9"] = {"id": 9, "name": "z", "price": None}
        accessor.source.log.append(("Product", "9", time.time()))
        eventually(lambda: capture.progress.followed_writes == 1)
    finally:
        capture.stop()
        thread.join()


def families(text):
    """The kind, help and labels of each metric, by its name."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, family.documentation, labels)
    return found


def asked(expression):
    """The metrics that an expression asks for."""
    names = re.findall(r"(?<![:\w])eventsync_\w+", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def expressions():
    """Every expression of the rules and of the dashboard."""
    rules = RULES.read_text(encoding="utf-8")
    found = re.findall(r"^ +expr: (?:\|\n((?: {10}.*\n)+)|(.*)$)", rules, re.MULTILINE)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    targets = [t for panel in dashboard["panels"] for t in panel.get("targets", ())]
    variables = [v.get("definition", "") for v in dashboard["templating"]["list"]]
    return [*map("".join, found), *(t["expr"] for t in targets), *filter(None, variables)]


def test_all_of_the_catalogue_is_exported_and_documented(scraped):
    """The exported, the catalogued and the documented metrics are the same."""
    expected = {one.name: (one.kind, one.help, set(one.labels)) for one in CATALOGUE.values()}
    assert families(scraped) == expected
    rows = re.findall(r"^\| `(eventsync_\w+)` \|(.*)", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == set(CATALOGUE)
    for name, row in rows:
        for label in CATALOGUE[name].labels:
            assert f"`{label}`" in row, name


def test_prometheus_finds_no_fault_with_the_names(scraped):
    """Prometheus' own linter accepts names, units and help."""
    promtool = program("promtool")
    ran = subprocess.run(
        [promtool, "check", "metrics"], input=scraped, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_rules_and_dashboard_ask_for_what_is_exported(scraped):
    """Each metric and label value that an expression names is in a scrape."""
    found, used = families(scraped), set()
    all = expressions()
    assert len(all) > 30
    for expression in all:
        used |= asked(expression)
        for name, matchers in re.findall(r"\b(eventsync_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)=~?\"", matchers)) - {"job"}
            (base,) = asked(name)
            assert labels <= found[base][2], expression
    assert used <= set(found)
    for value in re.findall(r'(?:queue|outcome)="(\w+)"', "".join(all)):
        assert f'"{value}"' in scraped


def test_expressions_are_sound(tmp_path):
    """Prometheus can read every expression, those of the dashboard with its variables filled in."""
    promtool = program("promtool")
    rules = []
    for number, expression in enumerate(expressions()):
        if expression.startswith("label_values"):
            continue
        text = expression.replace("$__rate_interval", "5m").replace("$store", ".*")
        rules.append({"record": f"test:{number}", "expr": text})
    # JSON is YAML.
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "test", "rules": rules}]}))
    ran = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(rules)} rules found" in ran.stdout


def test_dashboard_shows_all_there_is():
    """No metric is left out of the dashboard."""
    shown = {name for one in expressions() for name in asked(one)}
    assert shown == set(CATALOGUE)


def test_rules_pass_their_own_tests():
    """Each alert fires in its case, and none in a healthy deployment."""
    promtool = program("promtool")
    ran = subprocess.run(
        [promtool, "test", "rules", RULES_TEST.name],
        cwd=RULES_TEST.parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_and_explained(alert):
    """An alert has a case in which it fires, one in which it is silent, and a section to read."""
    text = RULES_TEST.read_text(encoding="utf-8")
    silent = rf"alertname: {alert}, exp_alerts: \[\]"
    fires = rf"alertname: {alert}\n +exp_alerts:(?: &\w+)?\n +- exp_labels"
    assert re.search(silent, text)
    assert re.search(fires, text)
    assert f"docs/metrics.md#{alert.lower()}" in RULES.read_text(encoding="utf-8")
    assert f"### {alert}\n" in PAGE
