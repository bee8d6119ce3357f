"""The store registry: several stores together, and the copying of one into another.

It knows nothing of transports or workers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import DEFAULT_LIMITS, Limits, Settled, apply, complete
from eventsync.engine.gate import Outcome
from eventsync.engine.publisher import Publisher
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.query import Filter
from eventsync.records.record import Record

__all__ = ["StoreRegistry", "SyncProgress", "SyncReport"]


@dataclass(slots=True)
class SyncProgress:
    """How far a synchronization is: records of one type copied from one source."""

    source: str
    type: str
    done: int
    total: int


@dataclass(slots=True)
class SyncReport:
    """What a synchronization did.

    ``captured``: edits found in the sources that had no version yet. ``outcomes``: by target, how
    many records came to each outcome. ``rejected``: what a target refused, and why.
    """

    captured: int = 0
    outcomes: dict[str, dict[Outcome, int]] = field(default_factory=dict)
    rejected: list[tuple[str, Settled]] = field(default_factory=list)


class StoreRegistry:
    """Several stores: the same CRUD on all of them, and ``synchronize``.

    The methods named as those of ``Store`` return a dict by store name, with an entry for each
    store that holds the record type; ``stores=`` restricts them.
    """

    def __init__(self, *stores: Store) -> None:
        self.stores: dict[str, Store] = {}
        for store in stores:
            if store.name in self.stores:
                raise ConfigError(f"two stores are named {store.name!r}")
            self.stores[store.name] = store

    def __iter__(self) -> Iterator[Store]:
        return iter(self.stores.values())

    def __getitem__(self, name: str) -> Store:
        try:
            return self.stores[name]
        except KeyError:
            raise ConfigError(
                f"there is no store {name!r}", hint=f"there are {', '.join(self.stores)}"
            ) from None

    def __enter__(self) -> StoreRegistry:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StoreRegistry({', '.join(self.stores)})"

    def open(self, *, publisher: Publisher | None = None) -> StoreRegistry:
        """Open every store (see ``Store.open``). Idempotent."""
        for store in self:
            store.open(publisher=publisher)
        return self

    def close(self) -> None:
        """Close every store. Idempotent."""
        for store in self:
            store.close()

    @property
    def record_types(self) -> dict[str, type[Record]]:
        """All record types that any store holds, by name."""
        return {
            accessor.type.name: accessor.record_class
            for store in self
            for accessor in store.accessors.values()
        }

    # -- CRUD on several stores --------------------------------------------------

    def add(
        self, records: Record | Iterable[Record], *, stores: Iterable[str] | None = None
    ) -> dict[str, None]:
        """``Store.add`` on each store that holds the records' type."""
        return self._each("add", records, stores)

    def update(
        self,
        records: Record | Iterable[Record],
        *,
        upsert: bool = False,
        stores: Iterable[str] | None = None,
    ) -> dict[str, None]:
        """``Store.update`` on each store that holds the records' type."""
        return self._each("update", records, stores, upsert=upsert)

    def remove(
        self, records: Record | Iterable[Record], *, stores: Iterable[str] | None = None
    ) -> dict[str, int]:
        """``Store.remove`` on each store that holds the records' type."""
        return self._each("remove", records, stores)

    def get(
        self, record_type: type[Record], key: Any, *, stores: Iterable[str] | None = None
    ) -> dict[str, Record | None]:
        """``Store.get`` on each store that holds the type: the same record side by side."""
        return {s.name: s.get(record_type, key) for s in self._holding([record_type], stores)}

    def find(
        self,
        record_type: type[Record],
        where: Mapping[str, Any] | None = None,
        *,
        stores: Iterable[str] | None = None,
        sort: Sequence[str] = (),
        limit: int | None = None,
        skip: int = 0,
    ) -> dict[str, list[Record]]:
        """``Store.find`` on each store that holds the type."""
        return {
            store.name: list(store.find(record_type, where, sort=sort, limit=limit, skip=skip))
            for store in self._holding([record_type], stores)
        }

    def count(
        self,
        record_type: type[Record],
        where: Mapping[str, Any] | None = None,
        *,
        stores: Iterable[str] | None = None,
    ) -> dict[str, int]:
        """``Store.count`` on each store that holds the type."""
        return {s.name: s.count(record_type, where) for s in self._holding([record_type], stores)}

    def _each(
        self,
        method: str,
        records: Record | Iterable[Record],
        stores: Iterable[str] | None,
        **options: Any,
    ) -> dict[str, Any]:
        listed = [records] if isinstance(records, Record) else list(records)
        types = list({type(record) for record in listed})
        answers = {}
        for store in self._holding(types, stores):
            held = [record for record in listed if record.__record__.name in store.accessors]
            answers[store.name] = getattr(store, method)(held, **options)
        return answers

    def _holding(
        self, record_types: Iterable[type[Record]], stores: Iterable[str] | None
    ) -> list[Store]:
        names = {record_type.__record__.name for record_type in record_types}
        among = list(self) if stores is None else [self[name] for name in stores]
        return [store for store in among if names & store.accessors.keys()]

    # -- configuration --------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong in how the stores fit together, one sentence each; empty when nothing is.

        A record type of which some store lacks fields has to be merged per field: under the
        per-record rule an edit made there would wipe out elsewhere what it does not hold.
        """
        found = []
        declared: dict[str, type[Record]] = {}
        for store in self:
            for accessor in store.accessors.values():
                name = accessor.type.name
                first = declared.setdefault(name, accessor.record_class)
                if first is not accessor.record_class:
                    found.append(
                        f"{name} is declared twice: store {store.name!r} uses another class "
                        "of that name than the stores before it"
                    )
                if accessor.view.partial and accessor.type.rule == "record":
                    missing = [n for n in accessor.type.fields if n not in accessor.view.names]
                    found.append(
                        f"store {store.name!r} does not hold {', '.join(missing)} of {name}, "
                        f'which is merged per record: declare {name} with rule="field"'
                    )
                found += self._needs_default(store, accessor)
        return list(dict.fromkeys(found))

    def _needs_default(self, store: Store, accessor: Accessor[Any]) -> list[str]:
        """What is wrong with fields that a store needs and others do not hold."""
        name = accessor.type.name
        views = [other.accessors[name].view for other in self if name in other.accessors]
        return [
            f"store {store.name!r} needs {name}.{field_name}, which others do not hold and which "
            "has no default: a record created there could not be written here; give it a default"
            for field_name in accessor.view.needed
            if accessor.type.fields[field_name].required
            and any(field_name not in view.names for view in views)
        ]

    def check(self) -> None:
        """Raise ``ConfigError`` when there are ``problems``."""
        found = self.problems()
        if found:
            raise ConfigError("; ".join(found))

    # -- synchronization --------------------------------------------------

    def synchronize(
        self,
        record_types: Iterable[type[Record]] | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        sources: Iterable[str] | None = None,
        targets: Iterable[str] | None = None,
        count: int = 5000,
        dry_run: bool = False,
        restart: bool = False,
        deletes: float = 0.5,
        clock: Clock | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Callable[[SyncProgress], None] = lambda progress: None,
    ) -> SyncReport:
        """Copy what the sources hold into the targets, deletes included. Blocks until it is done.

        First edits made behind eventsync's back in the sources get their versions
        (``Store.capture``; ``deletes`` as there), then each record goes through the targets'
        version gates: a target that holds a later version keeps it. So it is idempotent, may run
        beside workers and in both directions. A synchronization that was cut short goes on where it
        was when it is called again with the same arguments, unless ``restart``.

        ``record_types``: default all. ``data``: a filter over records, as in ``Store.find``.
        ``sources``, ``targets``: store names; default all. ``count``: records a step. ``dry_run``:
        count what would be copied; nothing is written anywhere.
        """
        self.check()
        clock = clock or Clock()
        report = SyncReport()
        names = None if record_types is None else {t.__record__.name for t in record_types}
        from_stores = list(self) if sources is None else [self[name] for name in sources]
        to_stores = list(self) if targets is None else [self[name] for name in targets]
        if data is not None:
            names = names or {type for store in from_stores for type in store.accessors}
        for source in from_stores:
            for type, accessor in source.accessors.items():
                if names is not None and type not in names:
                    continue
                into = [s for s in to_stores if s is not source and type in s.accessors]
                if not into:
                    continue
                where = Filter.parse(data, accessor.type)
                if dry_run:
                    self._compare(source, type, into, where, report, progress)
                    continue
                for changes in source.capture(accessor.record_class, deletes=deletes):
                    report.captured += len(changes)
                self._copy(
                    source, type, into, where, count, restart, clock, limits, report, progress
                )
        for target in to_stores:
            complete(target, self)
        return report

    def _copy(
        self,
        source: Store,
        type: str,
        targets: Sequence[Store],
        where: Filter,
        count: int,
        restart: bool,
        clock: Clock,
        limits: Limits,
        report: SyncReport,
        progress: Callable[[SyncProgress], None],
    ) -> None:
        mark = _mark_name(type, [target.name for target in targets], where)
        # What is copied is a state, not an event: however old it is, it is what the source holds.
        limits = replace(limits, retention=math.inf)
        after = "" if restart else source.index.load_mark(mark)
        total = sum(source.index.counts(type).values())
        done = 0
        while entries := source.index.scan(type, after=after, limit=count):
            keys = [key for key, _ in entries]
            accessor = source.accessors[type]
            changes = [
                change
                for change in source.replicas[type].states(keys)
                if change.data is None or where.matches(_values_of(change, accessor))
            ]
            for target in targets:
                outcomes = report.outcomes.setdefault(target.name, {})
                for settled in apply(target, changes, clock=clock, limits=limits):
                    outcomes[settled.outcome] = outcomes.get(settled.outcome, 0) + 1
                    if settled.outcome is Outcome.REJECTED:
                        report.rejected.append((target.name, settled))
            after = keys[-1]
            source.index.save_mark(mark, after)
            done += len(keys)
            progress(SyncProgress(source.name, type, done, max(total, done)))
        source.index.save_mark(mark, "")

    def _compare(
        self,
        source: Store,
        type: str,
        targets: Sequence[Store],
        where: Filter,
        report: SyncReport,
        progress: Callable[[SyncProgress], None],
    ) -> None:
        """Count what a copy would change, by comparing the records themselves."""
        accessor = source.accessors[type]
        total = source.count(accessor.record_class)
        for done, record in enumerate(source.find(accessor.record_class), start=1):
            values = record.raw()
            if not where.matches(values):
                continue
            for target in targets:
                other = target.accessors[type]
                outcomes = report.outcomes.setdefault(target.name, {})
                found = other.get(record.key)
                held = found.raw() if found is not None else {}
                alike = found is not None and all(
                    held[n] == v for n, v in values.items() if n in held
                )
                outcome = Outcome.DUPLICATE if alike else Outcome.APPLIED
                if found is None and not other.view.matches(values):
                    outcome = Outcome.DUPLICATE
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if done % 1000 == 0 or done == total:
                progress(SyncProgress(source.name, type, done, total))


def _values_of(change: Change, accessor: Accessor[Any]) -> Mapping[str, Any]:
    known = change.known.values if change.known else {}
    return {**accessor.type.key_values(change.key), **known, **(change.data or {})}


def _mark_name(type: str, targets: Sequence[str], where: Filter) -> str:
    text = json.dumps([type, sorted(targets), where.to_json()], sort_keys=True, default=str)
    return f"sync:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
