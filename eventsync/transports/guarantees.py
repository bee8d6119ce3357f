"""What each transport may lose, and why: eventsync's own and those that come with kombu.

It must not know which transport a deployment uses, nor connect to one.
"""

from __future__ import annotations

from typing import Final

from eventsync.transports.redis import url

__all__ = ["TRANSPORTS", "weakness"]

_SQLALCHEMY: Final = "a worker that is killed loses every message it has in hand"
_KAFKA: Final = (
    "a worker that is killed may lose what it has in hand, for acknowledging one message commits "
    "the position; a publish that fails may go unnoticed"
)

TRANSPORTS: Final = {
    "sqlite": "",
    **dict.fromkeys(url.SCHEMES, ""),
    "amqp": "",
    "amqps": "",
    "pyamqp": "",
    "librabbitmq": "publishing does not wait for the broker's confirmation, so a broker that "
    "crashes, or a connection that breaks, may lose what was published; use amqp://",
    "sqs": "a message that is worked on for longer than its visibility timeout comes twice, which "
    "does no harm; its size is limited to 256 KiB",
    "filesystem": "a worker that is killed loses every message it has in hand; a power failure "
    "loses what was just published, and a message may be read half written",
    "sqlalchemy": _SQLALCHEMY,
    "sqla": _SQLALCHEMY,
    "confluentkafka": _KAFKA,
    "memory": "its queues live in one process and die with it; other processes see none of them",
}
"""What a transport may lose, by the scheme of its URL; empty if nothing."""


def weakness(scheme: str) -> str | None:
    """What the transport of a URL's scheme may lose; empty if nothing, ``None`` if not known."""
    scheme = scheme.lower()
    return TRANSPORTS.get(scheme, TRANSPORTS.get(scheme.partition("+")[0]))
