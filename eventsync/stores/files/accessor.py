"""The base of the file accessors: the folder, the six methods, and errors that name a place."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from eventsync.engine.accessor import Accessor, Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import concerns_all, item_error
from eventsync.engine.replica import Replica
from eventsync.errors import (
    ConfigError,
    DependencyError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.index import FileIndex, Index, IndexTransaction, Presence
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import disk
from eventsync.stores.files.text import Cells, Members
from eventsync.stores.files.watch import FileWatch, Written

__all__ = ["FileAccessor", "SwallowedError", "located", "rejecting_unreadable"]

R = TypeVar("R", bound=Record)


class SwallowedError(DependencyError, RecordError):
    """A record that an incomplete one before it in the file may have taken in.

    It is unreadable, and a change of it waits until the file is repaired.
    """


@contextmanager
def located(place: str, type: str = "", key: str | None = None) -> Iterator[None]:
    """Turn any error of the record at ``place`` into a ``RecordError`` that names the place.

    ``type``, ``key``: of the record, if they are known. An error that concerns the whole store
    passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if concerns_all(error):
            raise
        known = item_error(error)
        named = place if key is None else f"{place}, {type} {key!r}"
        unreadable = RecordError(f"{named}: {known.message}", hint=known.hint)
        unreadable.key, unreadable.place = key, place
        raise unreadable from error


@contextmanager
def rejecting_unreadable() -> Iterator[None]:
    """Reject the write of a record that cannot be read: overwriting it could destroy data."""
    try:
        yield
    except SwallowedError:
        raise
    except RecordError as error:
        raise RejectedError(error.message, hint=error.hint) from error


class FileReplica(Replica):
    """A replica that removes the temporary files of crashed writers before it recovers."""

    accessor: FileAccessor[Any]

    def recover(self, transaction: IndexTransaction) -> None:
        self.accessor.sweep(transaction)
        super().recover(transaction)


class FileAccessor(Accessor[R]):
    """An accessor of records in the files of ``folder``.

    ``tag``: marks the temporary files of this accessor; no other accessor of the folder may use it.
    ``create``: create the folder if it is missing. A file is created with its first record.
    """

    replica_class = FileReplica
    codec: Members | Cells
    """The conversion between field values and what the files hold. Subclasses set it."""

    def __init__(
        self, record_type: type[R], folder: Path, *, tag: str, create: bool, view: View | None
    ) -> None:
        super().__init__(record_type, view=view)
        self._folder = folder
        self._tag = tag
        self._create = create
        self._swept = False

    # -- what a kind of file implements ------------------------------------------------------------

    @abstractmethod
    def index_path(self) -> Path:
        """Return the path of the version index that is used unless the store names another."""

    @abstractmethod
    def read_all(self, query: Query) -> Iterator[R]:
        """Yield all records, and ``pass_over`` those that cannot be read."""

    @abstractmethod
    def write(
        self,
        writes: Sequence[Write],
        removals: Sequence[str],
        transaction: IndexTransaction | None,
    ) -> None:
        """Write and remove records, as ``write_rows`` does; ``None``: outside of a transaction."""

    @abstractmethod
    def places(self) -> Collection[Path]:
        """Return the folders in which the files are. See ``Watched``."""

    @abstractmethod
    def begin_watch(self) -> None:
        """Note what the files hold, to tell later what has changed. See ``Watched``."""

    @abstractmethod
    def written(self, names: Collection[str]) -> Written:
        """Return what became of the files with these names. See ``Watched``."""

    @classmethod
    def sources(cls, accessors: Sequence[FileAccessor[Any]], store: str) -> Sequence[ChangeSource]:
        return [FileWatch(accessors)]

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        self.write([Write(record.key, record.raw(), whole=True)], [], None)

    def update(self, record: R) -> None:
        self.write([Write(record.key, record.changes(), whole=False)], [], None)

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.read_all(query))

    def remove(self, key: str) -> None:
        self.write([], [key], None)

    def record_to_data(self, record: R) -> dict[str, Any]:
        return dict(self.codec.encode(super().record_to_data(record)))

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self.codec.decode(data))

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        self.write(writes, removals, transaction)

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # Without conversions, every value reads back as it was written.
        return self.read_rows(list(writes), transaction) if self.view.convert else {}

    # -- lifecycle ---------------------------------------------------------------------------------

    def default_index(self) -> Index:
        return FileIndex(self.index_path())

    def ensure(self) -> None:
        with disk.errors(self._folder):
            if not self._folder.exists() and self._create and not self.knows_records():
                self._folder.mkdir(parents=True, exist_ok=True)
        self.check_folder()

    def findings(self) -> Iterator[Finding]:
        with disk.errors(self._folder):
            absent = not self._folder.exists() and self._create and not self.knows_records()
        if absent:
            text = (
                f"the folder {self._folder} does not exist yet; a worker or `eventsync check"
                " --create` makes it"
            )
            yield Finding(Level.OK, self.type.name, text, absent=True)

    def ping(self) -> None:
        self.check_folder()
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnavailableError(
                f"{self._folder}: permission denied",
                hint="let the user of this process write to the folder: files in it are replaced",
            )

    def loss(self) -> str | None:
        found = self.absence() if self.knows_records() else None
        return None if found is None else f"{found}, although it held records of {self.type.name}"

    def accept_loss(self) -> int:
        if self.loss() is None or not (self._create or self._folder.exists()):
            return 0
        with self.index.transaction() as transaction:
            known = [
                key for key, _ in self.index.entries(self.type.name, presence=Presence.PRESENT)
            ]
            transaction.forget(self.type.name, known)
        self.ensure()
        return len(known)

    def absence(self) -> str | None:
        """Return a sentence if the files of all records are gone or empty, else ``None``."""
        exists = self._folder.is_dir()
        return None if exists else f"the folder {self._folder} does not exist"

    def sweep(self, transaction: IndexTransaction) -> None:
        """Delete the temporary files of crashed writers, if there may be any."""
        if not self._swept or transaction.open_intents(self.type.name):
            with disk.errors(self._folder):
                disk.sweep(self._folder, self._tag)
            self._swept = True

    def check_folder(self) -> None:
        """Raise an error with the remedy unless the folder exists."""
        if self._folder.is_dir():
            return
        if self._folder.exists():
            raise ConfigError(
                f"{self._folder} is a file, where a folder is expected", hint="name a folder"
            )
        raise self.broken(
            f"the folder {self._folder} does not exist",
            hint="create it, mount it or correct the path",
        )

    # -- doubtful content --------------------------------------------------------------------------

    def check_missing(
        self,
        missing: Sequence[str],
        unreadable: Sequence[RecordError],
        transaction: IndexTransaction | None,
        *,
        kind: type[RecordError] = RecordError,
    ) -> None:
        """Raise a ``RecordError`` if unreadable content may hold one of the missing records.

        ``missing``: keys that were not found. ``unreadable``: the errors of content without a
        readable key. ``kind``: the class of the error.
        """
        if not missing or not unreadable or transaction is None:
            return
        entries = transaction.read(self.type.name, missing)
        present = [key for key, entry in entries.items() if entry.presence is Presence.PRESENT]
        if present:
            raise kind(
                f"{self.type.name} {present[0]!r} was not found. Unreadable content may hold it: "
                f"{unreadable[0].message}",
                hint=unreadable[0].hint,
            )

    def key_of(self, data: Mapping[str, Any]) -> str:
        """Return the key of the record in ``data``, looking at the key fields only."""
        names = (self.view.names[name] for name in self.type.keys)
        part = {name: data[name] for name in names if name in data}
        return self.type.key_text(self.view.to_record(self.codec.decode(part)))

    def kept(self, written: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a record will hold: ``held`` with what is ``written`` to it.

        Its key stays as somebody wrote it (``01``), since it is the same key.
        """
        keys = {self.view.names[name] for name in self.type.keys}
        return {**held, **{n: v for n, v in written.items() if n not in keys or n not in held}}

    def named(self, key: str) -> str:
        """Return how error messages name a record."""
        return f"{self.type.name} {key!r}"

    def knows_records(self) -> bool:
        """Return whether the version index lists records of this type as present."""
        if self._index is None:
            return False
        try:
            if self._index.missing():
                return False  # to count would create it
            return self._index.counts(self.type.name)[Presence.PRESENT] > 0
        except ConfigError:
            return False  # the index itself is in a folder that does not exist

    def broken(self, message: str, *, hint: str) -> EventSyncError:
        """Return the error for files that cannot be used as they are.

        If the store held records before, the error is retryable: the worker waits until the files
        are back, and never takes their absence for deletes. Otherwise it is a ``ConfigError``.
        """
        if self.knows_records():
            return StoreUnavailableError(f"{message}, although it held records before", hint=hint)
        return ConfigError(message, hint=hint)
