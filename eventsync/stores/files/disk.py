"""Files that are replaced whole and durably, and what every accessor on them shares.

It knows nothing of what is in a file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.engine.replica import Replica
from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.index import FileIndex, Index, IndexTransaction, Presence
from eventsync.records.record import Record
from eventsync.records.view import View

__all__ = [
    "TRIES",
    "ChangedError",
    "OnDisk",
    "Signature",
    "errors",
    "located",
    "read",
    "rejecting_unreadable",
    "replace",
    "sign",
    "signature_of",
    "sweep",
    "sync",
]

R = TypeVar("R", bound=Record)
TRIES = 5
"""How often to begin again when somebody else writes a file at the same moment."""


class ChangedError(Exception):
    """The file is not the one any more from which its successor was made."""


class Signature(NamedTuple):
    """What tells one state of a file from another without reading it."""

    modified: int
    size: int
    device: int
    inode: int


def sign(status: os.stat_result) -> Signature:
    """The signature of a file of this status."""
    return Signature(status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino)


def signature_of(path: Path) -> Signature | None:
    """The signature of a file, ``None`` if there is none."""
    try:
        return sign(path.stat())
    except FileNotFoundError:
        return None


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into eventsync's, which say what to do."""
    try:
        yield
    except PermissionError as error:
        raise StoreUnavailableError(
            f"{error.filename or path}: permission denied",
            hint="let the user of this process read and write it and the folder it is in",
        ) from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}") from error
    except OSError as error:
        raise StoreUnavailableError(
            f"{error.filename or path}: {error.strerror or error}"
        ) from error


@contextmanager
def located(place: str) -> Iterator[None]:
    """Say of what is wrong with a record where it is."""
    try:
        yield
    except RecordError as error:
        raise RecordError(f"{place}: {error.message}", hint=error.hint) from error


@contextmanager
def rejecting_unreadable() -> Iterator[None]:
    """A record that cannot be read cannot be written over either: somebody has to look at it."""
    try:
        yield
    except RecordError as error:
        raise RejectedError(error.message, hint=error.hint) from error


def read(path: Path) -> tuple[bytes, Signature]:
    """All of a file from one moment, and its signature then. Raises ``OSError``."""
    for _ in range(TRIES):
        with path.open("rb") as file:
            before = sign(os.fstat(file.fileno()))
            content = file.read()
            if before == sign(os.fstat(file.fileno())) and len(content) == before.size:
                return content, before
    raise StoreUnavailableError(f"{path} is being written by somebody else")


def replace(path: Path, content: bytes, held: Signature | None, *, tag: str) -> Signature:
    """Put ``content`` in place of the file, durably but for the folder (``sync``); its signature.

    Whoever reads sees the old file or the new one. ``held``: the file this content was made from,
    ``None`` for a new one; if another is there by now ``ChangedError`` is raised and nothing done.
    ``tag`` names the temporary file, for ``sweep``. Raises ``OSError``.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    partial = path.with_name(f"{_prefix(tag)}{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if held is not None:
                _take_owner(file.fileno(), path)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            # What somebody else saves between here and the next line is lost; nothing can help it.
            if signature_of(path) != held:
                raise ChangedError
            os.replace(partial, path)
            return sign(os.fstat(file.fileno()))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _take_owner(descriptor: int, path: Path) -> None:
    """Give a file's successor its owner and permissions."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return  # gone since it was read: ``replace`` is about to notice
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) and os.geteuid() == 0:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)


def sync(folder: Path) -> None:
    """Make what was replaced or removed in a folder durable. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, tag: str) -> None:
    """Remove the temporary files of writers that died. Nobody may be writing meanwhile."""
    for stray in folder.glob(f"{_prefix(tag)}*.tmp"):
        stray.unlink(missing_ok=True)


def _prefix(tag: str) -> str:
    return f".eventsync-{tag}-"


class _DiskReplica(Replica):
    """A replica that removes the temporary files of crashed writers before it recovers."""

    accessor: OnDisk[Any]

    def recover(self, transaction: IndexTransaction) -> None:
        self.accessor.sweep(transaction)
        super().recover(transaction)


class OnDisk(Accessor[R]):
    """An accessor on ``folder``: its lifecycle, and the question what was there before.

    ``tag``: a name of its own for its temporary files in that folder. ``create``: create the folder
    if it is missing; a file is created with its first record.
    """

    replica_class = _DiskReplica

    def __init__(
        self, record_type: type[R], folder: Path, *, tag: str, create: bool, view: View | None
    ) -> None:
        super().__init__(record_type, view=view)
        self._folder = folder
        self._tag = tag
        self._create = create
        self._swept = False

    def index_path(self) -> Path:
        """Where the version index is unless the store is given another."""
        raise NotImplementedError

    def default_index(self) -> Index:
        return FileIndex(self.index_path())

    def ensure(self) -> None:
        with errors(self._folder):
            if not self._folder.exists() and self._create and not self.knows_records():
                self._folder.mkdir(parents=True, exist_ok=True)
        self.check_folder()

    def ping(self) -> None:
        self.check_folder()
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnavailableError(
                f"{self._folder}: permission denied",
                hint="files in it are replaced, so this process needs to write to the folder",
            )

    def sweep(self, transaction: IndexTransaction) -> None:
        """Remove the temporary files of crashed writers, if there may be any."""
        if not self._swept or transaction.open_intents(self.type.name):
            with errors(self._folder):
                sweep(self._folder, self._tag)
            self._swept = True

    def check_folder(self) -> None:
        """Raise an error that says what is wrong unless the folder is there."""
        if self._folder.is_dir():
            return
        if self._folder.exists():
            raise ConfigError(f"{self._folder} is not a folder", hint="name a folder")
        raise self.broken(
            f"the folder {self._folder} is not there",
            hint="create it, mount it or correct the path",
        )

    def check_missing(
        self,
        missing: Sequence[str],
        lost: Sequence[RecordError],
        transaction: IndexTransaction | None,
    ) -> None:
        """Raise if a record that should be there may be in what cannot be read.

        ``missing``: keys that were not found; ``lost``: the errors of what has no readable key.
        """
        if not missing or not lost or transaction is None:
            return
        entries = transaction.read(self.type.name, missing)
        here = [key for key, entry in entries.items() if entry.presence is Presence.PRESENT]
        if here:
            raise RecordError(
                f"{self.type.name} {here[0]!r} is not found, and may be in what is unreadable: "
                f"{lost[0].message}",
                hint=lost[0].hint,
            )

    def key_part(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a record's data, by the store's names, that its key is in."""
        names = (self.view.names[name] for name in self.type.keys)
        return {name: data[name] for name in names if name in data}

    def key_of(self, stored: Mapping[str, Any]) -> str:
        """The key of what ``View.to_record`` takes. Raises ``RecordError``."""
        return self.type.key_text(self.view.to_record(stored))

    def knows_records(self) -> bool:
        """Whether records of the type were here when eventsync last looked."""
        if self._index is None:
            return False
        try:
            return self._index.counts(self.type.name)[Presence.PRESENT] > 0
        except ConfigError:
            return False  # the index itself is in a folder that is not there

    def broken(self, message: str, *, hint: str) -> EventSyncError:
        """The error for files that cannot be used as they are.

        Where records were before, something happened to them: that is waited out, and on no account
        is it taken for an empty store. Where none were, the configuration is wrong.
        """
        if self.knows_records():
            return StoreUnavailableError(f"{message}, though it held records before", hint=hint)
        return ConfigError(message, hint=hint)
