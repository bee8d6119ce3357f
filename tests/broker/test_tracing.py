"""Traces from publish to apply, as exported by the OpenTelemetry SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import StatusCode
from support.records import Product

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT
from eventsync.engine.apply import Settled
from eventsync.engine.store import Store
from eventsync.envelope import codec
from eventsync.monitoring.exporters.opentelemetry import Tracer
from eventsync.stores.memory import MemoryAccessor
from eventsync.worker.worker import Worker


class Traced:
    """A trace provider and its exported spans."""

    def __init__(self, sampler=ALWAYS_ON):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = Tracer(self.provider)

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def traced():
    return Traced()


def context(span):
    return (span.get_span_context().trace_id, span.get_span_context().span_id)


def linked(span):
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


def test_a_change_is_followed_to_every_store(tmp_path, traced):
    """The publish and each apply of an edit belong to the trace of its caller."""
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}", tracing=traced.tracer) as bus:
        stores = [Store(name, MemoryAccessor(Product)).open() for name in ("crm", "cache")]
        origin = Store("shop", MemoryAccessor(Product), publisher=bus).open()
        for store in stores:
            bus.declare(store.name, ["Product"])
        with traced.provider.get_tracer("app").start_as_current_span("request") as request:
            origin.add([Product(id=1, name="a"), Product(id=2, name="b")])
        for store in stores:
            Worker(store, bus).drain()
    published = traced.spans("publish Product")
    assert len(published) == 2
    trace_id, span_id = context(request)
    assert {span.parent.span_id for span in published} == {span_id}
    for name in ("crm", "cache"):
        (batch,) = traced.spans(f"apply {name}")
        assert linked(batch) == set(map(context, published))
        assert batch.attributes["eventsync.applied"] == 2
        assert batch.attributes["messaging.batch.message_count"] == 2
        of_store = [
            span
            for span in traced.spans("apply Product")
            if span.attributes["messaging.destination.name"] == name
        ]
        assert {(s.context.trace_id, s.parent.span_id) for s in of_store} == {
            context(span) for span in published
        }
        assert all(linked(span) == {context(batch)} for span in of_store)
        assert {span.context.trace_id for span in of_store} == {trace_id}


def test_a_refused_change_ends_its_trace_with_an_error(tmp_path, traced):
    """A rejected change marks its trace as an error, with the reason."""
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}", tracing=traced.tracer) as bus:
        bus.declare("crm", ["Product"])
        version = Clock().tick()
        change = Change(type="Product", key="1", op=PUT, version=version, data={"name": 5})
        bus.publish("Product", [bus.encode(change)])
        Worker(Store("crm", MemoryAccessor(Product)).open(), bus).drain()
    (span,) = traced.spans("apply Product")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "field"
    (batch,) = traced.spans("apply crm")
    assert batch.attributes["eventsync.rejected"] == 1


def test_nothing_of_a_record_is_told(tmp_path, traced):
    """A span contains neither values nor keys of a record."""
    with Spool(tmp_path / "spool.db", tracing=traced.tracer) as spool:
        data = {"id": 1, "name": "Ann Secret"}
        version = Clock().tick()
        change = Change(type="P", key="ann@example.org", op=PUT, version=version, data=data)
        spool.encode(change)
    (span,) = traced.spans("publish P")
    assert "ann" not in span.to_json().lower()


def test_each_of_many_has_a_trace_of_its_own(tmp_path, traced):
    """Changes that are encoded together have a trace each."""
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}", tracing=traced.tracer) as bus:
        changes = [
            Change(type="P", key=key, op=PUT, version=Clock().tick(), data={"id": key})
            for key in "abc"
        ]
        sent = [codec.decode(raw) for raw in bus.encode_all(changes)]
    assert [change.key for change in sent] == ["a", "b", "c"]
    assert len({change.ext["traceparent"] for change in sent}) == 3


def test_what_is_not_sampled_costs_its_readers_nothing(traced):
    """A change that is not sampled is published unchanged."""
    change = Change(type="P", key="1", op=PUT, version=Clock().tick(), data={"id": 1})
    assert Traced(ALWAYS_OFF).tracer.published(change) is change
    sent = traced.tracer.published(change)
    found = codec.decode(codec.encode(sent))
    assert found.ext["traceparent"].startswith("00-")
    assert (found.stamp, found.id) == (change.stamp, change.id)
    assert traced.tracer.published(found) is found


@pytest.mark.parametrize("ext", [{"traceparent": 5}, {"traceparent": "00-zz"}, {"tracestate": "a"}])
def test_a_foreign_context_is_looked_at_with_care(traced, ext):
    """A malformed trace context is ignored."""
    change = Change(type="P", key="1", op=PUT, version=Clock().tick(), data={}, ext=ext)
    with traced.tracer.applying("crm", [change]) as tell:
        tell([Settled(change)])
    (batch,) = traced.spans("apply crm")
    assert not batch.links


def test_nothing_is_imported_that_is_not_asked_for():
    """OpenTelemetry is imported only if it is set; a missing extra is named."""
    code = (
        "import sys; from eventsync.cli.deployment import Deployment\n"
        "deployment = Deployment(); deployment.bus\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
        "sys.modules['opentelemetry'] = None\n"
        "import eventsync.monitoring.exporters.opentelemetry"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"
    assert "pip install 'eventsync[otel]'" in ran.stderr.splitlines()[-1]
