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
    """A place to which ``eventsync publish`` writes records of one type.

    ``partial``: whether a record that is written to this place may leave out fields.
    """

    partial = True

    def __init__(self, record_type: type[Record]) -> None:
        self.record_type = record_type

    def write(self, lines: Sequence[RecordLine]) -> list[RecordLine]:
        """Write the records of ``lines``, and return the lines that the target refused.

        The ``error`` of each refused line is set. It is safe to write the same lines again. Raises
        ``StoreUnavailableError`` or ``BusUnavailableError`` if the store or the broker does not
        answer; then some lines may be written already.
        """
        raise NotImplementedError

    def finish(self) -> BusUnavailableError | None:
        """Return the error that prevented the publication of changes, or ``None``.

        The records are written, and their changes wait in the outbox of the store.
        """
        return None


class StoreTarget(Target):
    """A store as the target. The store writes each record and publishes the change."""

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
    """The bus or a spool as the target. Each record becomes a put or delete for all stores."""

    partial = False

    def __init__(self, publisher: Publisher, record_type: type[Record], delete: bool) -> None:
        super().__init__(record_type)
        self._publisher = publisher
        self._delete = delete
        self._clock = Clock()

    def write(self, lines: Sequence[RecordLine]) -> list[RecordLine]:
        envelopes: list[bytes] = []

        def encode(part: Sequence[RecordLine]) -> None:
            # A list, so that nothing is added if a line of the part cannot be encoded.
            envelopes.extend([self._encode(line) for line in part])

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
    """Call ``call`` with ``lines``, and return the lines that it refuses, with ``error`` set.

    If ``call`` fails, it is called again with smaller parts, until each refused line is alone.
    """
    refused = []
    for part in isolate(lines, call, shared=_concerns_all):
        if isinstance(part, Failed):
            part.item.error = str(item_error(part.error))
            refused.append(part.item)
    return refused


def _concerns_all(error: Exception) -> bool:
    """Return whether an error must stop the command, because it concerns more than one line.

    A record that depends on a missing one (``DependencyError``) does not stop the command: its line
    is reported as wrong.
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
    """Return the target: the store, the spool file, or the bus if both are ``None``.

    The store is opened. ``type``: the name of the record type; may be ``None`` for a store with one
    type.

    Raises ``typer.BadParameter`` if both ``store`` and ``spool`` are given, or neither ``store``
    nor ``type``. Raises ``ConfigError`` if the store or the type does not exist, or if ``type`` is
    missing and the store holds several types. Raises ``BusUnavailableError`` if the target is the
    bus and the broker does not answer.
    """
    if store is not None and spool is not None:
        raise typer.BadParameter(
            "STORE and --spool exclude each other, because a store has its own outbox; leave out "
            "one of them"
        )
    if store is None:
        if type is None:
            raise typer.BadParameter(
                "neither a store nor a record type is given; name a STORE or use --type"
            )
        record_type = deployment.record_type(type)
        publisher = deployment.declare() if spool is None else deployment.spool(spool)
        return BusTarget(publisher, record_type, delete)
    target = deployment.store(store)
    if type is None and len(target.accessors) > 1:
        raise ConfigError(
            f"the store {store!r} holds several record types, so --type is required",
            hint=f"add --type {'|'.join(target.accessors)}",
        )
    accessor = target.accessor(type or next(iter(target.accessors)))
    deployment.try_declare()
    target.open(publisher=deployment.bus)
    return StoreTarget(target, accessor.record_class, delete)
