"""Last-write-wins merge: what is known of a record, and the rule by which knowledge is merged.

Both merge rules of the consistency model are one algebra here. What is known of a record is a
``State``: the greatest put or delete seen (its *stamp*), and the fields patched after it. ``join``
takes the greater stamp whole, and of each field the greatest version that lies above that stamp;
so it is commutative, associative and idempotent, and stores converge whatever the order,
duplication or delay. The per-record rule is the same algebra without patches.
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
    """All that is known of one record somewhere.

    ``stamp``: the greatest put or delete seen. ``versions``: those of the fields patched above that
    stamp; every other field is as old as the stamp. ``values``: what is known of field values; a
    field may have a version and no value where the value was not kept. ``whole``: the body of the
    put was seen itself, so a field without a value has none anywhere at that version.
    """

    stamp: Stamp = UNSTAMPED
    versions: dict[str, Version] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def live(self) -> bool:
        """Whether the record exists: a put was seen, and no delete above it."""
        return bool(self.stamp) and not self.stamp.deleted

    @property
    def version(self) -> bytes:
        """The greatest version in it; empty when nothing is known."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))

    def version_of(self, name: str) -> bytes:
        """The version of one field; empty when nothing is known of it."""
        return self.versions.get(name) or self.stamp[:16]

    def visible(self) -> dict[str, Any]:
        """The values that a reader sees: none of a record that is not live."""
        return self.values if self.live else {}

    @classmethod
    def of(cls, change: Change) -> State:
        """What ``change`` says by itself, without what its origin knew beside it."""
        if change.op == PATCH:
            assert change.data is not None
            return cls(
                versions=dict.fromkeys(change.data, change.version), values=dict(change.data)
            )
        return cls(stamp=change.stamp, values=dict(change.data or ()), whole=True)

    @classmethod
    def of_known(cls, known: BaseState) -> State:
        """What the origin of a patch held beside the patch."""
        return cls(stamp=known.stamp, versions=dict(known.versions), values=dict(known.values))


def join(a: State, b: State) -> State:
    """The least state that holds all that ``a`` and ``b`` hold. Neither is altered.

    Commutative, associative and idempotent. Values of the older of two stamps are dropped, as are
    patches at or below the greater stamp: no later merge could make them visible again.
    """
    if a.stamp < b.stamp:
        a, b = b, a
    same = a.stamp == b.stamp
    floor = a.stamp[:16]
    joined = State(stamp=a.stamp, whole=a.whole or (same and b.whole))
    if not b.stamp and all(version > floor for version in a.versions.values()):
        # What is but patched keeps all that the patches do not name: most of a record, mostly.
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
    """The winner of two values of one version: any fixed order will do, and digests give one."""
    if type(one) is type(other) and one == other:
        return one
    return max(one, other, key=lambda item: packing.digest({"": item}))
