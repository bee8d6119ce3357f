"""Batches: many envelopes in one broker message, as a msgpack array of byte strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final

from msgspec import Meta, MsgspecError
from msgspec.msgpack import Decoder, Encoder

from eventsync.errors import EnvelopeError, ValueRefusedError

__all__ = ["MAX_COUNT", "batches", "framed_size", "join_batch", "split_batch"]

MAX_COUNT: Final = 65_535
"""The most envelopes that one message may carry."""

_LONGEST_HEADER: Final = 5
_encode: Final = Encoder().encode
# It makes nothing but byte strings of a message, and checks a declared length before it allocates.
_decoder: Final[Decoder[list[bytes]]] = Decoder(Annotated[list[bytes], Meta(max_length=MAX_COUNT)])


def framed_size(envelope: bytes) -> int:
    """Return how many bytes ``envelope`` takes in a message."""
    size = len(envelope)
    return size + (2 if size < 1 << 8 else 3 if size < 1 << 16 else 5)


def join_batch(envelopes: Sequence[bytes]) -> bytes:
    """Return the body of one message with these envelopes, in this order.

    Raises ``ValueRefusedError`` for more than ``MAX_COUNT``.
    """
    if len(envelopes) > MAX_COUNT:
        raise ValueRefusedError(
            f"{len(envelopes)} envelopes are too many for one message; {MAX_COUNT} is the limit"
        )
    return _encode(envelopes)


def split_batch(raw: bytes) -> list[bytes]:
    """Return the envelopes in the body of a message, not decoded.

    Safe for bytes from anywhere: raises only ``EnvelopeError``.
    """
    try:
        return _decoder.decode(raw)
    except MsgspecError as error:
        raise EnvelopeError(
            f"the message is not an array of envelopes: {error}",
            hint="find out what else publishes into this queue",
        ) from None


def batches(envelopes: Iterable[bytes], *, max_count: int, max_bytes: int) -> Iterator[bytes]:
    """Yield the bodies of messages that carry ``envelopes`` in their order.

    A message carries at most ``max_count`` envelopes and has at most ``max_bytes``. An envelope
    that is larger than that travels alone.
    """
    max_count = min(max_count, MAX_COUNT)
    batch: list[bytes] = []
    size = _LONGEST_HEADER
    for envelope in envelopes:
        framed = framed_size(envelope)
        if batch and (len(batch) >= max_count or size + framed > max_bytes):
            yield join_batch(batch)
            batch, size = [], _LONGEST_HEADER
        batch.append(envelope)
        size += framed
    if batch:
        yield join_batch(batch)
