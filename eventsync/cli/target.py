"""The targets of ``eventsync publish``: a store, the bus, or a spool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PUT
from eventsync.cli.deployment import Deployment
from eventsync.engine.isolation import Failed, concerns_all, isolate, item_error
from eventsync.errors import BusUnavailableError, ConfigError, DependencyError

if TYPE_CHECKING:
    from eventsync.cli.record_files import RecordLine
    from eventsync.engine.publisher import Publisher
    from eventsync.engine.store import Store
    from eventsync.records.record import Record

__all__ = ["BusTarget", "StoreTarget", "Target", "target_for"]


class Target:
    """A place that takes records. ``partial``: whether a record may leave fields out."""

    partial = True

    def __init__(self, record_type: type[Record]) -> None:
        self.record_type = record_type

    def write(self, lines: Sequence[RecordLine]) -> list[RecordLine]:
        """Write the records of ``lines``; return the refused lines, with their errors set.

        Raises ``StoreUnavailableError`` and ``BusUnavailableError``. Writing the same lines again
        is safe.
        """
        raise NotImplementedError

    def finish(self) -> BusUnavailableError | None:
        """Return the error that kept written records from being published, or ``None``."""
        return None


class StoreTarget(Target):
    """A store, which writes the records and publishes the changes."""

    def __init__(self, store: Store, record_type: type[Record], delete: bool) -> None:
        super().__init__(record_type)
        self._store = store
        self._delete = delete

    def write(self, lines: Sequence[RecordLine]) -> list[RecordLine]:
        return _write(lines, self._edit)

    def _edit(self, lines: Sequence[RecordLine]) -> None:
        records = [line.record for line in lines if line.record is not None]
        if self._delete:
            self._store.remove(records)
        else:
            self._store.update(records, upsert=True)

    def finish(self) -> BusUnavailableError | None:
        return self._store.publish_error


class BusTarget(Target):
    """The bus or a spool, which take whole records for all stores."""

    partial = False

    def __init__(self, publisher: Publisher, record_type: type[Record], delete: bool) -> None:
        super().__init__(record_type)
        self._publisher = publisher
        self._delete = delete
        self._clock = Clock()

    def write(self, lines: Sequence[RecordLine]) -> list[RecordLine]:
        envelopes: list[bytes] = []

        def encode(part: Sequence[RecordLine]) -> None:
            envelopes.extend([self._encode(line) for line in part])  # all of the part, or none

        refused = _write(lines, encode)
        self._publisher.publish(self.record_type.__record__.name, envelopes)
        return refused

    def _encode(self, line: RecordLine) -> bytes:
        assert line.record is not None
        described = self.record_type.__record__
        change = Change(
            type=described.name,
            key=line.key,
            op=DELETE if self._delete else PUT,
            version=self._clock.tick(),
            data=None if self._delete else line.record.raw(),
            source="eventsync-publish",
            schema=described.schema,
        )
        return self._publisher.encode(change)


def _write(
    lines: Sequence[RecordLine], call: Callable[[Sequence[RecordLine]], None]
) -> list[RecordLine]:
    """Call ``call`` with ``lines``; return the lines that fail alone, with their errors set."""
    refused = []
    for part in isolate(lines, call, shared=_concerns_all):
        if isinstance(part, Failed):
            part.item.error = str(item_error(part.error))
            refused.append(part.item)
    return refused


def _concerns_all(error: Exception) -> bool:
    """Return whether the command has to stop.

    A missing dependency may be satisfied later, but within this command it is the line's error.
    """
    return concerns_all(error) and not isinstance(error, DependencyError)


def target_for(
    deployment: Deployment,
    store: str | None,
    type: str | None,
    *,
    delete: bool,
    spool: Path | None = None,
) -> Target:
    """Return the target for records of ``type``: the store, opened, or the spool, or the bus.

    Raises ``ConfigError``, a usage error, and ``BusUnavailableError`` if the target is the bus.
    """
    if store is not None and spool is not None:
        raise typer.BadParameter("a STORE has its own outbox; leave out STORE or --spool")
    if store is None:
        if type is None:
            raise typer.BadParameter("name a STORE, or a record type with --type")
        record_type = deployment.record_type(type)
        publisher = deployment.declare() if spool is None else deployment.spool(spool)
        return BusTarget(publisher, record_type, delete)
    target = deployment.store(store)
    if type is None and len(target.accessors) > 1:
        raise ConfigError(
            f"store {store!r} holds several record types, so --type is required",
            hint=f"add --type {'|'.join(target.accessors)}",
        )
    accessor = target.accessor(type or next(iter(target.accessors)))
    deployment.try_declare()
    target.open(publisher=deployment.bus)
    return StoreTarget(target, accessor.record_class, delete)
