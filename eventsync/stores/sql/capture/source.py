"""What the change sources of SQL stores share: the captured tables, and the keys of their rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from eventsync.engine.change_source import ChangeSource
from eventsync.stores.sql.dialect import Dialect

__all__ = ["Captured", "CapturedTable", "Replication", "SqlSource"]


@dataclass(slots=True, frozen=True)
class CapturedTable:
    """A table whose foreign writes are captured.

    - ``type``: the name of the record type.
    - ``schema``, ``name``: the names of schema and table; no schema means the default one.
    - ``keys``: the names of the key columns, in the order of the record's key fields.
    - ``key_text``: returns the key of a record from the values of its key columns, as the driver
      returns them. Raises ``EventSyncError`` if a value is no key.
    """

    type: str
    schema: str | None
    name: str
    keys: tuple[str, ...]
    key_text: Callable[[Sequence[Any]], str]


@dataclass(slots=True, frozen=True)
class Replication:
    """How the log of a PostgreSQL database is read, where the defaults do not fit.

    - ``url``: the URL of the server for the replication connection. A pooler, to which the URL of
      the accessor may lead, has no such connections.
    - ``slot``, ``publication``: the names of a replication slot and of a publication that an
      administrator has made.
    """

    url: str | None = None
    slot: str | None = None
    publication: str | None = None


class Captured(Protocol):
    """What a source needs of an SQL accessor."""

    engine: sa.Engine
    dialect: Dialect
    replication: Replication | None

    def captured_table(self) -> CapturedTable:
        """Return what a source needs to know of the table. Connects to the database."""


class SqlSource(ChangeSource):
    """A change source of one database. ``accessors``: those of one store."""

    def __init__(self, accessors: Sequence[Captured]) -> None:
        self._accessors = list(accessors)

    @property
    def engine(self) -> sa.Engine:
        """The engine of the store's database."""
        # Asked for each time, because a store gives all its accessors one engine when it is made.
        return self._accessors[0].engine

    @property
    def dialect(self) -> Dialect:
        """The dialect of the database."""
        return self._accessors[0].dialect

    @property
    def replication(self) -> Replication:
        """How the log is read: the first answer that an accessor has."""
        given = (accessor.replication for accessor in self._accessors)
        return next((one for one in given if one is not None), Replication())

    def tables(self) -> list[CapturedTable]:
        """Return the captured tables. Connects to the database."""
        return [accessor.captured_table() for accessor in self._accessors]

    @abstractmethod
    def close(self) -> None:
        """Close connections. Idempotent."""
