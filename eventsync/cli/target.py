"""Where published records go: into a store, or straight onto the bus.

It owns how refused records are told from taken ones. It must not know where records come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PUT
from eventsync.cli.deployment import Deployment
from eventsync.errors import (
    BusUnavailableError,
    ChangeRefusedError,
    ConfigError,
    EventSyncError,
    RecordError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from eventsync.cli.record_files import Line
    from eventsync.engine.publisher import Publisher
    from eventsync.engine.store import Store
    from eventsync.records.record import Record

__all__ = ["Sink", "sink_for"]


class Sink:
    """Where records go. ``partial``: whether a record may lack fields."""

    partial = True

    def __init__(self, record_type: type[Record]) -> None:
        self.record_type = record_type

    def write(self, lines: Sequence[Line]) -> list[Line]:
        """Write the records of ``lines``; those that were refused come back with their errors."""
        raise NotImplementedError

    def finish(self) -> BusUnavailableError | None:
        """Why what was written is not published yet, if so."""
        return None


class StoreSink(Sink):
    def __init__(self, store: Store, record_type: type[Record], delete: bool) -> None:
        super().__init__(record_type)
        self._store = store
        self._delete = delete

    def write(self, lines: Sequence[Line]) -> list[Line]:
        try:
            self._edit(lines)
        except StoreUnavailableError:
            raise
        except (RecordError, StoreError, ChangeRefusedError) as error:
            if len(lines) == 1:
                lines[0].error = str(error)
                return list(lines)
            # What the first attempt did stands; doing it again changes nothing.
            return [wrong for line in lines for wrong in self.write([line])]
        return []

    def _edit(self, lines: Sequence[Line]) -> None:
        records = [line.record for line in lines if line.record is not None]
        if self._delete:
            self._store.remove(records)
        else:
            self._store.update(records, upsert=True)

    def finish(self) -> BusUnavailableError | None:
        return self._store.publish_error


class BusSink(Sink):
    def __init__(self, bus: Publisher, record_type: type[Record], delete: bool) -> None:
        super().__init__(record_type)
        self.partial = False
        self._bus = bus
        self._delete = delete
        self._clock = Clock()

    def write(self, lines: Sequence[Line]) -> list[Line]:
        envelopes, wrong = [], []
        for line in lines:
            try:
                envelopes.append(self._envelope(line))
            except EventSyncError as error:
                line.error = str(error)
                wrong.append(line)
        self._bus.publish(self.record_type.__record__.name, envelopes)
        return wrong

    def _envelope(self, line: Line) -> bytes:
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
        return self._bus.encode(change)


def sink_for(
    deployment: Deployment,
    store: str | None,
    type: str | None,
    *,
    delete: bool,
    spool: Path | None = None,
) -> Sink:
    """Where records of ``type`` go: into a store, opened, or onto the bus when none is named, or
    into a spool.

    Raises ``ConfigError``, ``BusUnavailableError`` without a store, and a usage error.
    """
    if store is not None and spool is not None:
        raise typer.BadParameter("a STORE has an outbox of its own; leave out --spool")
    if store is None:
        if type is None:
            raise typer.BadParameter("say which STORE, or a record type with --type")
        record_type = deployment.record_type(type)
        publisher = deployment.declare() if spool is None else deployment.spool(spool)
        return BusSink(publisher, record_type, delete)
    target = deployment.store(store)
    if type is None and len(target.accessors) > 1:
        raise ConfigError(
            f"store {store!r} holds several types", hint=f"--type {'|'.join(target.accessors)}"
        )
    accessor = target.accessor(type or next(iter(target.accessors)))
    deployment.try_declare()
    target.open(publisher=deployment.bus)
    return StoreSink(target, accessor.record_class, delete)
