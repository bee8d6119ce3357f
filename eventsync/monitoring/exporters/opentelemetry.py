"""Records OpenTelemetry spans for published changes and applied batches.

Needs the extra ``otel``. The field ``ext`` of an envelope carries the W3C trace context of the
change.
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
        f"traces need the extra 'otel', which is not installed: {error}",
        hint="pip install 'eventsync[otel]'",
    ) from error

__all__ = ["Tracer"]

_FIELDS: Final = ("traceparent", "tracestate")


class Tracer:
    """Records traces of changes with OpenTelemetry. Pass it as ``Bus(tracing=)``. Thread-safe.

    A published change gets a span ``publish TYPE`` under the caller's current span. If this span is
    sampled, the envelope carries the trace context. An applied batch gets a span ``apply STORE``
    with links to the publish spans of its changes. In addition, each sampled change gets a span
    ``apply TYPE`` with its outcome, in the trace of its publish span. Spans contain neither keys
    nor field values.

    ``provider``: the tracer provider; by default OpenTelemetry's global provider.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider or trace.get_tracer_provider()
        self._tracer = self._provider.get_tracer("eventsync")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def exporting(cls) -> Tracer:
        """Return a tracer that exports spans by OTLP over HTTP.

        OpenTelemetry's environment variables configure the export. If the program has already set a
        global tracer provider, as ``opentelemetry-instrument`` does, that provider is used. Raises
        ``ConfigError`` if the extra ``otel`` is not installed.
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
                f"traces need the extra 'otel', which is not installed: {error}",
                hint="pip install 'eventsync[otel]'",
            ) from error
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "eventsync"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Export the remaining spans and stop exporting. Idempotent; may block for some seconds."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()

    def published(self, change: Change) -> Change:
        """Record a publish span; return a copy of the change with the trace context in ``ext``.

        Returns the change itself if it already carries a trace context, or if the span is not
        sampled.
        """
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
        # Readers of the envelope have no use for a context that is not sampled.
        if not span.get_span_context().trace_flags.sampled:
            return change
        carried: dict[str, str] = {}
        self._propagator.inject(carried, trace.set_span_in_context(span, Context()))
        return change.replace(ext={**change.ext, **carried})

    @contextmanager
    def applying(
        self, store: str, changes: Sequence[Change]
    ) -> Iterator[Callable[[Sequence[Settled]], None]]:
        """Record that the store applies a batch of changes during the block.

        Yields a function; call this function with the outcomes of the changes.
        """
        origins = [self._origin(change) for change in changes]
        started = time.time_ns()
        with self._tracer.start_as_current_span(
            f"apply {store}",
            context=Context(),  # a new trace, because the changes of a batch belong to many traces
            kind=trace.SpanKind.CONSUMER,
            links=[trace.Link(trace.get_current_span(o).get_span_context()) for o in origins if o],
            attributes={
                "messaging.system": "eventsync",
                "messaging.operation.type": "process",
                "messaging.destination.name": store,
                "messaging.batch.message_count": len(changes),
            },
        ) as batch:

            def report_outcomes(settled: Sequence[Settled]) -> None:
                for outcome, count in Counter(str(item.outcome) for item in settled).items():
                    batch.set_attribute(f"eventsync.{outcome}", count)
                link = trace.Link(batch.get_span_context())
                for origin, item in zip(origins, settled, strict=True):
                    if origin is not None:
                        self._trace_outcome(store, item, origin, link, started)

            yield report_outcomes

    def _trace_outcome(
        self, store: str, item: Settled, origin: Context, batch: trace.Link, started: int
    ) -> None:
        """Add a span with the outcome of a change to the trace of its publish span.

        ``origin``: the context of the publish span. ``batch``: a link to the span of the batch.
        ``started``: the start of the batch, in nanoseconds since the epoch.
        """
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
        """Return the trace context that a change carries in ``ext``; ``None`` if not sampled.

        ``ext`` comes from the sender and may contain anything.
        """
        if not change.ext:
            return None
        carried: dict[str, Any] = {
            name: text for name in _FIELDS if isinstance(text := change.ext.get(name), str)
        }
        origin = self._propagator.extract(carried, Context())
        context = trace.get_current_span(origin).get_span_context()
        return origin if context.is_valid and context.trace_flags.sampled else None
