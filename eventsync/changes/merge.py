"""The last-write-wins merge: the state of a record, and the join of two states.

A ``State`` has the greatest put or delete seen (its *stamp*) and the fields patched after it.
``join`` keeps the greater stamp and, for each field, the greatest version above that stamp. It is
commutative, associative and idempotent, so stores converge whatever the order, duplication or
delay of changes. Both merge rules use it: per record there are no patches.
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
    """Everything that a store or a change knows of one record.

    ``stamp``: the greatest put or delete seen. ``versions``: the versions of the fields patched
    after it; every other field has the version of the stamp. ``values``: the known field values; a
    field may have a version without a value if the value was not kept. ``whole``: whether all
    values of the put are known, so that a field without a value has none anywhere at that version.
    """

    stamp: Stamp = UNSTAMPED
    versions: dict[str, Version] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def live(self) -> bool:
        """Whether the record exists: a put was seen, and no later delete."""
        return bool(self.stamp) and not self.stamp.deleted

    @property
    def version(self) -> bytes:
        """The greatest version in this state; empty if nothing is known."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))

    def version_of(self, name: str) -> bytes:
        """Return the version of one field; empty if nothing is known of it."""
        return self.versions.get(name) or self.stamp[:16]

    def visible(self) -> dict[str, Any]:
        """Return the values that a reader sees; none if the record is not live."""
        return self.values if self.live else {}

    @classmethod
    def of(cls, change: Change) -> State:
        """Return the state that ``change`` describes, without its base state."""
        if change.op == PATCH:
            assert change.data is not None
            return cls(
                versions=dict.fromkeys(change.data, change.version), values=dict(change.data)
            )
        return cls(stamp=change.stamp, values=dict(change.data or ()), whole=True)

    @classmethod
    def of_known(cls, known: BaseState) -> State:
        """Return the state that a base state describes."""
        return cls(stamp=known.stamp, versions=dict(known.versions), values=dict(known.values))


def join(a: State, b: State) -> State:
    """Return the merge of two states. Neither is altered.

    Commutative, associative and idempotent. The values of the older stamp are dropped, and so are
    patches at or below the greater stamp: no later merge could make them visible again.
    """
    if a.stamp < b.stamp:
        a, b = b, a
    same = a.stamp == b.stamp
    floor = a.stamp[:16]
    joined = State(stamp=a.stamp, whole=a.whole or (same and b.whole))
    if not b.stamp and all(version > floor for version in a.versions.values()):
        # ``b`` has only patches: every field that it does not name stays as it is in ``a``.
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
    """Return the winner of two values of one version: that with the greater digest.

    Any order would do, as long as every store uses the same one.
    """
    if type(one) is type(other) and one == other:
        return one
    return max(one, other, key=lambda item: packing.digest({"": item}))
