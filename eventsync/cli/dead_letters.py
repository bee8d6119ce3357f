"""Operations on dead letters: select them, replay them, and edit the change in one of them."""

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
from eventsync.errors import (
    ClockDriftError,
    ConfigError,
    EnvelopeError,
    EventSyncError,
    SignatureError,
)
from eventsync.records.record_type import same

if TYPE_CHECKING:
    from eventsync.broker.bus import Bus, Delivery, QueueBrowser
    from eventsync.engine.store import Store
    from eventsync.envelope.dead_letter import DeadLetter
    from eventsync.index import IndexTransaction

__all__ = [
    "FoundLetter",
    "Selection",
    "edit_change",
    "envelopes_in",
    "read_current",
    "readable_data",
    "replay",
    "select",
    "signature_error",
]

_CHUNK = 500
_SHORT = 8


@dataclass(slots=True, frozen=True)
class FoundLetter:
    """A dead letter in the queue, and the delivery by which it can be removed from the queue."""

    letter: DeadLetter
    delivery: Delivery

    @property
    def id(self) -> str:
        """The id of the dead letter, as hexadecimal digits.

        A message in the queue that is not a dead letter has no id; its digest is used instead.
        """
        if self.letter.reason == "foreign":
            return hashlib.sha256(self.delivery.body).hexdigest()[:32]
        return self.letter.id.hex()

    @property
    def short_id(self) -> str:
        """The last eight digits of the id. They differ in practice; the first digits are a time."""
        return self.id[-_SHORT:]

    @property
    def change(self) -> Change | None:
        """The change in the dead letter, or ``None`` if there is not exactly one.

        Signatures are not verified.
        """
        try:
            return codec.decode(self.letter.raw, max_bytes=len(self.letter.raw))
        except EnvelopeError:
            return None


@dataclass(slots=True, frozen=True, kw_only=True)
class Selection:
    """The conditions for the selection of dead letters. A dead letter must meet all that are given.

    ``ids``: complete ids, or their last digits. ``every``: must be true
    if no other condition is given, and then selects all dead letters. ``reason``, ``type``,
    ``key``: those of the dead letter. ``until``: the time of the last attempt must not be later, in
    seconds since the epoch.

    ``bool()`` is false if no condition is given; then nothing may be selected. ``in`` tells whether
    a ``FoundLetter`` meets the conditions.
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
    """Yield the selected dead letters in chunks, oldest first.

    ``before``: a time in seconds since the epoch. Dead letters that were last tried after this time
    are left out: a replayed change may fail and return to the queue while this function reads it.
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
    """Send the envelopes in the dead letters ``chosen`` to the queue of ``store``.

    Returns the dead letters that hold no envelope; they stay. Every other dead letter is removed
    after its envelopes are in the queue. If the process dies in between, a second replay sends the
    same envelopes again, which is harmless, because the gate ignores duplicates. Raises
    ``BusUnavailableError`` if the broker does not answer.
    """
    sendable = [(found, envelopes_in(found.letter.raw)) for found in chosen]
    bus.send_to(store, [raw for _, raws in sendable for raw in raws])
    letters.settle(found.delivery for found, raws in sendable if raws)
    return [found for found, raws in sendable if not raws]


def envelopes_in(raw: bytes) -> list[bytes]:
    """Return the envelopes in the original bytes of a dead letter.

    The bytes are a message of several envelopes, one envelope, or neither. If neither, the list is
    empty.
    """
    try:
        return codec.split_batch(raw)
    except EnvelopeError:
        pass  # the bytes are not a message; they may be an envelope
    try:
        codec.decode(raw, max_bytes=len(raw))
    except EnvelopeError as error:
        # Keep an envelope with a later format version: an upgraded worker may be able to read it.
        return [raw] if error.reason == "envelope-version" else []
    return [raw]


def read_current(
    store: Store, type: str, key: str
) -> tuple[Mapping[str, Any] | None, Version | None]:
    """Return the field values of a record in a store, and the version in the index entry.

    Each is ``None`` if the store does not have it. Finishes or undoes a write of the record that a
    crash interrupted.
    """
    accessor = store.accessor(type)

    def read(
        transaction: IndexTransaction,
    ) -> tuple[Mapping[str, Any] | None, Version | None]:
        store.replicas[type].recover(transaction)
        entry = transaction.read(type, [key]).get(key)
        row = accessor.read_rows([key], transaction).get(key)
        return row, Version(entry.version) if entry else None

    with store.errors():
        return store.index.run(read)


def edit_change(
    change: Change, values: Mapping[str, Any], store: Store, clock: Clock
) -> tuple[Change, list[str]]:
    """Return a new change with an operator's edit of ``change``, and the names of edited fields.

    ``values``: all data of the record after the edit. The new change gets a new version from
    ``clock``. Under the per-record rule, it has the whole data. Under the per-field rule, it is a
    patch of the edited fields; the other fields are in the base state of the patch with their old
    versions, so that they do not overwrite later values. Exception: if the version of ``change``
    lies in the future, its time cannot be right, and all fields get the new version. Additional
    entries of the envelope (``ext``) are dropped, because the operator has not seen them.

    Raises ``FieldError`` if a value does not fit its field, and ``ConfigError`` if ``change`` is a
    delete, no field was edited, or a key field was edited.
    """
    if change.data is None:
        raise ConfigError(
            f"the dead letter is a delete of {change.type} {change.key}, which has no data to edit",
            hint="use `eventsync dlq replay` or `eventsync dlq discard`",
        )
    described = store.accessor(change.type).type
    loaded = described.load(values, partial=True)
    before = readable_data(change, store)
    edited = [n for n, value in loaded.items() if n not in before or not same(before[n], value)]
    keys = [name for name in edited if name in described.keys]
    if keys:
        raise ConfigError(
            f"the edit changes {', '.join(keys)}, which is part of the key and cannot change",
            hint="discard the dead letter, and publish the record with the other key",
        )
    removed = [n for n in before if n not in loaded and n not in described.keys]
    if not edited and not removed:
        raise ConfigError(
            "the edit does not change a field, so nothing was changed",
            hint="to send the dead letter unchanged, use `eventsync dlq replay`",
        )
    for version in (change.version, read_current(store, change.type, change.key)[1]):
        if version is not None:
            _observe(clock, version)
    version = clock.tick()
    fresh: dict[str, Any] = {"version": version, "id": new_id(), "hops": 0, "ext": {}}
    if described.rule == "record":
        return change.replace(data=described.key_values(change.key) | loaded, **fresh), edited
    if change.version > version:
        if change.op == PUT:
            loaded = described.key_values(change.key) | loaded
        return change.replace(data=loaded, known=None, **fresh), [*loaded]
    kept = {n: value for n, value in loaded.items() if n not in edited and n not in described.keys}
    return change.replace(
        op=PATCH,
        data={name: loaded[name] for name in edited},
        known=_base_state(change, kept, edited),
        **fresh,
    ), edited


def signature_error(raw: bytes, keys: codec.Keyring | None) -> SignatureError | None:
    """Return why the signature of an envelope is not valid, or ``None`` if it is.

    ``keys``: the keys of this deployment; without keys, no envelope has to be signed.
    """
    if keys is None:
        return None
    try:
        keys.verify(raw)
    except SignatureError as error:
        return error
    return None


def readable_data(change: Change, store: Store) -> dict[str, Any]:
    """Return the data of a change, with each value coerced to the type of its field.

    A value that does not fit its field stays as it is. Fields that the record type lacks are left
    out.
    """
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
    """Return the base state of the new patch: the unedited fields with their old versions.

    ``change``: the old change. ``kept``: the values of its unedited fields. Returns ``None`` if
    ``change`` is a patch without a base state.
    """
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
        # The version is too far ahead of the clock, which may be why the change is a dead letter.
        # Let the clock stay as it is.
        return
