"""Dead letters as an operator handles them: found, explained, sent again, or mended.

It owns what an edited change becomes. It must not know how any of it is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.event_id import new_id
from eventsync.changes.stamp import PATCH, PUT
from eventsync.envelope import codec
from eventsync.errors import ClockDriftError, ConfigError, EnvelopeError, EventSyncError
from eventsync.records.record_type import same

if TYPE_CHECKING:
    from eventsync.broker.bus import Bus, Delivery, QueueBrowser
    from eventsync.engine.store import Store
    from eventsync.envelope.dead_letter import DeadLetter

__all__ = ["Choice", "Found", "data_of", "envelopes_of", "mended", "now_held", "picked", "replay"]

_CHUNK = 500
_SHORT = 8


@dataclass(slots=True, frozen=True)
class Found:
    """A letter, and how to settle it."""

    letter: DeadLetter
    delivery: Delivery

    @property
    def id(self) -> str:
        """Its id; of bytes that are no letter the digest, which is the same at every look."""
        if self.letter.reason == "foreign":
            return hashlib.sha256(self.delivery.body).hexdigest()[:32]
        return self.letter.id.hex()

    @property
    def short_id(self) -> str:
        """The end of its id, which is enough to name it: the beginning is the time."""
        return self.id[-_SHORT:]

    @property
    def change(self) -> Change | None:
        """The change in it, whoever signed it; ``None`` if it holds none, or several."""
        try:
            return codec.decode(self.letter.raw, max_bytes=len(self.letter.raw))
        except EnvelopeError:
            return None


@dataclass(slots=True, frozen=True, kw_only=True)
class Choice:
    """Which letters are meant: those of which everything that is given holds.

    ``until``: of those that were last tried at that time or earlier, in seconds since the epoch.
    """

    ids: Sequence[str] = ()
    every: bool = False
    reason: str | None = None
    type: str | None = None
    key: str | None = None
    until: float | None = None

    def __bool__(self) -> bool:
        given = (self.reason, self.type, self.key, self.until)
        return self.every or bool(self.ids) or any(one is not None for one in given)

    def __contains__(self, found: Found) -> bool:
        letter = found.letter
        return (
            (not self.ids or any(found.id.endswith(id) for id in self.ids))
            and self.reason in (None, letter.reason)
            and self.type in (None, letter.type)
            and self.key in (None, letter.key)
            and (self.until is None or letter.last_time <= self.until)
        )


def picked(letters: QueueBrowser, choice: Choice, *, before: float) -> Iterator[list[Found]]:
    """The chosen letters written before a time, chunk by chunk, oldest first.

    Those that are written meanwhile are left out: what is replayed and fails again comes back.
    """
    while chunk := letters.read(_CHUNK):
        found = [Found(letter, delivery) for letter, delivery in chunk]
        chosen = [one for one in found if one.letter.last_time <= before and one in choice]
        if chosen:
            yield chosen
        if all(one.letter.last_time > before for one in found):
            return


def replay(bus: Bus, store: str, letters: QueueBrowser, chosen: Sequence[Found]) -> list[Found]:
    """Send the envelopes of letters to their store once more; those that hold none come back.

    A letter is settled when its envelopes are safe in the store's queue: killed in between, it is
    there twice, which the version gate makes harmless.
    """
    sendable = [(found, envelopes_of(found.letter.raw)) for found in chosen]
    bus.send_to(store, [raw for _, raws in sendable for raw in raws])
    letters.settle(found.delivery for found, raws in sendable if raws)
    return [found for found, raws in sendable if not raws]


def envelopes_of(raw: bytes) -> list[bytes]:
    """The envelopes in a letter's bytes: one, those of a whole message, or none."""
    try:
        return codec.split_batch(raw)
    except EnvelopeError:
        pass  # then it is one envelope, or none
    try:
        codec.decode(raw, max_bytes=len(raw))
    except EnvelopeError as error:
        # One of a later version is an envelope, which an upgraded worker may read.
        return [raw] if error.reason == "envelope-version" else []
    return [raw]


def now_held(store: Store, type: str, key: str) -> tuple[Mapping[str, Any] | None, Version | None]:
    """The field values that a store holds of a record now, and the greatest version it has seen."""
    accessor = store.accessor(type)
    with store.index.transaction() as transaction:
        store.replicas[type].recover(transaction)
        entry = transaction.read(type, [key]).get(key)
        rows = accessor.read_rows([key], transaction)
    return rows.get(key), Version(entry.version) if entry else None


def mended(
    change: Change, values: Mapping[str, Any], store: Store, clock: Clock
) -> tuple[Change, list[str]]:
    """The change to publish in place of ``change`` when an operator sets its data to ``values``,
    and the fields that were set.

    It is a new write, made now, so it gets a fresh version. Under the per-field rule that covers
    the fields that were set and no others: all else it says keeps its old version, so what was
    written since stays. Under the per-record rule the whole record is written anew. Raises
    ``FieldError``, and ``ConfigError`` when nothing is set or there is nothing to set.
    """
    if change.data is None:
        raise ConfigError("a delete has no data to edit", hint="replay or discard it")
    described = store.accessor(change.type).type
    loaded = described.load(values, partial=True)
    before = data_of(change, store)
    edited = [n for n, held in loaded.items() if n not in before or not same(before[n], held)]
    keys = [name for name in edited if name in described.keys]
    if keys:
        raise ConfigError(
            f"{', '.join(keys)} is part of the key, which never changes",
            hint="discard the letter, and publish a record of the other key",
        )
    removed = [n for n in before if n not in loaded and n not in described.keys]
    if not edited and not removed:
        raise ConfigError("nothing was changed", hint="dlq replay sends a change as it is")
    for version in (change.version, now_held(store, change.type, change.key)[1]):
        if version is not None:
            _observe(clock, version)
    fresh: dict[str, Any] = {"version": clock.tick(), "id": new_id(), "hops": 0}
    if described.rule == "record":
        return change.replace(data=described.key_values(change.key) | loaded, **fresh), edited
    kept = {n: held for n, held in loaded.items() if n not in edited and n not in described.keys}
    return change.replace(
        op=PATCH,
        data={name: loaded[name] for name in edited},
        known=_known_beside(change, kept, edited),
        **fresh,
    ), edited


def data_of(change: Change, store: Store) -> dict[str, Any]:
    """The data of a change, as far as they fit their fields; what does not is shown as it came."""
    described = store.accessor(change.type).type
    values: dict[str, Any] = {}
    for name, held in (change.data or {}).items():
        if name in described.fields:
            try:
                values[name] = described.coerce(name, held)
            except EventSyncError:
                values[name] = held
    return values


def _known_beside(
    change: Change, kept: Mapping[str, Any], edited: Sequence[str]
) -> BaseState | None:
    """What the new patch stands on: what the old change said of other fields, as old as it was."""
    if change.op == PUT:
        return BaseState(change.stamp, dict(kept), {})
    if change.known is None:
        return None
    values = {n: held for n, held in change.known.values.items() if n not in edited}
    versions = {n: v for n, v in change.known.versions.items() if n not in edited}
    values |= kept
    versions |= dict.fromkeys(kept, change.version)
    return BaseState(change.known.stamp, values, versions)


def _observe(clock: Clock, version: Version) -> None:
    try:
        clock.observe(version)
    except ClockDriftError:
        # The letter may be dead for that very reason; what is written now belongs to now.
        return
