"""The last-write-wins merge: the state of a record, and the join of two states.

A ``State`` contains the stamp of the greatest put or delete that was seen, and the fields that were
patched after this put. ``join`` keeps the greater stamp and, for each field, the greatest version
above this stamp. ``join`` is commutative, associative and idempotent. Therefore stores converge,
even if changes arrive late, twice or in another order. Both merge rules use ``join``; under the
per-record rule there are no patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PATCH, UNSTAMPED, Stamp
from eventsync.values import packing

__all__ = ["State", "join"]


@dataclass(slots=True)
class State:
    """What a store, or a change, knows about one record.

    ``stamp``: the stamp of the greatest put or delete that was seen. ``versions``: the versions of
    the fields that were patched after this put; every other field has the version of the stamp.
    ``values``: the known field values. A field may have a version without a value, if the value was
    not kept. ``whole``: whether all values of the put are known. If true, a field without a value
    was not part of the put.
    """

    stamp: Stamp = UNSTAMPED
    versions: dict[str, Version] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def live(self) -> bool:
        """Whether the record exists: a put was seen, and no delete after this put."""
        return bool(self.stamp) and not self.stamp.deleted

    @property
    def version(self) -> bytes:
        """The greatest version in this state; ``b""`` if no change was seen."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))

    def version_of(self, name: str) -> bytes:
        """Return the version of the field ``name``; ``b""`` if no change of the field was seen."""
        return self.versions.get(name) or self.stamp[:16]

    def visible(self) -> dict[str, Any]:
        """Return the field values that a reader sees: ``values``, or ``{}`` if not ``live``."""
        return self.values if self.live else {}

    @classmethod
    def of(cls, change: Change) -> State:
        """Return the state that ``change`` describes. The base state of a patch is left out.

        Raises ``ValueRefusedError`` if the values of the change may not travel.
        """
        if change.op == PATCH:
            assert change.data is not None
            return cls(
                versions=dict.fromkeys(change.data, change.version), values=dict(change.data)
            )
        return cls(stamp=change.stamp, values=dict(change.data or ()), whole=True)

    @classmethod
    def of_known(cls, known: BaseState) -> State:
        """Return the state that ``known``, the base state of a patch, describes."""
        return cls(stamp=known.stamp, versions=dict(known.versions), values=dict(known.values))


def join(a: State, b: State) -> State:
    """Return a new state that merges ``a`` and ``b``. Does not alter ``a`` and ``b``.

    Commutative, associative and idempotent. The result leaves out the values of the smaller stamp
    and the patches at or below the greater stamp, because no later merge can make them visible
    again.
    """
    if a.stamp < b.stamp:
        a, b = b, a
    same = a.stamp == b.stamp
    floor = a.stamp[:16]
    joined = State(stamp=a.stamp, whole=a.whole or (same and b.whole))
    if not b.stamp and all(version > floor for version in a.versions.values()):
        # ``b`` has only patches, so the fields that ``b`` does not name stay as they are in ``a``.
        names = b.versions.keys() | b.values.keys()
        joined.versions = {n: v for n, v in a.versions.items() if n not in names}
        joined.values = {n: v for n, v in a.values.items() if n not in names}
    else:
        names = a.versions.keys() | b.versions.keys() | a.values.keys() | b.values.keys()
    for name in names:
        ours, theirs = a.version_of(name), b.version_of(name)
        candidates = []
        if ours >= floor:
            candidates.append((ours, a))
        if theirs > floor or (same and theirs == floor):
            candidates.append((theirs, b))
        if not candidates:
            continue
        top = max(version for version, _ in candidates)
        if top > floor:
            joined.versions[name] = Version(top)
        values = [
            side.values[name]
            for version, side in candidates
            if version == top and name in side.values
        ]
        if values:
            joined.values[name] = values[0] if len(values) == 1 else _greater(values[0], values[1])
    return joined


def _greater(one: Any, other: Any) -> Any:
    """Return the value with the greater digest, of two values with the same version.

    Any other order would work too, if every store used it.
    """
    if type(one) is type(other) and one == other:
        return one
    return max(one, other, key=lambda item: packing.digest({"": item}))
