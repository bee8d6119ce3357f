"""The messages that each transport may lose, and why, for eventsync's and kombu's transports."""

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
    "which does no harm; a message is limited to 256 KiB",
    "filesystem": "a worker that is killed loses all messages that it has received; a power "
    "failure loses messages that were just published, and a message may be read half written",
    "sqlalchemy": _SQLALCHEMY,
    "sqla": _SQLALCHEMY,
    "confluentkafka": _KAFKA,
    "memory": "the queues exist in one process only and are lost when that process ends; other "
    "processes do not see them",
}
"""By URL scheme: a sentence that says what the transport may lose, or "" if it loses nothing."""


def weakness(scheme: str) -> str | None:
    """Return a sentence that says which messages the transport of ``scheme`` may lose.

    Returns an empty text if the transport loses no message, and ``None`` if eventsync does not know
    the transport.
    """
    scheme = scheme.lower()
    return TRANSPORTS.get(scheme, TRANSPORTS.get(scheme.partition("+")[0]))
