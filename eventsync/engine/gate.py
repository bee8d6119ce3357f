"""The gate: the pure functions that decide what changes do to one record of a store.

Input is what the store holds of the record and the changes that arrived. Output is a ``Decision``:
an outcome for each change, and what to write. Nothing here reads or writes a store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, Stamp
from eventsync.errors import ChangeRefusedError, DependencyError
from eventsync.index import Entry, Presence
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = [
    "APPLIED",
    "UNVERSIONED",
    "Decision",
    "Outcome",
    "Verdict",
    "decide",
    "decide_one",
    "decide_patches",
    "decide_put_or_delete",
]

UNVERSIONED: Final = Stamp(bytes(16) + b"\x01" + bytes(32))
"""The stamp of a record that eventsync finds in a store for the first time.

It is older than the stamp of every change.
"""


class Outcome(StrEnum):
    """What became of one change at one store."""

    APPLIED = "applied"
    """It won. The store now holds its values, as far as its view covers them."""
    SUPERSEDED = "superseded"
    """A later change of the same record came in the same batch."""
    STALE = "stale"
    """The store already holds a later change of the record."""
    DUPLICATE = "duplicate"
    """The store already holds this change."""
    PENDING = "pending"
    """Its values are kept in the index. The record is not written until the rest is known."""
    HELD = "held"
    """It is retried later: its version lies in the future, or it depends on another record."""
    REJECTED = "rejected"
    """It cannot be applied. It becomes a dead letter with its reason."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """The outcome of one change.

    ``collision``: another change has the same version. ``error``: why the change is held.
    """

    outcome: Outcome
    collision: bool = False
    error: DependencyError | None = None


@dataclass(slots=True)
class Decision:
    """What to do with one record.

    - ``verdicts``: one for each change, in their order.
    - ``entry``: the new index entry; ``None`` leaves record and entry as they are.
    - ``write``: the field values to write. Those that change if the store has the record,
      otherwise all.
    - ``remove``: whether to remove the record from the store.
    - ``altered``: whether ``write`` differs from the body of the change that won.
    - ``row``: the field values that the store held before, ``None`` if none or if they were not
      read.
    """

    verdicts: list[Verdict]
    entry: Entry | None = None
    write: Mapping[str, Any] | None = None
    remove: bool = False
    altered: bool = False
    row: Mapping[str, Any] | None = field(default=None, repr=False)


# Looking up a member of an enumeration is slow in Python 3.11. The hot path uses these constants.
_WON: Final = Outcome.APPLIED
_PRESENT: Final = Presence.PRESENT
_LOST: Final = (Outcome.STALE, Outcome.DUPLICATE)
_STALE: Final = Verdict(Outcome.STALE)
_DUPLICATE: Final = Verdict(Outcome.DUPLICATE)
APPLIED: Final = Verdict(_WON)
"""The verdict on a change that won without a collision."""


# -- the per-record rule --------------------------------------------------------------------------


def decide_put_or_delete(current: Stamp | None, change: Change, view: BoundView) -> Decision:
    """Decide under the per-record rule: the greatest stamp wins. The row is not needed.

    ``current``: the stamp in the record's index entry, ``None`` if there is no entry. Raises
    ``ChangeRefusedError`` for a patch, and for a put that lacks a field without default.
    """
    if change.op == PATCH:
        raise ChangeRefusedError(
            f"a patch of {change.type} {change.key!r} was refused, because {change.type} is "
            "merged per record",
            reason="patch-refused",
            hint='declare the record type with rule="field", or publish whole records',
        )
    stamp = change.stamp
    verdict = _compare_stamps(stamp, current)
    if verdict.outcome is not _WON:
        return Decision([verdict])
    if change.op == DELETE:
        return Decision([verdict], Entry(stamp, Presence.DELETED), remove=True)
    data = change.data
    assert data is not None
    values = _whole_record(data, view, change.key)
    if not view.matches(values):
        return Decision([verdict], Entry(stamp, Presence.FILTERED_OUT), remove=True)
    altered = view.partial or not change.exact or len(values) != len(data)
    return Decision([verdict], Entry(stamp, _PRESENT), write=values, altered=altered)


def _compare_stamps(stamp: Stamp, current: Stamp | None) -> Verdict:
    """Return the verdict on a put or delete by its place in the total order of stamps."""
    if current is None:
        return APPLIED
    if stamp[:16] != current[:16]:
        return APPLIED if stamp > current else _STALE
    if stamp == current:
        return _DUPLICATE
    # Two different changes have one version. The rest of the stamp makes every store pick the same.
    return Verdict(Outcome.APPLIED if stamp > current else Outcome.STALE, collision=True)


def _whole_record(data: Mapping[str, Any], view: BoundView, key: str) -> Mapping[str, Any]:
    """Return the values of a put with the key fields, and defaults for the fields it lacks."""
    record_type = view.record_type
    if len(data) == len(record_type.fields):
        return data  # undeclared fields were dropped before, so these are all fields
    values = {**data, **record_type.key_values(key)}
    for name in view.needed:
        if name not in values:
            values[name] = _default_of(name, view, key)
    return values


# -- the per-field rule ---------------------------------------------------------------------------


def decide(
    entry: Entry | None,
    row: Mapping[str, Any] | None,
    changes: Sequence[Change],
    view: BoundView,
    key: str,
    *,
    final: bool = False,
) -> Decision:
    """Decide under the per-field rule on all ``changes`` of one record at once.

    ``entry``: the record's index entry. ``row``: the field values that the store holds of it.
    Either is ``None`` if there is none. ``final``: no other store knows more than ``changes``, so a
    field that is still missing takes its default.

    Raises ``ChangeRefusedError`` for a put that lacks a field without default.
    """
    before = _state_before(entry, row, view)
    after, verdicts = _merge(before, changes, view, is_present=row is not None)
    if final:
        after.whole = True
    elif all(verdict.outcome in _LOST for verdict in verdicts):
        pending = entry is not None and entry.presence is Presence.PENDING
        # A pending record may have gained a value at a version that it had already.
        if not pending or after == before:
            return Decision(verdicts)
    _drop_unneeded(after, view)
    if entry is None and not after.stamp and not after.versions:
        return Decision(verdicts)  # the changes name none of this store's fields
    decision = _decide_presence(after, row, verdicts, view, key)
    if entry is not None and row is not None and decision.entry is not None:
        decision.entry.echo = entry.echo
    return decision


def decide_patches(
    entry: Entry | None, changes: Sequence[Change], view: BoundView
) -> Decision | None:
    """Return what ``decide`` would, without the row, or ``None`` where that needs the row.

    This fast path covers a record that is present, and patches that win in all their fields. The
    view must be neither partial nor filtered. ``write`` then has all patched values, also those
    that the row has already.

    A base state is ignored if none of its versions is later than the entry's: then the store has
    seen those values, even if a foreign write has replaced them since.
    """
    if entry is None or entry.presence is not _PRESENT or entry.deferred or not entry.whole:
        return None
    floor = entry.stamp[:16]
    versions, write = dict(entry.versions), {}
    for change in changes:
        version, data = change.version, change.data
        if change.op != PATCH or not data:
            return None
        for name, value in data.items():
            if version <= versions.get(name, floor):
                return None
            versions[name] = version
            write[name] = value
        known = change.known
        if known is not None and (
            known.stamp > entry.stamp
            or any(version > versions.get(name, floor) for name, version in known.versions.items())
        ):
            return None
    if not versions.keys() <= view.wanted:
        return None
    return Decision([APPLIED] * len(changes), Entry(entry.stamp, _PRESENT, versions), write)


def decide_one(
    entry: Entry | None, row: Mapping[str, Any] | None, change: Change, view: BoundView
) -> Decision:
    """Decide on one change that was made in this very store, under the rule of its type."""
    if view.record_type.rule == "record":
        return decide_put_or_delete(None if entry is None else entry.stamp, change, view)
    # The first change of a row without entry tells all of it, even if only its key has a value.
    first = entry is None and row is not None
    return decide(entry, row, [change], view, change.key, final=first)


def _state_before(entry: Entry | None, row: Mapping[str, Any] | None, view: BoundView) -> State:
    """Return what the store knows of the record before the changes."""
    values = {} if row is None else _without_key(row, view)
    if entry is None:
        return State() if row is None else State(UNVERSIONED, values=values, whole=True)
    is_present = entry.presence is _PRESENT and row is not None
    return State(
        stamp=entry.stamp,
        versions=dict(entry.versions),
        values={**entry.deferred, **values},
        whole=is_present or (entry.presence is Presence.PENDING and entry.whole),
    )


def _without_key(values: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    keys = view.record_type.keys
    return {name: value for name, value in values.items() if name not in keys}


def _merge(
    before: State, changes: Sequence[Change], view: BoundView, *, is_present: bool
) -> tuple[State, list[Verdict]]:
    """Merge ``changes`` into ``before``. Return the merged state, and a verdict on each change."""
    state, verdicts = before, []
    for change in changes:
        merged = join(state, State.of(change))
        if change.known is not None:
            merged = _with_base_state(merged, State.of_known(change.known), view, is_present)
        if change.op == PATCH:
            verdicts.append(_verdict_on_patch(change, state, merged, view))
        else:
            verdicts.append(_compare_stamps(change.stamp, state.stamp))
        state = merged
    return state, verdicts


def _with_base_state(state: State, base: State, view: BoundView, is_present: bool) -> State:
    """Return ``state`` with the base state of a patch, unless fields would then be missing.

    The base state may name a put that this store has not received. If the origin holds fewer fields
    than this store, taking it would turn a complete record into a pending one. Then the store waits
    for the put itself.
    """
    merged = join(state, base)
    is_complete = is_present and not _missing_fields(state, view)
    if is_complete and merged.live and _missing_fields(merged, view):
        return state
    return merged


def _verdict_on_patch(patch: Change, before: State, after: State, view: BoundView) -> Verdict:
    """Return the verdict on a patch by what its merge changed in the fields this store needs."""
    needed = view.needed
    if after.stamp > before.stamp or any(
        after.version_of(name) > before.version_of(name) for name in needed
    ):
        return APPLIED
    patched = State.of(patch)
    if patch.known is not None:
        patched = join(patched, State.of_known(patch.known))
    if patched.versions and patched.values.keys().isdisjoint(needed):
        return APPLIED  # it names none of this store's fields, so there is nothing to write
    # No version grew. A value that changed all the same has the same version as the one before.
    replaced = any(
        name in before.values and before.values[name] != after.values.get(name) for name in needed
    )
    added = any(name in after.values and name not in before.values for name in needed)
    if replaced or added:
        return Verdict(Outcome.APPLIED, collision=replaced)
    same_versions = all(
        before.version_of(name) == patched.version_of(name)
        for name in needed
        if name in patched.values
    )
    return _DUPLICATE if same_versions else _STALE


def _drop_unneeded(state: State, view: BoundView) -> None:
    """Drop the fields that this store neither holds nor filters by."""
    wanted = view.wanted
    state.values = {name: value for name, value in state.values.items() if name in wanted}
    state.versions = {name: version for name, version in state.versions.items() if name in wanted}


def _decide_presence(
    state: State, row: Mapping[str, Any] | None, verdicts: list[Verdict], view: BoundView, key: str
) -> Decision:
    """Decide where the record is from now on: deleted, pending, filtered out or present."""
    if not state.live:
        # A put that is older than these patches may still arrive. Their values then win over it.
        patched = {name: state.values[name] for name in state.versions if name in state.values}
        if not state.stamp:
            return _pending(state, row, verdicts, patched)
        entry = Entry(state.stamp, Presence.DELETED, state.versions, patched, state.whole)
        return Decision(verdicts, entry, remove=row is not None, row=row)
    if state.whole:
        _fill_defaults(state, view, key)
    if _is_filtered_out(state, view, key):
        judged = {name: state.values[name] for name in view.judged if name in state.values}
        entry = Entry(state.stamp, Presence.FILTERED_OUT, state.versions, judged, whole=False)
        return Decision(verdicts, entry, remove=row is not None, row=row)
    if _missing_fields(state, view):
        return _pending(state, row, verdicts, dict(state.values))
    return _present(state, row, verdicts, view, key)


def _pending(
    state: State,
    row: Mapping[str, Any] | None,
    verdicts: Sequence[Verdict],
    deferred: dict[str, Any],
) -> Decision:
    """Keep the values in the index, because the record cannot be written yet."""
    entry = Entry(state.stamp, Presence.PENDING, state.versions, deferred, state.whole)
    pending = [Verdict(Outcome.PENDING) if v.outcome is _WON else v for v in verdicts]
    return Decision(pending, entry, row=row)


def _present(
    state: State, row: Mapping[str, Any] | None, verdicts: list[Verdict], view: BoundView, key: str
) -> Decision:
    """Write the record: all its values if the store lacks it, otherwise those that differ."""
    values = state.values
    not_in_view = {name: value for name, value in values.items() if name not in view.names}
    entry = Entry(state.stamp, _PRESENT, state.versions, not_in_view, whole=True)
    in_view = {name: values[name] for name in view.fields if name in values}
    write: Mapping[str, Any] | None
    if row is None:
        write = view.record_type.key_values(key) | in_view
    else:
        write = {
            name: value
            for name, value in in_view.items()
            if name not in row or not same(row[name], value)
        } or None
    return Decision(verdicts, entry, write, row=row)


def _is_filtered_out(state: State, view: BoundView, key: str) -> bool:
    """Return whether the view's filter excludes the record. A value it needs may be unknown."""
    if view.where is None:
        return False
    values = view.record_type.key_values(key) | state.values
    return view.judged <= values.keys() and not view.matches(values)


def _missing_fields(state: State, view: BoundView) -> list[str]:
    """Return the needed fields whose value is unknown and that no default can fill."""
    fields = view.record_type.fields
    return [
        name
        for name in view.needed
        if name not in state.values
        # A field with a version of its own was patched: it has a value in some other store.
        and (not state.whole or name in state.versions or fields[name].required)
    ]


def _fill_defaults(state: State, view: BoundView, key: str) -> None:
    """Give the fields that nobody ever set their defaults."""
    for name in view.needed:
        if name not in state.values and name not in state.versions:
            state.values[name] = _default_of(name, view, key)


def _default_of(name: str, view: BoundView, key: str) -> Any:
    record_type = view.record_type
    if record_type.fields[name].required:
        raise ChangeRefusedError(
            f"a put of {record_type.name} {key!r} lacks the field {name!r}, "
            "which this store holds and which has no default",
            reason="incomplete",
            hint=f"give {name!r} a default, or publish the record with it",
        )
    return record_type.default_for(name)
