"""The store registry: edits, reads and synchronizes several stores together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from eventsync.changes.clock import Clock
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import DEFAULT_LIMITS, Limits
from eventsync.engine.completion import complete
from eventsync.engine.publisher import Publisher
from eventsync.engine.store import Store
from eventsync.engine.synchronize import Synchronization, SyncProgress, SyncReport
from eventsync.errors import ConfigError, FilterError, RecordError, SuspiciousReadError
from eventsync.records.query import Filter
from eventsync.records.record import Record

__all__ = ["StoreRegistry"]


class StoreRegistry:
    """Several stores that are edited, read and synchronized together.

    A method with the same name as a method of ``Store`` calls that method on each store that holds
    the record type. It returns a dict of the results by store name. ``stores``: the names of the
    stores to call; by default all. Raises ``ConfigError`` if two stores have the same name.
    """

    def __init__(self, *stores: Store) -> None:
        self.stores: dict[str, Store] = {}
        for store in stores:
            if store.name in self.stores:
                raise ConfigError(
                    f"two stores are named {store.name!r}", hint="give each store a different name"
                )
            self.stores[store.name] = store

    def __iter__(self) -> Iterator[Store]:
        return iter(self.stores.values())

    def __getitem__(self, name: str) -> Store:
        try:
            return self.stores[name]
        except KeyError:
            raise ConfigError(
                f"there is no store named {name!r}",
                hint=f"the stores are {', '.join(self.stores) or 'none'}",
            ) from None

    def __enter__(self) -> StoreRegistry:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StoreRegistry({', '.join(self.stores)})"

    def open(self, *, publisher: Publisher | None = None) -> StoreRegistry:
        """Open every store and return this registry. Idempotent.

        ``publisher``: the publisher of all stores from now on; ``None`` to keep their own.
        """
        for store in self:
            store.open(publisher=publisher)
        return self

    def close(self) -> None:
        """Close every store. Idempotent."""
        for store in self:
            store.close()

    @property
    def record_types(self) -> dict[str, type[Record]]:
        """The record classes that the stores hold, by the name of the record type."""
        return {
            accessor.type.name: accessor.record_class
            for store in self
            for accessor in store.accessors.values()
        }

    # -- CRUD on several stores --------------------------------------------------

    def add(
        self, records: Record | Iterable[Record], *, stores: Iterable[str] | None = None
    ) -> dict[str, None]:
        """Call ``Store.add`` on each store, with those records whose type the store holds."""
        return self._each("add", records, stores)

    def update(
        self,
        records: Record | Iterable[Record],
        *,
        upsert: bool = False,
        stores: Iterable[str] | None = None,
    ) -> dict[str, None]:
        """Call ``Store.update`` on each store, with those records whose type the store holds."""
        return self._each("update", records, stores, upsert=upsert)

    def remove(
        self, records: Record | Iterable[Record], *, stores: Iterable[str] | None = None
    ) -> dict[str, int]:
        """Call ``Store.remove`` on each store, with those records whose type the store holds."""
        return self._each("remove", records, stores)

    def get(
        self, record_type: type[Record], key: Any, *, stores: Iterable[str] | None = None
    ) -> dict[str, Record | None]:
        """Call ``Store.get`` on each store that holds the record type."""
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
        unreadable: Callable[[str, RecordError], None] | None = None,
    ) -> dict[str, list[Record]]:
        """Call ``Store.find`` on each store that holds the record type. Return lists of records.

        ``unreadable``: called with the name of the store and the error of each record that cannot
        be read, and once if a store cannot read any record of the type. If ``None``, the first such
        error is raised.
        """
        found: dict[str, list[Record]] = {}
        for store in self._holding([record_type], stores):
            report = None if unreadable is None else partial(unreadable, store.name)
            records: list[Record] = []
            found[store.name] = records
            try:
                records += store.find(
                    record_type, where, sort=sort, limit=limit, skip=skip, unreadable=report
                )
            except RecordError as error:
                if report is None or isinstance(error, FilterError):
                    raise
                report(error)
        return found

    def count(
        self,
        record_type: type[Record],
        where: Mapping[str, Any] | None = None,
        *,
        stores: Iterable[str] | None = None,
    ) -> dict[str, int]:
        """Call ``Store.count`` on each store that holds the record type."""
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
        results = {}
        for store in self._holding(types, stores):
            own = [record for record in listed if record.__record__.name in store.accessors]
            results[store.name] = getattr(store, method)(own, **options)
        return results

    def _holding(
        self, record_types: Iterable[type[Record]], stores: Iterable[str] | None
    ) -> list[Store]:
        """Return those of the named stores that hold at least one of ``record_types``.

        ``stores``: store names; ``None`` for all. Raises ``ConfigError`` if a name is unknown.
        """
        types = {record_type.__record__.name for record_type in record_types}
        return [store for store in self._named(stores) if types & store.accessors.keys()]

    def _named(self, names: Iterable[str] | None) -> list[Store]:
        return list(self) if names is None else [self[name] for name in names]

    # -- configuration --------------------------------------------------

    def problems(self) -> list[str]:
        """Return one sentence for each contradiction between the declarations of the stores.

        For example, a partial view needs the per-field rule. Under the per-record rule, an edit in
        the store with the partial view would erase the other fields in all stores.
        """
        found = []
        declared: dict[str, type[Record]] = {}
        for store in self:
            for accessor in store.accessors.values():
                name = accessor.type.name
                first = declared.setdefault(name, accessor.record_class)
                if first is not accessor.record_class:
                    found.append(
                        f"record type {name} is declared twice: store {store.name!r} and an "
                        "earlier store use different classes of this name; use one class in all "
                        "stores"
                    )
                if accessor.view.partial and accessor.type.rule == "record":
                    missing = [n for n in accessor.type.fields if n not in accessor.view.names]
                    found.append(
                        f"store {store.name!r} does not hold the fields {', '.join(missing)} of "
                        f"{name}, but records of this type merge per record; declare {name} with "
                        'rule="field"'
                    )
                found += self._needs_default(store, accessor)
        return list(dict.fromkeys(found))

    def _needs_default(self, store: Store, accessor: Accessor[Any]) -> list[str]:
        """Return one sentence for each field that must have a default and has none.

        A field that ``store`` needs must have a default if another store does not hold the field.
        """
        name = accessor.type.name
        views = [other.accessors[name].view for other in self if name in other.accessors]
        return [
            f"store {store.name!r} needs the field {name}.{field_name}, which other stores do not "
            "hold and which has no default; records created in the other stores could not be "
            "written to this store; give the field a default"
            for field_name in accessor.view.needed
            if accessor.type.fields[field_name].required
            and any(field_name not in view.names for view in views)
        ]

    def check(self) -> None:
        """Raise ``ConfigError`` with the sentences of ``problems()``, if there are any."""
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
        """Copy records and deletes from the sources to the targets. Block until all are copied.

        Foreign writes in the sources are captured first (``Store.capture``), and those to records
        of the targets before these are written. Then the gate of each target decides about each
        record, so a target keeps a record that has a later version there. A record that a target
        held before eventsync knew it has no version, and gives way to the source.
        Idempotent. Workers may run at the same time. A store may be both source and target. A
        record that cannot be read or applied is reported and does not stop the others. To continue
        an interrupted synchronization, call this method with the same arguments again.

        - ``record_types``: the record types to copy; by default all.
        - ``data``: a filter as in ``Store.find``; copy only records that match.
        - ``sources``, ``targets``: store names; by default all stores.
        - ``count``: how many records to copy together.
        - ``dry_run``: only count what would be copied, and write nothing.
        - ``restart``: start from the beginning instead of continuing.
        - ``deletes``: the share of the known records that may be missing in a source, as in
          ``Store.capture``. What a target has lost is filled again, and never taken for deleted.
        - ``clock``: observes the applied versions; by default a new clock.
        - ``limits``: as in ``apply``; ``retention`` is ignored.
        - ``progress``: called after each batch of records.

        Raises ``ConfigError`` if there are ``problems()`` or a store name is unknown. Raises
        ``FilterError`` if ``data`` is not a valid filter, and ``StoreUnavailableError`` if a store
        is unreachable. Raises ``SuspiciousReadError`` as ``Store.capture`` does, after all other
        types were copied.
        """
        self.check()
        wanted = None if record_types is None else {t.__record__.name for t in record_types}
        from_stores, to_stores = self._named(sources), self._named(targets)
        synchronization = Synchronization(
            count=count,
            restart=restart,
            deletes=deletes,
            clock=clock or Clock(),
            limits=limits,
            progress=progress,
        )
        run = synchronization.compare if dry_run else synchronization.copy
        # A source that is named is captured, even if no other store holds the type.
        capture_only = not dry_run and sources is not None and targets is None
        suspicious: list[SuspiciousReadError] = []
        for source in from_stores:
            for type, accessor in source.accessors.items():
                into = [s for s in to_stores if s is not source and type in s.accessors]
                if not (into or capture_only) or (wanted is not None and type not in wanted):
                    continue
                where = Filter.parse(data, accessor.type)
                try:
                    with source.errors():  # those of a target name the target already
                        run(source, accessor, into, where)
                except SuspiciousReadError as error:
                    suspicious.append(error)
        if not dry_run:
            synchronization.retry_held()
            for target in to_stores:
                complete(target, self)
        if suspicious:
            raise SuspiciousReadError.of(suspicious)
        return synchronization.report
