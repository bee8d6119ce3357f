"""OpenTelemetry: a span for each change that is published, and for each batch that is applied.

It knows how changes and outcomes are written as spans, and carries W3C trace context in ``ext``. It
needs the extra ``otel``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled
from eventsync.engine.gate import Outcome
from eventsync.errors import ConfigError

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigError(
        f"traces need a package that is missing: {error}", hint="pip install 'eventsync[otel]'"
    ) from error

__all__ = ["Tracer"]

_FIELDS: Final = ("traceparent", "tracestate")


class Tracer:
    """Traces changes; fits ``Bus(tracing=)``. Thread-safe.

    Publishing a change makes a span ``publish TYPE`` under the caller's own, and puts its context
    into the envelope if it is sampled. Applying a batch makes a span ``apply STORE``, with a link
    to the publish span of each of its changes, and in the trace of each sampled change a span
    ``apply TYPE`` with its outcome. Nothing that a record holds is told, nor its key.

    ``provider``: by default the one that the program has set for OpenTelemetry as a whole.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider or trace.get_tracer_provider()
        self._tracer = self._provider.get_tracer("eventsync")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def exporting(cls) -> Tracer:
        """One that sends by OTLP over HTTP to where OpenTelemetry's own variables say.

        Where the program was started with a provider already (``opentelemetry-instrument``), that
        one is used. Raises ``ConfigError``.
        """
        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"traces need a package that is missing: {error}",
                hint="pip install 'eventsync[otel]'",
            ) from error
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "eventsync"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Send what is still to be sent, and end. Idempotent; may block for some seconds."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()

    def published(self, change: Change) -> Change:
        """See ``Tracing``. A change that comes with a trace already keeps it."""
        if _FIELDS[0] in change.ext:
            return change
        attributes = {
            "messaging.system": "eventsync",
            "messaging.operation.type": "send",
            "messaging.destination.name": change.type,
            "messaging.message.id": change.id.hex(),
            "eventsync.op": change.op,
            "eventsync.version": change.version.hex(),
            "eventsync.source": change.source,
        }
        kind = trace.SpanKind.PRODUCER
        span = self._tracer.start_span(f"publish {change.type}", kind=kind, attributes=attributes)
        span.end()
        # One that is not sampled would only cost its readers time.
        if not span.get_span_context().trace_flags.sampled:
            return change
        carried: dict[str, str] = {}
        self._propagator.inject(carried, trace.set_span_in_context(span, Context()))
        return change.replace(ext={**change.ext, **carried})

    @contextmanager
    def applying(
        self, store: str, changes: Sequence[Change]
    ) -> Iterator[Callable[[Sequence[Settled]], None]]:
        """See ``Tracing``."""
        origins = [self._origin(change) for change in changes]
        started = time.time_ns()
        with self._tracer.start_as_current_span(
            f"apply {store}",
            context=Context(),  # many traces meet here; it is in none of them
            kind=trace.SpanKind.CONSUMER,
            links=[trace.Link(trace.get_current_span(o).get_span_context()) for o in origins if o],
            attributes={
                "messaging.system": "eventsync",
                "messaging.operation.type": "process",
                "messaging.destination.name": store,
                "messaging.batch.message_count": len(changes),
            },
        ) as batch:

            def tell(settled: Sequence[Settled]) -> None:
                for outcome, count in Counter(str(item.outcome) for item in settled).items():
                    batch.set_attribute(f"eventsync.{outcome}", count)
                link = trace.Link(batch.get_span_context())
                for origin, item in zip(origins, settled, strict=True):
                    if origin is not None:
                        self._tell(store, item, origin, link, started)

            yield tell

    def _tell(
        self, store: str, item: Settled, origin: Context, batch: trace.Link, started: int
    ) -> None:
        """In the trace of a change: what became of it at a store."""
        span = self._tracer.start_span(
            f"apply {item.change.type}",
            context=origin,
            kind=trace.SpanKind.CONSUMER,
            links=[batch],
            start_time=started,
            attributes={
                "messaging.destination.name": store,
                "messaging.message.id": item.change.id.hex(),
                "eventsync.outcome": str(item.outcome),
            },
        )
        if item.outcome is Outcome.REJECTED:
            reason = item.error.reason if item.error is not None else ""
            span.set_status(trace.StatusCode.ERROR, reason)
        span.end()

    def _origin(self, change: Change) -> Context | None:
        """Where a change comes from, if it says so; its ``ext`` may hold anything."""
        if not change.ext:
            return None
        carried: dict[str, Any] = {
            name: text for name in _FIELDS if isinstance(text := change.ext.get(name), str)
        }
        origin = self._propagator.extract(carried, Context())
        context = trace.get_current_span(origin).get_span_context()
        return origin if context.is_valid and context.trace_flags.sampled else None
