"""Batches: many envelopes in one broker message, as a msgpack array of byte strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final

from msgspec import Meta, MsgspecError
from msgspec.msgpack import Decoder, Encoder

from eventsync.errors import EnvelopeError, ValueRefusedError

__all__ = ["MAX_COUNT", "batches", "framed_size", "join_batch", "split_batch"]

MAX_COUNT: Final = 65_535
"""The limit on the number of envelopes in one message."""

_LONGEST_HEADER: Final = 5
_encode: Final = Encoder().encode
# Safe for hostile bytes: decodes byte strings only, and checks a length before it allocates memory.
_decoder: Final[Decoder[list[bytes]]] = Decoder(Annotated[list[bytes], Meta(max_length=MAX_COUNT)])


def framed_size(envelope: bytes) -> int:
    """Return the number of bytes that ``envelope`` adds to a message: its length and its header."""
    size = len(envelope)
    return size + (2 if size < 1 << 8 else 3 if size < 1 << 16 else 5)


def join_batch(envelopes: Sequence[bytes]) -> bytes:
    """Return the body of one message that carries ``envelopes`` in the given order.

    Raises ``ValueRefusedError`` if there are more than ``MAX_COUNT`` envelopes.
    """
    if len(envelopes) > MAX_COUNT:
        raise ValueRefusedError(
            f"{len(envelopes)} envelopes are too many for one message; {MAX_COUNT} is the limit",
            hint="split the envelopes into several messages",
        )
    return _encode(envelopes)


def split_batch(raw: bytes) -> list[bytes]:
    """Return the envelopes in the body of a message, as bytes that are not yet decoded.

    ``raw`` may come from an attacker. Raises ``EnvelopeError``, and no other error, if ``raw`` is
    not an array of byte strings.
    """
    try:
        return _decoder.decode(raw)
    except MsgspecError as error:
        raise EnvelopeError(
            f"the message is not an array of envelopes: {error}",
            hint="find out which other program publishes into this queue",
        ) from None


def batches(envelopes: Iterable[bytes], *, max_count: int, max_bytes: int) -> Iterator[bytes]:
    """Yield the bodies of messages that together carry ``envelopes`` in the given order.

    A message carries at most ``max_count`` envelopes in at most ``max_bytes`` bytes. An envelope
    that is too large for ``max_bytes`` is yielded in a message of its own.
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
