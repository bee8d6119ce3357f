"""What each transport may lose, and why: eventsync's own transports and those of kombu."""

from __future__ import annotations

from typing import Final

from eventsync.transports.schemes import OWN_SCHEMES

__all__ = ["TRANSPORTS", "weakness"]

_SQLALCHEMY: Final = "a worker that is killed loses all messages that it has received"
_KAFKA: Final = (
    "a worker that is killed may lose messages that it has received, because acknowledging one "
    "message commits the position; a publish that fails may go unnoticed"
)

TRANSPORTS: Final = {
    **dict.fromkeys(OWN_SCHEMES, ""),
    "librabbitmq": "publishing does not wait for the broker's confirmation, so published messages "
    "may be lost when the broker crashes or the connection breaks; use amqp://",
    "sqs": "a message that is processed for longer than its visibility timeout is delivered twice, "
    "which does no harm; its size is limited to 256 KiB",
    "filesystem": "a worker that is killed loses all messages that it has received; a power "
    "failure loses messages that were just published, and a message may be read half written",
    "sqlalchemy": _SQLALCHEMY,
    "sqla": _SQLALCHEMY,
    "confluentkafka": _KAFKA,
    "memory": "its queues exist in one process and end with it; other processes do not see them",
}
"""What a transport may lose, by the scheme of its URL; an empty text if nothing."""


def weakness(scheme: str) -> str | None:
    """Return what the transport of a scheme may lose.

    An empty text means that it loses nothing, ``None`` that this is not known.
    """
    scheme = scheme.lower()
    return TRANSPORTS.get(scheme, TRANSPORTS.get(scheme.partition("+")[0]))
