"""Many envelopes in one broker message: a msgpack array of byte strings, written and read here.

It knows nothing of what the byte strings hold. They are framed by hand, not by msgpack, so that
nothing but byte strings is ever made of a message, however hostile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from eventsync.errors import EnvelopeError, ValueRefusedError

__all__ = ["MAX_COUNT", "batches", "framed_size", "join_batch", "split_batch"]

MAX_COUNT: Final = 65_535
"""How many envelopes one message may carry."""

_LONGEST_HEADER: Final = 5
# By the first byte of a byte string's header: how many bytes of length follow it.
_BIN: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def framed_size(envelope: bytes) -> int:
    """How many bytes ``envelope`` takes in a message."""
    size = len(envelope)
    return size + (2 if size < 1 << 8 else 3 if size < 1 << 16 else 5)


def join_batch(envelopes: Sequence[bytes]) -> bytes:
    """The body of one message with these envelopes, in this order.

    Raises ``ValueRefusedError`` for more than ``MAX_COUNT``.
    """
    count = len(envelopes)
    if count > MAX_COUNT:
        raise ValueRefusedError(f"{count} envelopes for one message; {MAX_COUNT} is the limit")
    parts = [bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")]
    for envelope in envelopes:
        size = len(envelope)
        if size < 1 << 8:
            parts.append(bytes((0xC4, size)))
        elif size < 1 << 16:
            parts.append(b"\xc5" + size.to_bytes(2, "big"))
        else:
            parts.append(b"\xc6" + size.to_bytes(4, "big"))
        parts.append(envelope)
    return b"".join(parts)


def split_batch(raw: bytes, max_count: int = MAX_COUNT) -> list[bytes]:
    """The envelopes in the body of a message, as they were put in; not decoded.

    For bytes from anywhere. Raises ``EnvelopeError``, and nothing else, when ``raw`` is not such a
    body or carries more than ``max_count``.
    """
    first = raw[0] if raw else 0
    if 0x90 <= first <= 0x9F:
        count, at = first & 0x0F, 1
    elif first in (0xDC, 0xDD):
        at = 3 if first == 0xDC else 5
        # Cut short it gives a smaller number; then nothing follows, and that is found below.
        count = int.from_bytes(raw[1:at], "big")
    else:
        raise EnvelopeError(
            "the message is not an array of envelopes",
            hint="something else publishes into this queue",
        )
    if count > max_count:
        raise EnvelopeError(f"the message announces {count} envelopes; {max_count} is the limit")
    envelopes: list[bytes] = []
    end = len(raw)
    for _ in range(count):
        width = _BIN.get(raw[at], 0) if at < end else 0
        start = at + 1 + width
        at = start + int.from_bytes(raw[at + 1 : start], "big")
        if not width or at > end:
            raise EnvelopeError(
                f"the message breaks off, or holds no byte string, at its envelope "
                f"{len(envelopes) + 1} of {count}"
            )
        envelopes.append(raw[start:at])
    if at != end:
        raise EnvelopeError(f"the message goes on after its {count} envelopes")
    return envelopes


def batches(envelopes: Iterable[bytes], *, max_count: int, max_bytes: int) -> Iterator[bytes]:
    """The bodies of messages that carry ``envelopes`` in their order, made as they are asked for.

    Each carries up to ``max_count`` and is up to ``max_bytes`` long; an envelope that is longer by
    itself goes alone.
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
