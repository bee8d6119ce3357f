"""Operations on dead letters: select, replay, and make a new change from an edited one."""

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

__all__ = [
    "FoundLetter",
    "Selection",
    "edit_change",
    "envelopes_in",
    "read_current",
    "readable_data",
    "replay",
    "select",
]

_CHUNK = 500
_SHORT = 8


@dataclass(slots=True, frozen=True)
class FoundLetter:
    """A dead letter, with the delivery that settles it."""

    letter: DeadLetter
    delivery: Delivery

    @property
    def id(self) -> str:
        """Its id. Bytes that are not a dead letter have no id; their digest stands in for it."""
        if self.letter.reason == "foreign":
            return hashlib.sha256(self.delivery.body).hexdigest()[:32]
        return self.letter.id.hex()

    @property
    def short_id(self) -> str:
        """The end of its id, which identifies it in practice; the beginning is a time."""
        return self.id[-_SHORT:]

    @property
    def change(self) -> Change | None:
        """The change in it, or ``None`` if it does not hold exactly one. Signatures are ignored."""
        try:
            return codec.decode(self.letter.raw, max_bytes=len(self.letter.raw))
        except EnvelopeError:
            return None


@dataclass(slots=True, frozen=True, kw_only=True)
class Selection:
    """A selection of dead letters: those that match everything that is given.

    ``ids``: ids or ends of ids. ``until``: those last tried at this time or earlier, in seconds
    since the epoch. False if nothing is given, which selects nothing.
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

    def __contains__(self, found: FoundLetter) -> bool:
        letter = found.letter
        return (
            (not self.ids or any(found.id.endswith(id) for id in self.ids))
            and self.reason in (None, letter.reason)
            and self.type in (None, letter.type)
            and self.key in (None, letter.key)
            and (self.until is None or letter.last_time <= self.until)
        )


def select(
    letters: QueueBrowser, selection: Selection, *, before: float
) -> Iterator[list[FoundLetter]]:
    """Yield the selected dead letters that were last tried before a time, in chunks, oldest first.

    Later ones are left out, because a replayed change that fails again returns to the queue.
    """
    while chunk := letters.read(_CHUNK):
        found = [FoundLetter(letter, delivery) for letter, delivery in chunk]
        chosen = [one for one in found if one.letter.last_time <= before and one in selection]
        if chosen:
            yield chosen
        if all(one.letter.last_time > before for one in found):
            return


def replay(
    bus: Bus, store: str, letters: QueueBrowser, chosen: Sequence[FoundLetter]
) -> list[FoundLetter]:
    """Send the envelopes of dead letters to their store again; return those that hold no envelope.

    A dead letter is settled only after its envelopes are in the store's queue. After a crash in
    between it is sent twice, which is harmless, because the version gate drops duplicates.
    """
    sendable = [(found, envelopes_in(found.letter.raw)) for found in chosen]
    bus.send_to(store, [raw for _, raws in sendable for raw in raws])
    letters.settle(found.delivery for found, raws in sendable if raws)
    return [found for found, raws in sendable if not raws]


def envelopes_in(raw: bytes) -> list[bytes]:
    """Return the envelopes in the bytes of a dead letter: one, those of a message, or none."""
    try:
        return codec.split_batch(raw)
    except EnvelopeError:
        pass  # not a message: one envelope, or none
    try:
        codec.decode(raw, max_bytes=len(raw))
    except EnvelopeError as error:
        # An envelope of a later version, which an upgraded worker may be able to read.
        return [raw] if error.reason == "envelope-version" else []
    return [raw]


def read_current(
    store: Store, type: str, key: str
) -> tuple[Mapping[str, Any] | None, Version | None]:
    """Return a record's field values in a store, and the greatest version in its index."""
    accessor = store.accessor(type)
    with store.index.transaction() as transaction:
        store.replicas[type].recover(transaction)
        entry = transaction.read(type, [key]).get(key)
        rows = accessor.read_rows([key], transaction)
    return rows.get(key), Version(entry.version) if entry else None


def edit_change(
    change: Change, values: Mapping[str, Any], store: Store, clock: Clock
) -> tuple[Change, list[str]]:
    """Return the change that publishes an operator's edit of ``change``, and the edited fields.

    ``values``: the whole data after the edit. The new change gets a new version. Under the
    per-field rule it is a patch of the edited fields; the other fields keep their old version in
    its base state, so they do not overwrite later values. Under the per-record rule it writes the
    whole record. Raises ``FieldError``, and ``ConfigError`` if nothing was edited or nothing can be
    edited.
    """
    if change.data is None:
        raise ConfigError(
            "this dead letter is a delete, which has no data to edit", hint="replay or discard it"
        )
    described = store.accessor(change.type).type
    loaded = described.load(values, partial=True)
    before = readable_data(change, store)
    edited = [n for n, value in loaded.items() if n not in before or not same(before[n], value)]
    keys = [name for name in edited if name in described.keys]
    if keys:
        raise ConfigError(
            f"{', '.join(keys)} is part of the key, and a record cannot change its key",
            hint="discard the dead letter and publish a new record",
        )
    removed = [n for n in before if n not in loaded and n not in described.keys]
    if not edited and not removed:
        raise ConfigError(
            "nothing was changed", hint="to send it unchanged, use eventsync dlq replay"
        )
    for version in (change.version, read_current(store, change.type, change.key)[1]):
        if version is not None:
            _observe(clock, version)
    fresh: dict[str, Any] = {"version": clock.tick(), "id": new_id(), "hops": 0}
    if described.rule == "record":
        return change.replace(data=described.key_values(change.key) | loaded, **fresh), edited
    kept = {n: value for n, value in loaded.items() if n not in edited and n not in described.keys}
    return change.replace(
        op=PATCH,
        data={name: loaded[name] for name in edited},
        known=_base_state(change, kept, edited),
        **fresh,
    ), edited


def readable_data(change: Change, store: Store) -> dict[str, Any]:
    """Return the data of a change, coerced. A value that does not fit its field stays as it is."""
    described = store.accessor(change.type).type
    values: dict[str, Any] = {}
    for name, value in (change.data or {}).items():
        if name in described.fields:
            try:
                values[name] = described.coerce(name, value)
            except EventSyncError:
                values[name] = value
    return values


def _base_state(change: Change, kept: Mapping[str, Any], edited: Sequence[str]) -> BaseState | None:
    """Return the base state of the patch: the unedited fields at their old versions."""
    if change.op == PUT:
        return BaseState(change.stamp, dict(kept), {})
    if change.known is None:
        return None
    values = {n: value for n, value in change.known.values.items() if n not in edited}
    versions = {n: v for n, v in change.known.versions.items() if n not in edited}
    values |= kept
    versions |= dict.fromkeys(kept, change.version)
    return BaseState(change.known.stamp, values, versions)


def _observe(clock: Clock, version: Version) -> None:
    try:
        clock.observe(version)
    except ClockDriftError:
        # The version may be too far ahead, which may be why it is a dead letter. Use our own time.
        return
