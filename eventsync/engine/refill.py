"""The loss of a store as a whole, such as a flushed cache, and the refill from other stores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from eventsync.changes.change import Change
from eventsync.engine.apply import DEFAULT_LIMITS, Limits, Settled, apply
from eventsync.engine.capture import ALLOWED_DELETES
from eventsync.engine.gate import Outcome
from eventsync.engine.isolation import Done, isolate
from eventsync.engine.store import Store
from eventsync.errors import StoreError, StoreUnavailableError
from eventsync.index import Presence
from eventsync.values.chunk import chunked

__all__ = ["Refill", "how_to_fill", "loss_of", "note_filled"]

_CHUNK: Final = 1000
_LOST: Final = "lost"
_FILLED: Final = "filled"
_BEHIND: Final = "behind "


def loss_of(store: Store, type: str) -> str | None:
    """Return what shows that ``store`` lost its records of a type as a whole, else ``None``.

    A loss that was noticed lasts until a synchronization or a refill has ended.
    """
    if (found := store.accessors[type].loss()) is not None:
        return found
    if lacking := store.replicas[type].lacking:
        return f"{lacking} known records of {type} were missing when the store was last read"
    if store.index.load_mark(_mark(type)) == _LOST:
        return f"the store lost its records of {type}, and was not filled again since"
    return None


def how_to_fill(store: Store, type: str) -> str:
    """Return what to do about a loss, as the second half of a sentence."""
    if store.refill:
        return "its worker fills it from the other stores"
    return (
        "nothing was deleted elsewhere; to fill the store again, run: "
        f"eventsync sync --to {store.name} --records {type}"
    )


def note_filled(store: Store, type: str) -> None:
    """Note that all records of a type were copied to ``store`` from a store that holds them.

    If known records are still missing, ``Replica.lacking`` stays, so that they are not deleted
    elsewhere.
    """
    replica = store.replicas[type]
    if replica.lacking:
        known = store.index.entries(type, presence=Presence.PRESENT)
        if not any(replica.absent([key for key, _ in some]) for some in chunked(known, _CHUNK)):
            replica.lacking = 0
    if store.refill or store.index.load_mark(_mark(type)) == _LOST:
        store.index.save_mark(_mark(type), _FILLED)


class Refill:
    """Notices the loss of the records of one type in a store, and fills them in again.

    The sources are only read: neither captured nor changed. What a source itself lacks is not
    copied and not deleted. All progress is kept in marks of the store's own index, which are lost
    with that index. Therefore a refill that was interrupted continues, and a store that was emptied
    once more is filled from the start.

    ``peers``: the other stores. ``limits``: as in ``apply``; ``retention`` is ignored.
    """

    def __init__(
        self, store: Store, type: str, peers: Sequence[Store], *, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._store = store
        self._type = type
        self._replica = store.replicas[type]
        self._peers = [peer for peer in peers if peer is not store and type in peer.accessors]
        # The changes are the current state of a source, so an old version is no old change.
        self._limits = replace(limits, retention=math.inf)
        self.rejected: list[Settled] = []
        """The changes that the store refused during this refill."""

    @property
    def is_due(self) -> bool:
        """Whether the store was never filled, or lost its records since."""
        mark = self._store.index.load_mark(_mark(self._type))
        return mark != _FILLED and not mark.startswith(_BEHIND)

    @property
    def behind_since(self) -> float | None:
        """When the refill began after which ``note_behind`` was called, else ``None``."""
        mark = self._store.index.load_mark(_mark(self._type))
        return float(mark.removeprefix(_BEHIND)) if mark.startswith(_BEHIND) else None

    def note_behind(self, since: float) -> None:
        """Note that sources lacked changes when the refill began at ``since`` (epoch seconds).

        The lost store may have been the origin of these changes, and then nobody sends them again.
        So the store has to be filled once more when the sources have them.
        """
        self._store.index.save_mark(_mark(self._type), f"{_BEHIND}{since}")

    def is_for_the_guard(self) -> bool:
        """Return whether only a capture says that records are missing, which then reports it."""
        is_noted = self._store.index.load_mark(_mark(self._type)) == _LOST
        return not is_noted and self._replica.accessor.loss() is None

    def notice(self) -> str | None:
        """Return ``loss_of`` the store, and note a loss durably. Changes no record and no version.

        If the index was lost as well, go on with the new one.
        """
        replica, index = self._replica, self._store.index
        if replica.accessor.loss() is not None:
            if missing := self._missing():
                # Changes that are applied from now on must not hide the loss.
                replica.lacking = max(missing, replica.lacking)
            elif not self._lacks_a_sample():
                # The index is new, as after FLUSHALL. Another worker may have noticed that before,
                # and may even have filled the store again; the mark then says so.
                if not index.load_mark(_mark(self._type)):
                    index.save_mark(_mark(self._type), _LOST)
                replica.accessor.accept_loss()
        elif replica.lacking and not self._store.capture_every and self._has_all():
            replica.lacking = 0  # somebody has restored the records
        return loss_of(self._store, self._type)

    def accept_loss(self) -> None:
        """Forget the versions of the records that are gone, so that they can be written again.

        Publishes nothing. Idempotent. Does nothing if the store has not lost most of its records.
        """
        if self._replica.lacking or self._missing():
            # Before anything else: if the process dies now, the next one begins from the start.
            self._store.index.save_mark(_mark(self._type), _LOST)
            self._forget_progress()
            self._replica.accessor.accept_loss()
            known = self._store.index.entries(self._type, presence=Presence.PRESENT)
            for entries in chunked(known, _CHUNK):
                self._replica.forget_missing([key for key, _ in entries], deletes=ALLOWED_DELETES)
            # None of the missing records is known any more.
            self._replica.lacking = 0

    def slices(self) -> Iterator[int]:
        """Copy the records from the other stores, some at a time. Yield how many were read.

        Between two slices nothing is locked. Raises ``StoreError`` if no other store can fill this
        one, and ``StoreUnavailableError`` if one of them is unreachable; call the method again
        later.
        """
        index, held = self._store.index, 0
        for peer in self._sources():
            mark = _mark(self._type, peer)
            entries = peer.index.entries(self._type, after=index.load_mark(mark))
            for chunk in chunked(entries, _CHUNK):
                keys = [key for key, _ in chunk]
                held += self._copy(peer, keys)
                index.save_mark(mark, keys[-1])
                yield len(keys)
        self._forget_progress()
        if held:
            raise StoreError(
                f"store {self._store.name!r}: {held} records of {self._type} refer to records that "
                "are not there yet",
                hint="the refill is repeated; it needs the types that they refer to in this store",
            )
        note_filled(self._store, self._type)

    def _sources(self) -> list[Store]:
        """Return the peers that hold the records. Raises ``StoreError`` if there are none."""
        losses = {peer.name: loss_of(peer, self._type) for peer in self._peers}
        sources = [peer for peer in self._peers if losses[peer.name] is None]
        if sources:
            return sources
        why = "; ".join(f"store {name!r}: {loss}" for name, loss in losses.items())
        raise StoreError(
            f"no other store can fill the records of {self._type} in store {self._store.name!r}: "
            + (why or "none holds this type"),
            hint="restore one of the stores" if why else "declare the store without refill=True",
        )

    def _copy(self, peer: Store, keys: Sequence[str]) -> int:
        """Write the records with these keys as ``peer`` holds them. Return how many must wait."""
        changes: list[Change] = []
        for part in isolate(keys, peer.replicas[self._type].states):
            if isinstance(part, Done):  # else the peer's own capture reports the record
                changes += part.result
        held = 0
        for settled in apply(self._store, changes, clock=self._store.clock, limits=self._limits):
            if settled.outcome is Outcome.REJECTED:
                self.rejected.append(settled)
            held += settled.outcome is Outcome.HELD
        return held

    def _missing(self) -> int:
        """Return how many of the records that the index knows are missing; 0 if few are."""
        replica = self._replica
        known = self._known()
        if not known or replica.accessor.forgets:
            return 0
        try:
            here = replica.count()
        except StoreUnavailableError:
            if replica.accessor.loss() is None:
                raise
            here = 0  # for example a folder that was removed
        return known - here if known - here > replica.allowed_deletes(ALLOWED_DELETES) else 0

    def _has_all(self) -> bool:
        """Return whether the store holds as many records as the index knows."""
        return self._replica.count() >= self._known()

    def _known(self) -> int:
        return self._store.index.counts(self._type)[Presence.PRESENT]

    def _lacks_a_sample(self) -> bool:
        """Return whether most of the first records that the index knows are missing."""
        sample = self._store.index.scan(self._type, presence=Presence.PRESENT, limit=_CHUNK)
        return len(self._replica.absent([key for key, _ in sample])) > len(sample) // 2

    def _forget_progress(self) -> None:
        for peer in self._peers:
            self._store.index.save_mark(_mark(self._type, peer), "")


def _mark(type: str, peer: Store | None = None) -> str:
    """Return the name of the mark for the state of a type, or for the progress with one peer."""
    return f"refill/{type}" if peer is None else f"refill/{type}/{peer.name}"
