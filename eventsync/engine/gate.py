"""The version gate: what one record's changes do to it in one store.

This module is pure: it decides, from what a store holds of a record and the changes that came, what
to write. It knows nothing of how a store reads or writes, nor of transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.changes.merge import State, join
from eventsync.changes.stamp import DELETE, PATCH, PUT, Stamp
from eventsync.engine.fingerprint import changed_since
from eventsync.errors import ChangeRefusedError, StoreError
from eventsync.index import Entry, Presence
from eventsync.records.record import RecordType
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
"""The stamp of a record that a store held before eventsync knew it: older than every change."""


class Outcome(StrEnum):
    """What became of one change at one store."""

    APPLIED = "applied"
    """It won; the store holds what it says, as far as it holds such fields and such records."""
    SUPERSEDED = "superseded"
    """A later change of the same record came in the same batch."""
    STALE = "stale"
    """The store holds a later change of the record already."""
    DUPLICATE = "duplicate"
    """The store holds this very change already."""
    PENDING = "pending"
    """It is kept, but the record is not known whole, so it is not written yet."""
    HELD = "held"
    """Its version lies in the future, or it waits for another record; it is tried again."""
    REJECTED = "rejected"
    """It cannot be applied; it goes to the dead letters with its reason."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """The outcome of one change, and why it is held.

    ``collision``: another change carries the same version.
    """

    outcome: Outcome
    collision: bool = False
    error: StoreError | None = None


@dataclass(slots=True)
class Decision:
    """What to do about one record.

    ``entry``: its new index entry, ``None`` to leave everything as it is. ``write``: field values
    to write, those that change or, for a record that is not there, all. ``remove``: take the
    record out of the store. ``altered``: ``write`` is not just what the body of the stamp says.
    """

    verdicts: list[Verdict]
    entry: Entry | None = None
    write: Mapping[str, Any] | None = None
    remove: bool = False
    altered: bool = False
    row: Mapping[str, Any] | None = field(default=None, repr=False)


# Python 3.11 takes as long to look up a member of an enumeration as for several calls, so where
# changes come by the thousand it is looked up once.
_WON: Final = Outcome.APPLIED
_HERE: Final = Presence.PRESENT
_LOST: Final = (Outcome.STALE, Outcome.DUPLICATE)
_STALE: Final = Verdict(Outcome.STALE)
_DUPLICATE: Final = Verdict(Outcome.DUPLICATE)
APPLIED: Final = Verdict(_WON)
"""The verdict on a change that won, and all is well."""


def _judge(stamp: Stamp, held: Stamp | None) -> Verdict:
    """The verdict on a put or delete by its place in the total order."""
    if held is None:
        return APPLIED
    if stamp[:16] != held[:16]:
        return APPLIED if stamp > held else _STALE
    if stamp == held:
        return _DUPLICATE
    return Verdict(Outcome.APPLIED if stamp > held else Outcome.STALE, collision=True)


def decide_put_or_delete(held: Stamp | None, change: Change, view: BoundView) -> Decision:
    """The decision under the per-record rule: what ``decide`` gives, without reading the row.

    ``held``: the stamp of what the store knows of the record, ``None`` if it knows nothing.

    Raises ``ChangeRefusedError`` for a patch, and for a put that lacks a field without default.
    """
    if change.op == PATCH:
        raise ChangeRefusedError(
            f"a patch of {change.type}, which is merged per record",
            reason="patch-refused",
            hint='declare the record type with rule="field", or publish whole records',
        )
    stamp = change.stamp
    verdict = _judge(stamp, held)
    if verdict.outcome is not _WON:
        return Decision([verdict])
    if change.op == DELETE:
        return Decision([verdict], Entry(stamp, Presence.DELETED), remove=True)
    data = change.data
    assert data is not None
    values = _filled(data, view, change.key)
    if not view.matches(values):
        return Decision([verdict], Entry(stamp, Presence.FILTERED_OUT), remove=True)
    altered = view.partial or not change.exact or len(values) != len(data)
    return Decision([verdict], Entry(stamp, _HERE), write=values, altered=altered)


def decide(
    entry: Entry | None,
    row: Mapping[str, Any] | None,
    changes: Sequence[Change],
    view: BoundView,
    key: str,
    *,
    final: bool = False,
) -> Decision:
    """The decision under the per-field rule, on all ``changes`` of one record at once.

    ``row``: the field values that the store holds of the record now, ``None`` if it does not hold
    it. ``final``: nobody knows more than ``changes`` say, so a field without a value has none.
    Raises ``ChangeRefusedError`` for a put that lacks a field without default.
    """
    before = _held(entry, row, view)
    state, verdicts = before, []
    for change in changes:
        merged = join(state, State.of(change))
        if change.known is not None:
            merged = _take_known(merged, State.of_known(change.known), row is not None, view)
        verdicts.append(_verdict(change, state, merged, view))
        state = merged
    if final:
        state.whole = True
    elif all(verdict.outcome in _LOST for verdict in verdicts) and (
        # Even so a value may have become known that was missing.
        entry is None or entry.presence is not Presence.PENDING or state == before
    ):
        return Decision(verdicts)
    if entry is not None and row is not None:
        _keep_foreign(state, before, entry, row, view)
    _keep_needed(state, view)
    decision = _settle(state, row, verdicts, view, key)
    if entry is None and decision.entry is not None and not state.stamp and not state.versions:
        return Decision(verdicts)  # nothing of what this store holds was in it
    if entry is not None and decision.entry is not None and row is not None:
        decision.entry.echo = entry.echo
    return decision


def decide_patches(
    entry: Entry | None, changes: Sequence[Change], view: BoundView
) -> Decision | None:
    """What ``decide`` comes to where the record is here and patches of it win in all their fields.

    For that its row need not be read, where the view is neither partial nor filtered. ``write`` are
    then all values that the patches say, be they in the row already. ``None``: ``decide`` is to
    tell. What the origin of a patch held beside it says nothing where it is no later than what is
    held: the same versions are of the same values, whatever somebody has made of the row since.
    """
    if entry is None or entry.presence is not _HERE or entry.deferred or not entry.whole:
        return None
    wanted, floor = view.wanted, entry.stamp[:16]
    versions, write = dict(entry.versions), {}
    for change in changes:
        version, data = change.version, change.data
        if change.op != PATCH or not data:
            return None
        for name, held in data.items():
            if name not in wanted or version <= versions.get(name, floor):
                return None
            versions[name] = version
            write[name] = held
        known = change.known
        if known is not None and (
            known.stamp > entry.stamp
            or any(version > versions.get(name, floor) for name, version in known.versions.items())
        ):
            return None
    if not versions.keys() <= wanted:
        return None
    return Decision([APPLIED] * len(changes), Entry(entry.stamp, _HERE, versions), write)


def decide_one(
    entry: Entry | None, row: Mapping[str, Any] | None, change: Change, view: BoundView
) -> Decision:
    """The decision on one change, under the rule of its type; see the other two."""
    if view.record_type.rule == "record":
        return decide_put_or_delete(None if entry is None else entry.stamp, change, view)
    # The first change of a record that is here says all of it, even if that is but its key.
    first = entry is None and row is not None
    return decide(entry, row, [change], view, change.key, final=first)


def _held(entry: Entry | None, row: Mapping[str, Any] | None, view: BoundView) -> State:
    """What the store knows of the record before the changes."""
    if entry is None:
        if row is None:
            return State()
        return State(stamp=UNVERSIONED, values=_without_key(row, view), whole=True)
    values = dict(entry.deferred)
    if row is not None:
        values |= _without_key(row, view)
    here = entry.presence is Presence.PRESENT and row is not None
    whole = here or (entry.presence is Presence.PENDING and entry.whole)
    return State(stamp=entry.stamp, versions=dict(entry.versions), values=values, whole=whole)


def _without_key(values: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    keys = view.record_type.keys
    return {name: held for name, held in values.items() if name not in keys}


def _take_known(state: State, known: State, here: bool, view: BoundView) -> State:
    """Merge in what the origin of a patch held beside it, unless that makes a record less whole.

    A put that this store has not seen may stand behind it; where that leaves gaps in a record that
    is here whole, the put itself is worth waiting for.
    """
    merged = join(state, known)
    if here and not _missing_fields(state, view) and merged.live and _missing_fields(merged, view):
        return state
    return merged


def _keep_foreign(
    state: State, before: State, entry: Entry, row: Mapping[str, Any], view: BoundView
) -> None:
    """Keep the values that somebody else has put into the row since eventsync last wrote it.

    They have no version yet. Only a later version replaces them, never the value they replaced.
    """
    differing = [
        name
        for name, held in row.items()
        if name in state.values
        and state.version_of(name) == before.version_of(name)
        and not same(state.values[name], held)
    ]
    if differing:
        foreign = changed_since(entry, row, view)
        state.values.update({name: row[name] for name in differing if name in foreign})


def _verdict(change: Change, before: State, after: State, view: BoundView) -> Verdict:
    if change.op != PATCH:
        return _judge(change.stamp, before.stamp)
    if after.stamp > before.stamp:
        return APPLIED
    needed = view.needed
    told = State.of(change)
    if change.known is not None:
        told = join(told, State.of_known(change.known))
    if told.versions and not any(name in told.values for name in needed):
        return APPLIED  # nothing in it is of this store's fields, so it holds all that concerns it
    if any(after.version_of(name) > before.version_of(name) for name in needed):
        return APPLIED
    lost = [n for n in needed if n in before.values and before.values[n] != after.values.get(n)]
    if lost or any(name in after.values and name not in before.values for name in needed):
        # The same version with another value: a collision, or a value that was not kept before.
        return Verdict(Outcome.APPLIED, collision=bool(lost))
    alike = all(before.version_of(n) == told.version_of(n) for n in needed if n in told.values)
    return _DUPLICATE if alike else _STALE


def _missing_fields(state: State, view: BoundView) -> list[str]:
    """The needed fields of which no value is known, and none will come by default."""
    fields = view.record_type.fields
    return [
        name
        for name in view.needed
        if name not in state.values
        # A field patched above the put has a value somewhere, even if it was not kept here.
        and (not state.whole or name in state.versions or fields[name].required)
    ]


def _keep_needed(state: State, view: BoundView) -> None:
    """Forget of the state what this store neither holds nor judges by."""
    wanted = view.wanted
    for name in [name for name in state.values if name not in wanted]:
        del state.values[name]
    for name in [name for name in state.versions if name not in wanted]:
        del state.versions[name]


def _settle(
    state: State, row: Mapping[str, Any] | None, verdicts: list[Verdict], view: BoundView, key: str
) -> Decision:
    """Where the record goes, now that its state is known."""
    entry = Entry(state.stamp, Presence.PENDING, state.versions, whole=state.whole)
    decision = Decision(verdicts, entry, row=row)
    if not state.live:
        if state.stamp:
            entry.presence = Presence.DELETED
            decision.remove = row is not None
        else:
            decision.verdicts = _pending(verdicts)
        entry.deferred = {n: state.values[n] for n in state.versions if n in state.values}
        return decision
    if state.whole:
        absent = [n for n in view.needed if n not in state.values and n not in state.versions]
        _fill_defaults(state.values, absent, view, key)
    if view.where is not None and view.judged <= {*state.values, *view.record_type.keys}:
        whole = view.record_type.key_values(key) | state.values
        if not view.matches(whole):
            entry.presence, entry.whole = Presence.FILTERED_OUT, False
            entry.deferred = {n: state.values[n] for n in view.judged if n in state.values}
            decision.remove = row is not None
            return decision
    if _missing_fields(state, view):
        entry.deferred = dict(state.values)
        decision.verdicts = _pending(verdicts)
        return decision
    entry.presence, entry.whole = Presence.PRESENT, True
    entry.deferred = {n: state.values[n] for n in state.values if n not in view.names}
    held = {n: state.values[n] for n in view.fields if n in state.values}
    if row is None:
        decision.write = view.record_type.key_values(key) | held
    else:
        changed = {n: v for n, v in held.items() if n not in row or not same(row[n], v)}
        decision.write = changed or None
    return decision


def _pending(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts, if what was let in cannot be written yet."""
    return [Verdict(Outcome.PENDING) if v.outcome is Outcome.APPLIED else v for v in verdicts]


def _filled(data: Mapping[str, Any], view: BoundView, key: str) -> Mapping[str, Any]:
    """The whole record that a put says, its key and the defaults of absent fields included."""
    fields = view.record_type.fields
    if len(data) == len(fields):
        return data  # what is not declared has been left out
    values = {**data, **view.record_type.key_values(key)}
    _fill_defaults(values, [name for name in view.needed if name not in values], view, key)
    return values


def _fill_defaults(
    values: dict[str, Any], absent: Iterable[str], view: BoundView, key: str
) -> None:
    """Give the fields that a put does not name their defaults."""
    record_type: RecordType = view.record_type
    for name in absent:
        if record_type.fields[name].required:
            raise ChangeRefusedError(
                f"a {PUT} of {record_type.name} {key!r} lacks the field {name!r}, "
                "which this store holds and which has no default",
                reason="incomplete",
                hint=f"give {name!r} a default, or publish the record with it",
            )
        values[name] = record_type.default_for(name)
