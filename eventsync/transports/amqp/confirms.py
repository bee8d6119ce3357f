"""Publishing with confirms: RabbitMQ reports for each message whether it was stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, Final

import amqp
from amqp import spec

from eventsync.transports.amqp.session import Session

__all__ = ["ConfirmedPublisher", "Confirms"]

# The largest number of messages that may be unconfirmed at a time.
_WINDOW: Final = 1000


class Confirms:
    """Counts published messages and the broker's confirms, which may arrive in any order.

    ``len()`` is the number of messages neither confirmed nor refused yet. ``refused``: how many
    messages the broker refused. Not thread-safe.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._published = 0
        self._waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def published(self) -> None:
        """Count one more published message. Its tag is its number, from 1, as in the broker."""
        self._published += 1
        self._waiting[self._published] = None

    def confirm(self, tag: int, multiple: bool) -> None:
        """Record that the broker stored the message ``tag``.

        ``multiple``: also all earlier messages that are not confirmed yet.
        """
        self._remove(tag, multiple)

    def refuse(self, tag: int, multiple: bool) -> None:
        """Record that the broker refused the message ``tag``.

        ``multiple``: also all earlier messages that are not confirmed yet.
        """
        self.refused += self._remove(tag, multiple)

    def _remove(self, tag: int, multiple: bool) -> int:
        tags = list(takewhile(lambda other: other <= tag, self._waiting)) if multiple else [tag]
        return sum(self._waiting.pop(one, self) is None for one in tags)


class ConfirmedPublisher:
    """Publishes messages on its own channel and waits until the broker has confirmed them.

    ``unroutable``: the routing key of a message of the last ``publish`` that no queue received, or
    empty. Use this object only within a block of ``Session.errors``.
    """

    def __init__(self, session: Session) -> None:
        self.unroutable = ""
        self._session = session
        self._confirms = Confirms()
        self._channel = session.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._confirms.confirm)
        self._channel.events["basic_nack"].add(self._confirms.refuse)
        self._channel.events["basic_return"].add(self._on_return)

    @property
    def refused(self) -> int:
        """The number of messages of the last ``publish`` that the broker refused."""
        return self._confirms.refused

    def publish(
        self, messages: Iterable[tuple[bytes, Mapping[str, Any]]], *, exchange: str, key: str
    ) -> None:
        """Send messages and return when the broker has confirmed or refused each of them.

        ``messages``: pairs of body and properties. ``key``: the routing key. Raises
        ``TimeoutError`` if no confirm arrives for ``Session.publish_timeout`` seconds. Check
        ``refused`` and ``unroutable`` afterwards.
        """
        self.unroutable, self._confirms.refused = "", 0
        for body, properties in messages:
            if len(self._confirms) >= _WINDOW:
                self._await_confirms(_WINDOW // 2)
            self._confirms.published()
            message = amqp.Message(body, content_encoding="binary", delivery_mode=2, **properties)
            arguments = (0, exchange, key, True, False)
            self._channel.send_method(spec.Basic.Publish, "Bssbb", arguments, message)
        self._await_confirms(0)

    def _await_confirms(self, most: int) -> None:
        """Wait until at most ``most`` messages are unconfirmed."""
        timeout = self._session.publish_timeout
        deadline = time.monotonic() + timeout
        while (before := len(self._confirms)) > most:
            self._session.wait(min(1.0, timeout))
            if len(self._confirms) < before:
                deadline = time.monotonic() + timeout
            elif time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{before} messages wait for the broker's confirm, and none arrived within the "
                    f"publish timeout of {timeout:g} s"
                )

    def _on_return(self, error: Any, exchange: str, key: str, message: Any) -> None:
        self.unroutable = key
