"""Decodes the envelopes of the messages and of the held changes that a worker settles."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eventsync.broker.bus import Bus, Delivery
from eventsync.changes.change import Change
from eventsync.engine.isolation import Done, isolate
from eventsync.envelope import batch, codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import EnvelopeError, EventSyncError

__all__ = ["Message", "MessageReader"]


@dataclass(slots=True)
class Message:
    """One message or one held change, with its envelopes decoded.

    ``contents``: for each of ``envelopes``, the change, or the error if the envelope cannot be
    decoded. If the message cannot be split into envelopes, its whole body counts as one envelope.
    ``first_time``: the time of the first attempt, in seconds since the epoch. ``attempts``: the
    number of attempts, including the current one.
    """

    delivery: Delivery
    first_time: float
    attempts: int
    envelopes: Sequence[bytes]
    contents: Sequence[Change | EventSyncError]


class MessageReader:
    """Decodes messages. An error in one envelope or message does not affect the others.

    ``max_deliveries``: a message that was delivered so often without being settled is not decoded,
    because it may be the cause of crashes.
    """

    def __init__(self, bus: Bus, *, max_deliveries: int) -> None:
        self._bus = bus
        self._max_deliveries = max_deliveries

    def read(self, deliveries: Iterable[Delivery]) -> list[Message]:
        """Return a ``Message`` with decoded envelopes for each delivery. Does not raise."""
        now = time.time()
        return [self._read(delivery, now) for delivery in deliveries]

    def read_held(self, letters: Iterable[tuple[DeadLetter, Delivery]]) -> list[Message]:
        """Return a ``Message`` with one decoded envelope for each held change. Does not raise.

        ``letters``: the held changes in the form of dead letters, with their deliveries.
        """
        messages, now = [], time.time()
        for letter, delivery in letters:
            envelopes = [letter.raw]
            contents = self._decode_all(envelopes)
            messages.append(
                # A time in the future would hold the change for ever.
                Message(
                    delivery,
                    min(letter.first_time, now),
                    letter.attempts + 1,
                    envelopes,
                    contents,
                )
            )
        return messages

    def _read(self, delivery: Delivery, now: float) -> Message:
        try:
            envelopes = self._split(delivery)
        except Exception as error:
            envelopes = [delivery.body]
            contents: list[Change | EventSyncError] = [_unreadable(error)]
        else:
            contents = self._decode_all(envelopes)
        return Message(delivery, now, delivery.attempts + 1, envelopes, contents)

    def _split(self, delivery: Delivery) -> list[bytes]:
        """Return the encoded envelopes of a message.

        Raises ``EventSyncError`` if the message was delivered ``max_deliveries`` times, is too
        large, has another content type, or is malformed.
        """
        if delivery.attempts >= self._max_deliveries:
            raise EventSyncError(
                f"workers have taken this message {delivery.attempts} times and died before they "
                "settled it",
                reason="crashes",
                hint="find the cause before you replay the message, which may end workers again",
            )
        if delivery.size > self._bus.max_message:
            raise EnvelopeError(
                f"the message has {delivery.size:,} bytes; {self._bus.max_message:,} is the limit",
                reason="too-large",
                hint="publish fewer envelopes in one message, or raise max_message of the bus",
            )
        if delivery.content_type != codec.CONTENT_TYPE:
            raise EnvelopeError(
                f"the message has the content type {delivery.content_type[:80]!r}; expected "
                f"{codec.CONTENT_TYPE}",
                hint="find the program that publishes into this queue",
            )
        return batch.split_batch(delivery.body)

    def _decode_all(self, envelopes: Sequence[bytes]) -> list[Change | EventSyncError]:
        contents: list[Change | EventSyncError] = []
        for part in isolate(envelopes, self._decode, shared=lambda error: False):
            contents += part.result if isinstance(part, Done) else [_unreadable(part.error)]
        return contents

    def _decode(self, envelopes: Sequence[bytes]) -> list[Change | EnvelopeError]:
        bus = self._bus
        return codec.decode_all(envelopes, keys=bus.keys, max_bytes=bus.max_envelope)


def _unreadable(error: Exception) -> EventSyncError:
    """Return an error as an ``EventSyncError``. Other errors come from faults in the decoder."""
    if isinstance(error, EventSyncError):
        return error
    unexpected = EnvelopeError(
        f"the message cannot be read: unexpected {type(error).__name__}: {error}"
    )
    unexpected.__cause__ = error
    return unexpected
