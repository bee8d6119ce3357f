"""Publishing with confirms: what RabbitMQ has stored, refused or returned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, Final

import amqp
from amqp import spec

from eventsync.transports.amqp.session import Session

__all__ = ["ConfirmedPublisher", "Confirms"]

# So many messages may be unconfirmed at a time.
_WINDOW: Final = 1000


class Confirms:
    """Counts published messages and their confirms, in any order. For one thread.

    Its length is the number of unconfirmed messages. ``refused``: how many the broker refused.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._published = 0
        self._waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def published(self) -> None:
        """Count one more published message; the broker numbers them from 1."""
        self._published += 1
        self._waiting[self._published] = None

    def confirm(self, tag: int, multiple: bool) -> None:
        """Note that the broker stored a message; with ``multiple``, and all before it."""
        self._remove(tag, multiple)

    def refuse(self, tag: int, multiple: bool) -> None:
        """Note that the broker refused a message; with ``multiple``, and all waiting before it."""
        self.refused += self._remove(tag, multiple)

    def _remove(self, tag: int, multiple: bool) -> int:
        tags = list(takewhile(lambda other: other <= tag, self._waiting)) if multiple else [tag]
        return sum(self._waiting.pop(one, self) is None for one in tags)


class ConfirmedPublisher:
    """Publishes on a channel of its own and waits for confirms, within ``Session.errors``.

    After ``publish``, ``refused`` is the number of messages that the broker refused, and
    ``unroutable`` the routing key of a message that no queue took, or empty.
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
        """Send messages, given as bodies and properties; return once none is unconfirmed.

        Raises ``TimeoutError`` if the broker confirms none for the publish timeout.
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
        """Wait until at most so many messages are unconfirmed."""
        timeout = self._session.publish_timeout
        deadline = time.monotonic() + timeout
        while (before := len(self._confirms)) > most:
            self._session.wait(min(1.0, timeout))
            if len(self._confirms) < before:
                deadline = time.monotonic() + timeout
            elif time.monotonic() >= deadline:
                raise TimeoutError(f"{before} messages not confirmed within the publish timeout")

    def _on_return(self, error: Any, exchange: str, key: str, message: Any) -> None:
        self.unroutable = key
