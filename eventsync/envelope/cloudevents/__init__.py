"""CloudEvents 1.0 in JSON: converts changes to events and back, alone, in batches or in headers.

The mapping is described in docs/envelope.md.
"""

from __future__ import annotations

from eventsync.envelope.cloudevents.event import (
    BATCH_CONTENT_TYPE,
    CONTENT_TYPE,
    from_cloudevent,
    from_cloudevents,
    to_cloudevent,
    to_cloudevents,
)
from eventsync.envelope.cloudevents.headers import from_headers, to_headers

__all__ = [
    "BATCH_CONTENT_TYPE",
    "CONTENT_TYPE",
    "from_cloudevent",
    "from_cloudevents",
    "from_headers",
    "to_cloudevent",
    "to_cloudevents",
    "to_headers",
]
