"""The dead letter: an envelope or message that could not be applied, with the reason."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass, field, fields
from typing import Any, Final
from uuid import UUID

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.changes.event_id import new_id
from eventsync.envelope import cloudevents, codec
from eventsync.errors import EnvelopeError, ValueRefusedError
from eventsync.values import packing, unpacking

__all__ = ["DeadLetter"]

_MAJOR: Final = 1
_LONGEST_TEXT: Final = 4000
_LAST_TIME: Final = 253_402_300_800.0
_TEXTS: Final = ("reason", "message", "store", "queue", "content_type")
_OPTIONAL_TEXTS: Final = ("type", "key", "op")


@dataclass(slots=True, frozen=True, kw_only=True)
class DeadLetter:
    """An envelope, or an unparseable message, that a store could not apply.

    ``raw``: the bytes of the envelope or message, unaltered. ``reason`` and ``message``: the reason
    and the text of the error. ``store`` and ``queue``: the name of the store, and of the queue that
    the message came from. ``attempts``: how often the store tried to apply the change.
    ``first_time`` and ``last_time``: when the store first and last tried, in seconds since the
    epoch. ``type``, ``key``, ``op`` and ``version``: attributes of the change, or ``None`` if the
    change could not be read. ``content_type``: the format of ``raw``.
    """

    reason: str
    message: str
    store: str
    queue: str
    attempts: int
    first_time: float
    last_time: float
    raw: bytes
    type: str | None = None
    key: str | None = None
    op: str | None = None
    version: Version | None = None
    content_type: str = codec.CONTENT_TYPE
    id: bytes = field(default_factory=new_id)

    def encode(self) -> bytes:
        """Return the dead letter as bytes. Does not raise, so that no dead letter is lost.

        Texts are cut to 4,000 characters. Characters without a UTF-8 form are escaped.
        """
        entries: dict[str, Any] = {"v": _MAJOR}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, str):
                value = value[:_LONGEST_TEXT].encode(errors="backslashreplace").decode()
            entries[part.name] = bytes(value) if isinstance(value, bytes) else value
        return packing.pack(entries)

    @classmethod
    def decode(cls, raw: bytes) -> DeadLetter:
        """Return the dead letter in ``raw``, the bytes that ``encode`` returned.

        ``raw`` may come from an attacker. Entries with unknown names are ignored. Raises
        ``EnvelopeError``, and no other error, if ``raw`` is not a valid dead letter.
        """
        try:
            entries = unpacking.unpack(raw)
        except ValueRefusedError as error:
            raise EnvelopeError(f"the message is not a dead letter: {error.message}") from error
        if type(entries) is not dict or entries.get("v") != _MAJOR:
            raise EnvelopeError(f"the message is not a dead letter of version {_MAJOR}")
        known = {p.name: entries[p.name] for p in fields(cls) if p.name in entries}
        wrong = _wrong(known)
        if wrong:
            raise EnvelopeError(
                f"the dead letter has missing or malformed entries: {', '.join(wrong)}"
            )
        if known.get("version") is not None:
            known["version"] = Version(known["version"])
        return cls(**known)

    def change(
        self, *, keys: codec.Keyring | None = None, max_bytes: int = codec.MAX_BYTES
    ) -> Change:
        """Return the change in ``raw``. Raises ``EnvelopeError`` if ``raw`` cannot be decoded.

        ``keys``: the keys that verify the signature. Without ``keys`` the signature is ignored:
        show such a change, but do not replay it. ``max_bytes``: the limit on the size of ``raw``.
        """
        return codec.decode(self.raw, keys=keys, max_bytes=max_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the dead letter as a dict for ``json.dumps``.

        The entry ``event`` is the change as a CloudEvent, or ``None`` if ``raw`` cannot be decoded;
        its signature is not verified. The entry ``raw`` is base64 text, ``size`` the number of
        bytes, and times are ISO 8601 text in UTC.
        """
        try:
            event = cloudevents.to_cloudevent(self.change(max_bytes=len(self.raw)))
        except EnvelopeError:
            event = None
        return {
            "id": str(UUID(bytes=self.id)),
            "reason": self.reason,
            "message": self.message,
            "store": self.store,
            "queue": self.queue,
            "attempts": self.attempts,
            "first_time": _shown_time(self.first_time),
            "last_time": _shown_time(self.last_time),
            "type": self.type,
            "key": self.key,
            "op": self.op,
            "version": None if self.version is None else self.version.hex(),
            "content_type": self.content_type,
            "size": len(self.raw),
            "raw": base64.b64encode(self.raw).decode(),
            "event": event,
        }


def _wrong(entries: dict[str, Any]) -> list[str]:
    """Return the names of the entries that are missing or malformed."""
    checks: dict[str, bool] = {name: type(entries.get(name)) is str for name in _TEXTS}
    checks |= {n: entries.get(n) is None or type(entries[n]) is str for n in _OPTIONAL_TEXTS}
    checks |= {n: _is_time(entries.get(n)) for n in ("first_time", "last_time")}
    checks["attempts"] = type(entries.get("attempts")) is int and entries["attempts"] >= 0
    checks["raw"] = type(entries.get("raw")) is bytes
    checks["id"] = _is_bytes(entries.get("id"), 16)
    checks["version"] = entries.get("version") is None or _is_bytes(entries["version"], 16)
    return [name for name, sound in checks.items() if not sound]


def _is_time(seconds: Any) -> bool:
    return type(seconds) in (int, float) and 0 <= seconds < _LAST_TIME


def _is_bytes(value: Any, size: int) -> bool:
    return type(value) is bytes and len(value) == size


def _shown_time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")
