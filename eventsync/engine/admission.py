"""The limits beyond which a store does not apply a change, and their check before the gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.engine.gate import Outcome
from eventsync.engine.settled import Settled
from eventsync.engine.store import Store
from eventsync.errors import ChangeRefusedError, ClockDriftError, RecordError

__all__ = ["DEFAULT_LIMITS", "Admission", "Limits"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """The limits beyond which a store does not apply a change.

    - ``retention``: how many seconds tombstones are kept. A change older than ``retention`` minus
      ``drift`` is rejected, because the tombstone of its record may be gone already.
    - ``drift``: how many seconds a version may lie in the future. A later change is held.
    - ``hops``: how often a change may have been passed on from one synchronizer to another. A
      change with more hops is rejected.
    """

    retention: float = 10 * 86_400.0
    drift: float = 5.0
    hops: int = 8


DEFAULT_LIMITS: Final = Limits()


class Admission:
    """The checks of changes before the gate: record type, hops, and time. Reads no field values."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        now = clock.now()
        # A version from ``_oldest`` to ``_newest`` is neither too old nor too far in the future.
        oldest = max(0.0, now - limits.retention + limits.drift)
        self._oldest = Version.of(math.ceil(oldest * 1000))
        self._newest = Version.of(int((now + limits.drift) * 1000))

    def admitted(self, items: Iterable[Settled]) -> Iterator[Settled]:
        """Yield the items that pass all checks. Set ``outcome`` and ``error`` of the others."""
        accessors, hops = self._store.accessors, self._limits.hops
        oldest, newest = self._oldest, self._newest
        for item in items:
            change = item.change
            if (
                change.type in accessors
                and change.hops <= hops
                and oldest <= change.version <= newest
                and change.packed
            ) or self._admits(item):
                yield item

    def _admits(self, item: Settled) -> bool:
        """Return whether ``item`` passes all checks. If not, set its ``outcome`` and ``error``."""
        change = item.change
        try:
            if change.type not in self._store.accessors:
                raise self._unknown_type(change)
            if change.hops > self._limits.hops:
                raise self._too_many_hops(change)
            self._check_time(change)
            change.digest  # noqa: B018  # raises if the values may not travel
        except ClockDriftError as error:
            item.error = error
        except (ChangeRefusedError, RecordError) as error:
            item.outcome, item.error = Outcome.REJECTED, error
        else:
            return True
        return False

    def _check_time(self, change: Change) -> None:
        limits = self._limits
        self._clock.check_drift(change.version, max_drift=limits.drift)
        age = self._clock.now() - change.version.millis / 1000
        if age > limits.retention - limits.drift:
            raise ChangeRefusedError(
                f"the change of {change.type} {change.key!r} is {age / 86_400:.1f} days old, but "
                f"tombstones are kept for {limits.retention / 86_400:g} days; the change might "
                "bring a deleted record back",
                reason="too-old",
                hint="bring the store up to date with eventsync sync",
            )

    def _unknown_type(self, change: Change) -> ChangeRefusedError:
        types = ", ".join(self._store.accessors)
        return ChangeRefusedError(
            f"store {self._store.name!r} holds no records of type {change.type!r}",
            reason="unknown-type",
            hint=f"the store holds {types}; add an accessor for the type, or correct the producer",
        )

    def _too_many_hops(self, change: Change) -> ChangeRefusedError:
        return ChangeRefusedError(
            f"the change of {change.type} {change.key!r} was passed on {change.hops} times; "
            f"the limit is {self._limits.hops}",
            reason="hops",
            hint="probably two synchronizers send each other's changes back; "
            "see 'Echo' in docs/concepts.md",
        )
