"""What a worker group exports, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from eventsync.monitoring.backlog import BacklogMonitor
from eventsync.monitoring.exporters.prometheus import Exporter


def scrape(workers, backlog):
    """Return the exported values, by name and the values of the labels."""
    answer = Exporter(workers, backlog).answer("")
    assert answer.status == 200
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def polled(bus, stores, **options):
    """Return a backlog monitor that has polled once."""
    backlog = BacklogMonitor(bus, stores, **options)
    for poller in (backlog.broker, *backlog.outboxes.values()):
        poller.poll()
    return backlog
