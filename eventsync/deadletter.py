"""The dead letter: what could not be applied, why, and its original bytes.

It knows nothing of the queue that it lies in or of how it is replayed.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from typing import Any

from eventsync import envelope, value
from eventsync.change import Change, new_id
from eventsync.clock import Version
from eventsync.errors import EnvelopeError, ValueRefusedError
from eventsync.keyring import Keyring

__all__ = ["DeadLetter"]

_TEXTS = ("reason", "message", "store", "queue")
_NUMBERS = ("attempts", "first_time", "last_time")


@dataclass(slots=True, frozen=True, kw_only=True)
class DeadLetter:
    """What could not be applied.

    ``raw``: the envelope as it was received, or the whole message where it held none. ``reason``: a
    stable word; ``message``: for people. Times are in seconds since the epoch. ``type``, ``key``,
    ``version`` and ``op`` are those of the change, if it could be decoded.
    """

    reason: str
    message: str
    store: str
    queue: str
    attempts: int
    first_time: float
    last_time: float
    raw: bytes
    id: bytes = field(default_factory=new_id)
    type: str | None = None
    key: str | None = None
    version: bytes | None = None
    op: str | None = None
    content_type: str = ""

    def encode(self) -> bytes:
        """The letter as bytes."""
        return value.pack(asdict(self) | {"version": self.version and bytes(self.version)})

    @classmethod
    def decode(cls, raw: bytes) -> DeadLetter:
        """The letter that ``encode`` wrote. Raises ``EnvelopeError`` for any other bytes."""
        try:
            entries = value.unpack(raw)
        except ValueRefusedError as error:
            raise EnvelopeError(f"not a dead letter: {error.message}") from error
        if (
            type(entries) is not dict
            or not all(type(entries.get(name)) is str for name in _TEXTS)
            or not all(type(entries.get(name)) in (int, float) for name in _NUMBERS)
            or type(entries.get("raw")) is not bytes
        ):
            raise EnvelopeError("not a dead letter: entries are missing or of another type")
        known = {name: entries[name] for name in cls.__dataclass_fields__ if name in entries}
        return cls(**known)

    def change(self, keys: Keyring | None = None) -> Change:
        """The change in it. Raises ``EnvelopeError`` when it holds none that can be read."""
        return envelope.decode(self.raw, keys=keys)

    def to_json(self) -> dict[str, Any]:
        """The letter for a script: bytes as hexadecimal text, ``raw`` as base64."""
        shown = asdict(self)
        shown["id"] = self.id.hex()
        shown["version"] = Version(self.version).hex() if self.version else None
        shown["raw"] = base64.b64encode(self.raw).decode("ascii")
        return shown
