"""The gate: the pure functions that decide what changes do to one record of a store.

The input is what the store and its index hold of the record, and the changes that arrived. The
output is a ``Decision``: an outcome for each change, and what to write. No function of this module
reads or writes a store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, PUT, Stamp
from eventsync.engine.fingerprint import changed_fields, unset_fields, without_new_fields
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
    "lacks_fields",
]

UNVERSIONED: Final = Stamp(bytes(16) + b"\x01" + bytes(32))
"""The stamp of a record that the store held before eventsync knew it.

This stamp is smaller than the stamp of every change.
"""


class Outcome(StrEnum):
    """The result of applying one change to one store."""

    APPLIED = "applied"
    """The change won. The store now holds those of its values that the store's view covers."""
    SUPERSEDED = "superseded"
    """The same batch contained a later change of the same record."""
    STALE = "stale"
    """The store has already applied a later change of the record."""
    DUPLICATE = "duplicate"
    """The store has already applied this change."""
    PENDING = "pending"
    """The index keeps the values. The record is written when its other fields are known."""
    HELD = "held"
    """The change is retried later: its version is in the future, or another record is missing."""
    REJECTED = "rejected"
    """The change can never be applied. It becomes a dead letter with a reason."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """The outcome of one change, with details.

    ``collision``: whether a different change has the same version. ``error``: the reason why the
    change is held; ``None`` for any other outcome.
    """

    outcome: Outcome
    collision: bool = False
    error: DependencyError | None = None


@dataclass(slots=True)
class Decision:
    """What to do with one record.

    - ``verdicts``: one verdict for each change, in the order of the changes.
    - ``entry``: the new index entry; ``None`` to leave record and entry unchanged.
    - ``write``: the field values to write; ``None`` to write nothing. If the store holds the
      record, only the values that differ; otherwise all values.
    - ``remove``: whether to remove the record from the store.
    - ``altered``: whether ``write`` differs from the body of the change that won.
    - ``row``: the field values that the store held before; ``None`` if the store held no record, or
      if the record was not read.
    - ``unversioned``: the names of the fields that keep their values although the change is a put.
      No fingerprint covers them, so capture finds them as foreign writes.
    """

    verdicts: list[Verdict]
    entry: Entry | None = None
    write: Mapping[str, Any] | None = None
    remove: bool = False
    altered: bool = False
    row: Mapping[str, Any] | None = field(default=None, repr=False)
    unversioned: frozenset[str] = frozenset()


# Python 3.11 looks up members of an enumeration slowly, so frequent code uses these constants.
_WON: Final = Outcome.APPLIED
_PRESENT: Final = Presence.PRESENT
_LOST: Final = (Outcome.STALE, Outcome.DUPLICATE)
_STALE: Final = Verdict(Outcome.STALE)
_DUPLICATE: Final = Verdict(Outcome.DUPLICATE)
APPLIED: Final = Verdict(_WON)
"""The verdict for a change that won without a collision."""


# -- the per-record rule --------------------------------------------------------------------------


def decide_put_or_delete(
    current: Stamp | None,
    change: Change,
    view: BoundView,
    *,
    entry: Entry | None = None,
    row: Mapping[str, Any] | None = None,
) -> Decision:
    """Decide about one change under the per-record rule: the greatest stamp wins.

    ``current``: the stamp in the record's index entry; ``None`` if there is no entry. ``entry`` and
    ``row``: as in ``decide``; needed only if ``lacks_fields(change, view)``. Raises
    ``ChangeRefusedError`` if ``change`` is a patch, or a put without a value for a field that has
    no default.
    """
    if change.op == PATCH:
        raise ChangeRefusedError(
            f"the patch of {change.type} {change.key!r} was refused, because records of type "
            f"{change.type} merge per record and take only puts and deletes",
            reason="patch-refused",
            hint='declare the record type with rule="field" everywhere, or publish puts of whole '
            "records",
        )
    stamp = change.stamp
    verdict = _compare_stamps(stamp, current)
    if verdict.outcome is not _WON:
        return Decision([verdict])
    if change.op == DELETE:
        return Decision([verdict], Entry(stamp, Presence.DELETED), remove=True)
    data = change.data
    assert data is not None
    kept = {} if row is None else _kept_beside(change, entry, row, view)
    values = _whole_record({**data, **kept} if kept else data, view, change.key, row)
    if view.excludes(values):
        return Decision([verdict], Entry(stamp, Presence.FILTERED_OUT), remove=True)
    if kept:
        write = {n: v for n, v in values.items() if n not in kept and not _holds(row, n, v)}
        return Decision(
            [verdict],
            Entry(stamp, _PRESENT),
            write=write or None,
            altered=True,
            row=row,
            unversioned=frozenset(kept),
        )
    altered = view.partial or not change.exact or len(values) != len(data)
    return Decision([verdict], Entry(stamp, _PRESENT), write=values, altered=altered)


def _compare_stamps(stamp: Stamp, current: Stamp | None) -> Verdict:
    """Return the verdict for a put or delete.

    ``stamp``: the stamp of the change. ``current``: the stamp that the store has; ``None`` if none.
    """
    if current is None:
        return APPLIED
    if stamp[:16] != current[:16]:
        return APPLIED if stamp > current else _STALE
    if stamp == current:
        return _DUPLICATE
    # Two different changes have the same version. Kind and digest decide, the same in every store.
    return Verdict(Outcome.APPLIED if stamp > current else Outcome.STALE, collision=True)


def lacks_fields(change: Change, view: BoundView) -> bool:
    """Return whether ``change`` is a put without a value for a field that the store needs."""
    data = change.data
    return change.op == PUT and data is not None and any(name not in data for name in view.needed)


def _kept_beside(
    change: Change, entry: Entry | None, row: Mapping[str, Any], view: BoundView
) -> dict[str, Any]:
    """Return the values of ``row`` that a put without these fields does not replace.

    These are values that nobody has versioned, and all values if the put comes from a producer
    whose record type is older.
    """
    data = change.data or {}
    absent = {name: row[name] for name in view.needed if name in row and name not in data}
    if not absent or entry is None or change.schema < view.record_type.schema:
        return absent
    versioned = without_new_fields(entry, row, view)
    return absent if versioned is None else {n: v for n, v in absent.items() if n not in versioned}


def _holds(row: Mapping[str, Any] | None, name: str, value: Any) -> bool:
    return row is not None and name in row and same(row[name], value)


def _whole_record(
    data: Mapping[str, Any], view: BoundView, key: str, row: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Return the values of a put, completed with the key fields and with defaults.

    ``row``: the field values that the store holds; ``None`` if it does not hold the record. A
    record that it holds is not judged by the default of a field that it does not hold.

    Raises ``ChangeRefusedError`` if a missing field has no default.
    """
    record_type = view.record_type
    if len(data) == len(record_type.fields):
        return data  # the data contain no undeclared fields here, so no field is missing
    values = {**data, **record_type.key_values(key)}
    for name in view.needed:
        if name not in values and (row is None or name in view.names):
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
    """Decide under the per-field rule about all ``changes`` of one record together.

    ``entry``: the record's index entry; ``None`` if it has none. ``row``: the field values that the
    store holds; ``None`` if it does not hold the record. ``final``: whether no store knows more
    about the record than ``changes``; a field that is still missing then gets its default.

    Raises ``ChangeRefusedError`` if the record's put has no value for a needed field without
    default.
    """
    unset = {} if entry is None or row is None else unset_fields(entry, row, view)
    before = _state_before(entry, row, view, unset)
    after, verdicts = _merge(before, changes, view, is_present=row is not None)
    if final:
        after.whole = True
    elif all(verdict.outcome in _LOST for verdict in verdicts):
        pending = entry is not None and entry.presence is Presence.PENDING
        # A pending record may have gained a value, although no version has grown.
        if not pending or after == before:
            return Decision(verdicts)
    if entry is not None and row is not None:
        _keep_foreign(after, before, entry, row, view)
        _keep_unset(after, before, unset, view)
        if any(verdict.collision for verdict in verdicts):
            verdicts = _judged_without_foreign(before, changes, entry, row, view)
    _drop_unneeded(after, view)
    if entry is None and not after.stamp and not after.versions:
        return Decision(verdicts)  # the store's view covers no field of these changes
    decision = _decide_presence(after, row, verdicts, view, key)
    if entry is not None and row is not None and decision.entry is not None:
        decision.entry.echo = entry.echo
    return decision


def decide_patches(
    entry: Entry | None, changes: Sequence[Change], view: BoundView
) -> Decision | None:
    """Return the decision of ``decide`` without reading the row, or ``None`` if the row is needed.

    Fast path for a record that is present, and for patches that win in all their fields. The view
    must be neither partial nor filtered. Unlike in ``decide``, ``Decision.write`` contains every
    patched value, even if the row contains the same value already.

    The base state of a patch is ignored if no version in it is later than in ``entry``. The store
    has then seen these values, even if a foreign write has replaced them since.
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
    """Decide about one change that this store itself made, under the merge rule of its type."""
    if view.record_type.rule == "record":
        current = None if entry is None else entry.stamp
        return decide_put_or_delete(current, change, view, entry=entry, row=row)
    # The first change of a row without an entry describes the whole row, so no value can arrive
    # later.
    first = entry is None and row is not None
    return decide(entry, row, [change], view, change.key, final=first)


def _state_before(
    entry: Entry | None,
    row: Mapping[str, Any] | None,
    view: BoundView,
    unset: Collection[str] = (),
) -> State:
    """Return what the store knew about the record before the changes arrived.

    ``unset``: the names of the fields of ``row`` that are unset, so that their values do not count.
    """
    values = {} if row is None else _without_key(row, view)
    for name in unset:
        values.pop(name, None)
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
    """Return ``before`` merged with ``changes``, and a verdict for each change.

    ``is_present``: whether the store holds the record.
    """
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
    """Return ``state`` merged with ``base``, the base state of a patch, if that loses no field.

    The base state may contain the stamp of a put that this store has not received. If the origin
    holds fewer fields than this store, a merge would turn a complete record into a pending one. In
    this case return ``state`` unchanged; the put itself will arrive later.
    """
    merged = join(state, base)
    is_complete = is_present and not _missing_fields(state, view)
    if is_complete and merged.live and _missing_fields(merged, view):
        return state
    return merged


def _keep_foreign(
    state: State, before: State, entry: Entry, row: Mapping[str, Any], view: BoundView
) -> None:
    """Put the values of foreign writes that have no version yet into ``state``, in place.

    ``before``: the state without the changes that are decided about. A foreign write is replaced
    only by a later version of its field, never by the value that it replaced, nor by a default.
    """
    differing = [
        name
        for name, held in row.items()
        if name not in state.values
        or (
            state.version_of(name) == before.version_of(name) and not same(state.values[name], held)
        )
    ]
    if differing:
        foreign = changed_fields(entry, row, view)
        state.values.update({name: row[name] for name in differing if name in foreign})


def _keep_unset(state: State, before: State, unset: Mapping[str, Any], view: BoundView) -> None:
    """Put the values of unset fields into ``state``, in place, where no store has a value.

    ``before``: as in ``_keep_foreign``. A default, or an absent value, does not replace what fills
    the field in this store.
    """
    for name, held in unset.items():
        if name in state.values and (
            held is None
            or state.version_of(name) != before.version_of(name)
            or not view.fills_in(name, state.values[name])
        ):
            continue
        state.values[name] = held


def _judged_without_foreign(
    before: State, changes: Sequence[Change], entry: Entry, row: Mapping[str, Any], view: BoundView
) -> list[Verdict]:
    """Return the verdicts for ``changes`` as if nobody else had written to the record.

    A foreign write has no version yet, so its value is no second value of the version of its field.
    """
    foreign = changed_fields(entry, row, view)
    values = {name: value for name, value in before.values.items() if name not in foreign}
    return _merge(replace(before, values=values), changes, view, is_present=True)[1]


def _verdict_on_patch(patch: Change, before: State, after: State, view: BoundView) -> Verdict:
    """Return the verdict for a patch.

    ``before`` and ``after``: the state of the record before and after the merge of the patch. Only
    the fields that this store needs are compared.
    """
    needed = view.needed
    if after.stamp > before.stamp or any(
        after.version_of(name) > before.version_of(name) for name in needed
    ):
        return APPLIED
    patched = State.of(patch)
    if patch.known is not None:
        patched = join(patched, State.of_known(patch.known))
    if patched.versions and patched.values.keys().isdisjoint(needed):
        return APPLIED  # the patch changes no field that this store needs: nothing to write
    # No version has grown. If a value changed nevertheless, two values have the same version.
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
    """Remove from ``state``, in place, the fields that this store neither holds nor filters by."""
    wanted = view.wanted
    state.values = {name: value for name, value in state.values.items() if name in wanted}
    state.versions = {name: version for name, version in state.versions.items() if name in wanted}


def _decide_presence(
    state: State, row: Mapping[str, Any] | None, verdicts: list[Verdict], view: BoundView, key: str
) -> Decision:
    """Decide the new presence of the record: deleted, pending, filtered out or present.

    Raises ``ChangeRefusedError`` if a missing field has no default.
    """
    if not state.live:
        # A put that is older than these patches may still arrive. The patched values are newer.
        patched = {name: state.values[name] for name in state.versions if name in state.values}
        if not state.stamp:
            return _pending(state, row, verdicts, patched)
        entry = Entry(state.stamp, Presence.DELETED, state.versions, patched, state.whole)
        return Decision(verdicts, entry, remove=row is not None, row=row)
    if state.whole:
        _fill_defaults(state, view, key, is_present=row is not None)
    if view.excludes(view.record_type.key_values(key) | state.values):
        judged = {name: state.values[name] for name in view.judged if name in state.values}
        entry = Entry(state.stamp, Presence.FILTERED_OUT, state.versions, judged, whole=False)
        return Decision(verdicts, entry, remove=row is not None, row=row)
    missing = _missing_fields(state, view)
    if row is not None and view.names.keys().isdisjoint(missing):
        missing = []  # only the filter cannot be judged, so the record stays
    if missing:
        return _pending(state, row, verdicts, dict(state.values))
    return _present(state, row, verdicts, view, key)


def _pending(
    state: State,
    row: Mapping[str, Any] | None,
    verdicts: Sequence[Verdict],
    deferred: dict[str, Any],
) -> Decision:
    """Return a decision to keep ``deferred`` in the index, because fields are still missing."""
    entry = Entry(state.stamp, Presence.PENDING, state.versions, deferred, state.whole)
    pending = [Verdict(Outcome.PENDING) if v.outcome is _WON else v for v in verdicts]
    return Decision(pending, entry, row=row)


def _present(
    state: State, row: Mapping[str, Any] | None, verdicts: list[Verdict], view: BoundView, key: str
) -> Decision:
    """Return a decision to write the record.

    Writes all values if ``row`` is ``None``, otherwise only the values that differ from ``row``.
    """
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


def _missing_fields(state: State, view: BoundView) -> list[str]:
    """Return the names of the needed fields that have no known value and no usable default."""
    fields = view.record_type.fields
    return [
        name
        for name in view.needed
        if name not in state.values
        # A field with a version of its own was patched, so another store has a value for it.
        and (not state.whole or name in state.versions or fields[name].required)
    ]


def _fill_defaults(state: State, view: BoundView, key: str, *, is_present: bool) -> None:
    """Add to ``state``, in place, the defaults of the fields that no change has ever set.

    ``is_present``: whether the store holds the record. It is then not judged by the default of a
    field that the store does not hold. Raises ``ChangeRefusedError`` if one of these fields has no
    default.
    """
    for name in view.needed:
        known = name in state.values or name in state.versions
        if not known and (not is_present or name in view.names):
            state.values[name] = _default_of(name, view, key)


def _default_of(name: str, view: BoundView, key: str) -> Any:
    record_type = view.record_type
    if record_type.fields[name].required:
        raise ChangeRefusedError(
            f"{record_type.name} {key!r} was put without the field {name!r}, which this store "
            "needs and which has no default",
            reason="incomplete",
            hint=f"declare a default for {name!r}, or publish the record with a value for this "
            "field",
        )
    return record_type.default_for(name)
