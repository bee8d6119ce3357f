"""The metric catalogue: all metrics with their names, kinds, labels and help texts.

``docs/metrics.md`` explains each metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["OTHER", "Metric"]

OTHER: Final = "other"
"""The value of the label ``type`` for record types that the store does not hold.

Such names come from senders. As label values they would allow a sender to create any number of
time series."""


@dataclass(slots=True, frozen=True)
class Metric:
    """The declaration of one metric. The values of counters and histograms only grow.

    ``labels``: the names of the labels. ``bounds``: the upper bounds of a histogram's buckets, in
    ascending order.
    """

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_TYPED: Final = ("store", "type")
_WORKER: Final = ("store", "worker")
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

CHANGES: Final = Metric(
    "eventsync_changes_total", "counter", "Changes settled, by outcome.", (*_TYPED, "outcome")
)
MESSAGES: Final = Metric(
    "eventsync_messages_total", "counter", "Broker messages settled.", ("store",)
)
PUBLISHED: Final = Metric(
    "eventsync_published_total", "counter", "Changes published from an outbox or spool.", _TYPED
)
DEAD_LETTERS: Final = Metric(
    "eventsync_dead_letters_total",
    "counter",
    "Changes that became dead letters.",
    (*_TYPED, "reason"),
)
RETRIED: Final = Metric(
    "eventsync_retried_total",
    "counter",
    "Changes whose batch was retried.",
    (*_TYPED, "reason"),
)
COLLISIONS: Final = Metric(
    "eventsync_collisions_total",
    "counter",
    "Changes that had the version of another, different change.",
    _TYPED,
)
BATCH: Final = Metric(
    "eventsync_batch_changes",
    "histogram",
    "Changes applied at a time.",
    ("store",),
    (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0),
)
BATCH_DURATION: Final = Metric(
    "eventsync_batch_duration_seconds",
    "histogram",
    "How long a batch took, retries included.",
    ("store",),
    _SECONDS,
)
LAG: Final = Metric(
    "eventsync_lag_seconds",
    "histogram",
    "Time from the edit until the change was applied.",
    _TYPED,
    (*_SECONDS, 300.0, 1800.0, 3600.0, 86_400.0),
)
STARTS: Final = Metric(
    "eventsync_worker_starts_total", "counter", "Processes started by the supervisor.", _WORKER
)
OVERRUNS: Final = Metric(
    "eventsync_capture_overruns_total",
    "counter",
    "Captures that could not begin because the last one was under way.",
    ("store",),
)
CAPTURED: Final = Metric(
    "eventsync_captured_total", "counter", "Foreign writes captured as they happened.", _TYPED
)
OWN_WRITES: Final = Metric(
    "eventsync_capture_own_writes_total",
    "counter",
    "Writes of eventsync itself that a change source left out.",
    ("store",),
)
WEBHOOK_OUTCOMES: Final = ("accepted", "ignored", "refused", "unreadable", "failed")
"""The values of the label ``outcome`` of ``WEBHOOKS``."""
WEBHOOKS: Final = Metric(
    "eventsync_webhooks_total",
    "counter",
    "Webhooks received, by outcome.",
    ("store", "outcome"),
)
CAPTURE_LAG: Final = Metric(
    "eventsync_capture_lag_seconds",
    "histogram",
    "Time from the last commit in a batch of foreign writes until they were captured.",
    _TYPED,
    (0.001, 0.0025, *_SECONDS, 300.0, 1800.0, 3600.0, 86_400.0),
)
COUNTED: Final = {
    metric.name: metric
    for metric in (
        CHANGES,
        MESSAGES,
        PUBLISHED,
        DEAD_LETTERS,
        RETRIED,
        COLLISIONS,
        BATCH,
        BATCH_DURATION,
        LAG,
        STARTS,
        OVERRUNS,
        CAPTURED,
        OWN_WRITES,
        WEBHOOKS,
        CAPTURE_LAG,
    )
}
"""The counters and histograms whose values ``Counters`` keeps, by name."""

CURRENT_LAG: Final = Metric(
    "eventsync_current_lag_seconds",
    "gauge",
    "Age of the oldest change in hand or last applied; 0 when the queue is empty.",
    ("store",),
)
QUEUE: Final = Metric("eventsync_queue_messages", "gauge", "Waiting messages.", ("store", "queue"))
IN_HAND: Final = Metric(
    "eventsync_queue_in_hand_messages", "gauge", "Messages that workers hold.", ("store",)
)
OLDEST: Final = Metric(
    "eventsync_queue_oldest_seconds", "gauge", "How long the oldest message waits.", ("store",)
)
OUTBOX: Final = Metric(
    "eventsync_outbox_changes", "gauge", "Unpublished changes in an outbox or spool.", ("store",)
)
OUTBOX_OLDEST: Final = Metric(
    "eventsync_outbox_oldest_seconds", "gauge", "Age of the oldest unpublished change.", ("store",)
)
SPOOL_BYTES: Final = Metric(
    "eventsync_spool_bytes", "gauge", "Bytes in use in a spool.", ("store",)
)
UNREADABLE: Final = Metric(
    "eventsync_unreadable_records",
    "gauge",
    "Records in the store that cannot be read.",
    _TYPED,
)
BROKER_UP: Final = Metric(
    "eventsync_broker_up", "gauge", "Whether the broker answered when it was last asked."
)
CAPTURE_INSTALLED: Final = Metric(
    "eventsync_capture_installed",
    "gauge",
    "Whether the store has what its change source needs.",
    ("store", "source"),
)
CAPTURE_AGE: Final = Metric(
    "eventsync_capture_age_seconds",
    "gauge",
    "How long ago all foreign writes were captured that were known.",
    ("store",),
)
CAPTURE_WAITING: Final = Metric(
    "eventsync_capture_waiting_changes", "gauge", "Foreign writes that wait.", ("store",)
)
CAPTURE_BEHIND: Final = Metric(
    "eventsync_capture_behind_bytes", "gauge", "Bytes of the store's log not yet read.", ("store",)
)
CAPTURE_RETAINED: Final = Metric(
    "eventsync_capture_retained_bytes",
    "gauge",
    "Bytes of its log that the store keeps for eventsync.",
    ("store",),
)
STORE_UP: Final = Metric(
    "eventsync_store_up",
    "gauge",
    "Whether the store answered when it was last asked.",
    ("store",),
)
PROBLEM: Final = Metric(
    "eventsync_problem",
    "gauge",
    "1 while a worker of the store reports the problem, else 0.",
    (*_TYPED, "kind"),
)
CAPTURE_SECONDS: Final = Metric(
    "eventsync_capture_seconds", "gauge", "How long the last whole capture took.", ("store",)
)
WORKERS: Final = Metric("eventsync_workers", "gauge", "Running worker processes.", ("store",))
CIRCUIT: Final = Metric(
    "eventsync_worker_circuit",
    "gauge",
    "1 for the current state of the circuit, 0 for the others.",
    (*_WORKER, "state"),
)
SILENCE: Final = Metric(
    "eventsync_worker_silence_seconds", "gauge", "Time without progress.", _WORKER
)
MEMORY: Final = Metric("eventsync_worker_memory_bytes", "gauge", "Memory in use.", _WORKER)
STARTED: Final = Metric(
    "eventsync_worker_start_time_seconds",
    "gauge",
    "When the process started, in seconds since the epoch.",
    _WORKER,
)
