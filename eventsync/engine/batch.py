"""The application of the changes of one record type, under its merge rule.

If a change fails, it is isolated, so that the others succeed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from eventsync.changes.change import Change, read_patches, read_rows
from eventsync.changes.stamp import DELETE, PATCH
from eventsync.engine.accessor import Accessor
from eventsync.engine.gate import Outcome, Verdict
from eventsync.engine.isolation import Failed, isolate, item_error
from eventsync.engine.joint import apply_jointly
from eventsync.engine.replica import Replica
from eventsync.engine.settled import Settled
from eventsync.errors import ChangeRefusedError, DependencyError, EventSyncError, RecordError
from eventsync.records.record_type import same

__all__ = ["apply_batch", "ready", "set_aside", "set_outcomes"]

_version: Final = attrgetter("change.version")


def apply_batch(replica: Replica, batch: Mapping[str, list[Settled]]) -> None:
    """Apply changes of one record type under its merge rule. Set the outcomes in ``batch``."""
    if replica.type.rule == "record":
        _apply_greatest(replica, batch)
    else:
        _apply_all(replica, batch)


def _apply_greatest(replica: Replica, batch: Mapping[str, list[Settled]]) -> None:
    """Apply the greatest change of each record, under the per-record rule.

    If the store rejects the greatest change, try the next greatest. Set the outcomes in ``batch``.
    """
    while batch:
        greatest = _greatest(replica.accessor, batch)
        errors: dict[str, EventSyncError] = {}
        for part in _plain_apart(replica, greatest):
            errors |= _submit(replica, part)
        remaining = {}
        for key, error in errors.items():
            set_aside(greatest[key], error)
            others = [item for item in batch[key] if item.outcome is not Outcome.REJECTED]
            if isinstance(error, DependencyError):
                set_aside(others, error)
            elif others:
                remaining[key] = others
        batch = remaining


def _greatest(
    accessor: Accessor[Any], batch: Mapping[str, list[Settled]]
) -> dict[str, Sequence[Settled]]:
    """Return, by key, the greatest change of each record whose values fit the record type.

    Set the outcome of every other change: rejected if its values do not fit, duplicate if it equals
    the greatest change, otherwise superseded.
    """
    for items in batch.values():
        if len(items) > 1:
            _sort(items)
    firsts = [items[0].change for items in batch.values()]
    read_rows(firsts, accessor.reader)
    deletes = _sound_deletes(accessor, firsts)
    # Looked up once, because Python 3.11 looks up members of an enumeration slowly.
    duplicate, superseded = Outcome.DUPLICATE, Outcome.SUPERSEDED
    found: dict[str, Sequence[Settled]] = {}
    for key, items in batch.items():
        greatest = items[0]
        change = greatest.change
        if change.row is not None or key in deletes:
            greatest.loaded = change
        elif not _load(accessor, greatest):
            fitting = next((item for item in items[1:] if _load(accessor, item)), None)
            if fitting is None:
                continue
            greatest = fitting
        if len(items) > 1:
            for item in items:
                if item is not greatest and item.outcome is not Outcome.REJECTED:
                    item.outcome = duplicate if _is_same(item, greatest) else superseded
                    item.error = None
        found[key] = (greatest,)
    return found


def _sound_deletes(accessor: Accessor[Any], changes: Iterable[Change]) -> Container[str]:
    """Return the keys of the deletes among ``changes`` if all are valid keys of the record type.

    Returns no keys if one is invalid. The caller then checks each delete by itself.
    """
    keys = [change.key for change in changes if change.op == DELETE]
    return set() if accessor.type.key_columns(keys) is None else set(keys)


def _sort(items: list[Settled]) -> None:
    """Sort ``items`` in place, the greatest change first.

    Compares versions, and compares stamps, which need a digest, only if two versions are equal.
    """
    items.sort(key=_version, reverse=True)
    if any(one.change.version == other.change.version for one, other in pairwise(items)):
        items.sort(key=lambda item: item.change.stamp, reverse=True)


def _is_same(one: Settled, other: Settled) -> bool:
    return one.change.version == other.change.version and one.change.stamp == other.change.stamp


def _plain_apart(
    replica: Replica, batch: dict[str, Sequence[Settled]]
) -> Iterable[dict[str, Sequence[Settled]]]:
    """Split ``batch`` into the plain changes (``Replica.is_plain``) and the others.

    A batch that contains only plain changes is applied much faster.
    """
    plain = {
        key: items
        for key, items in batch.items()
        if items[0].loaded and replica.is_plain(items[0].loaded)
    }
    if not plain or len(plain) == len(batch):
        return (batch,)
    return plain, {key: items for key, items in batch.items() if key not in plain}


def _apply_all(replica: Replica, batch: Mapping[str, list[Settled]]) -> None:
    """Apply all changes of each record together, under the per-field rule.

    If the changes of a record are rejected, apply each of them alone. Set the outcomes in
    ``batch``.
    """
    loaded = ready(replica, batch)
    for key, error in _submit(replica, loaded).items():
        items = loaded[key]
        if len(items) == 1 or isinstance(error, DependencyError):
            set_aside(items, error)
            continue
        for item in items:
            for alone in _submit(replica, {key: [item]}).values():
                set_aside([item], alone)


def ready(replica: Replica, batch: Mapping[str, list[Settled]]) -> dict[str, Sequence[Settled]]:
    """Return the changes to apply, by key: those whose values fit the record type.

    Under the per-record rule, this is the greatest change of each record (see ``_greatest``).
    """
    if replica.type.rule == "record":
        return _greatest(replica.accessor, batch)
    changes = [item.change for items in batch.values() for item in items]
    read_rows(changes, replica.accessor.reader)
    read_patches(changes, replica.accessor.reader)
    return {
        key: fitting
        for key, items in batch.items()
        if (fitting := [item for item in items if _load(replica.accessor, item)])
    }


def _load(accessor: Accessor[Any], item: Settled) -> bool:
    """Set ``item.loaded``. Return whether the values of the change fit the record type.

    If they do not fit, reject the item.
    """
    if item.loaded is None:
        change = item.change
        try:
            # If the change has a row, its values are known to fit (see ``read_rows``).
            item.loaded = change if change.row is not None else _loaded(accessor, change)
        except (ChangeRefusedError, RecordError) as error:
            set_aside([item], error)
    return item.loaded is not None


def _loaded(accessor: Accessor[Any], change: Change) -> Change:
    """Return ``change`` with its values converted to the types of the record type.

    Raises ``RecordError`` if a value does not fit or the key is invalid. Raises
    ``ChangeRefusedError`` if the key fields in the data belong to another record.
    """
    type = accessor.type
    if change.op == DELETE:
        type.key_values(change.key)  # raises if this is not a key of the type
        return change
    data = change.data
    assert data is not None
    loaded = data if type.fits(data) else type.load(data, partial=True, unknown="ignore")
    known = change.known
    if change.op == PATCH:
        key = type.key_values(change.key)
        foreign = any(name in loaded and loaded[name] != value for name, value in key.items())
        if not key.keys().isdisjoint(loaded):
            loaded = {name: value for name, value in loaded.items() if name not in key}
        if known is not None:
            values = type.load(known.values, partial=True, unknown="ignore")
            known = replace(known, values=values)
    else:
        for name in type.keys:
            if name not in loaded:
                loaded = {**type.key_values(change.key), **loaded}
                break
        foreign = type.key_text(loaded) != change.key
    if foreign:
        raise ChangeRefusedError(
            f"the change of {type.name} {change.key!r} contains the key fields of another record",
            reason="key-mismatch",
            hint="the key of a record cannot change: delete the record, and add one with the new "
            "key",
        )
    if loaded is data and known is change.known:
        return change
    if len(loaded) == len(data) and known is change.known and same(dict(loaded), dict(data)):
        return change  # lists and dicts were copied, but no value has changed
    return change.adapted(loaded, known)


def _submit(replica: Replica, batch: Mapping[str, Sequence[Settled]]) -> dict[str, EventSyncError]:
    """Apply loaded changes, given by record key. Set the outcome of each change that succeeded.

    Returns the errors of the records that failed, by key. A ``DependencyError`` means that the
    record must wait for another record. Any other error means that the store refuses the record.
    """

    def apply_part(keys: Sequence[str]) -> dict[str, Sequence[Verdict]]:
        changes = {key: [item.loaded for item in batch[key] if item.loaded] for key in keys}
        try:
            return replica.apply(changes)
        except DependencyError:
            if not replica.accessor.atomic:
                raise
            # Nothing was written. Try again in the order of the dependencies, and without the
            # records that must wait for others.
            verdicts = apply_jointly([(replica, changes)])
            return {key: verdict for (_, key), verdict in verdicts.items()}

    errors: dict[str, EventSyncError] = {}
    for part in isolate(list(batch), apply_part):
        if isinstance(part, Failed):
            errors[part.item] = item_error(part.error)
            continue
        for key, verdicts in part.result.items():
            errors |= set_outcomes(key, batch[key], verdicts)
    return errors


def set_outcomes(
    key: str, items: Sequence[Settled], verdicts: Sequence[Verdict]
) -> dict[str, EventSyncError]:
    """Set the outcome of each change of one record. Return the record's error, by its key."""
    errors: dict[str, EventSyncError] = {}
    for item, verdict in zip(items, verdicts, strict=False):
        item.outcome, item.error = verdict.outcome, verdict.error
        if verdict.collision:
            item.collision = True
        if verdict.error is not None:
            errors[key] = verdict.error
    return errors


def set_aside(items: Iterable[Settled], error: EventSyncError) -> None:
    """Set ``error`` and ``outcome`` of items that failed.

    The outcome is held after a ``DependencyError`` and rejected after any other error.
    """
    outcome = Outcome.HELD if isinstance(error, DependencyError) else Outcome.REJECTED
    for item in items:
        item.outcome, item.error = outcome, error
