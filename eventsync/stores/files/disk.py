"""Files on disk: consistent reads, and durable replacement of a whole file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eventsync.errors import ConfigError, StoreUnavailableError

__all__ = [
    "TRIES",
    "ChangedError",
    "Signature",
    "errors",
    "read",
    "replace",
    "sign",
    "signature_of",
    "sweep",
    "sync",
]

TRIES = 5
"""How many attempts to make when another process writes the file at the same moment."""


class ChangedError(Exception):
    """Another process has changed the file since it was read."""


class Signature(NamedTuple):
    """The properties that tell two states of a file apart without reading it."""

    modified: int
    size: int
    device: int
    inode: int


def sign(status: os.stat_result) -> Signature:
    """Return the signature of a file with this status."""
    return Signature(status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino)


def signature_of(path: Path) -> Signature | None:
    """Return the signature of a file, or ``None`` if the file does not exist."""
    try:
        return sign(path.stat())
    except FileNotFoundError:
        return None


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into an error of eventsync that names the path and the remedy."""
    try:
        yield
    except PermissionError as error:
        raise StoreUnavailableError(
            f"{error.filename or path}: permission denied",
            hint="let the user of this process read and write it and the folder it is in",
        ) from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(
            f"{error.filename or path}: {error.strerror}",
            hint="correct the path: it must name a file in a folder",
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"{error.filename or path}: {error.strerror or error}"
        ) from error


def read(path: Path) -> tuple[bytes, Signature]:
    """Return the content of a file at one moment, and its signature at that moment.

    Raises ``OSError``, and ``StoreUnavailableError`` if the file changes during each attempt.
    """
    for _ in range(TRIES):
        with path.open("rb") as file:
            before = sign(os.fstat(file.fileno()))
            content = file.read()
            if before == sign(os.fstat(file.fileno())) and len(content) == before.size:
                return content, before
    raise StoreUnavailableError(f"{path}: another process is writing it")


def replace(path: Path, content: bytes, expected: Signature | None, *, tag: str) -> Signature:
    """Replace a file with ``content`` and return the signature of the new file.

    A reader sees the old file or the new one, never a part. The content is durable when this
    returns; the name becomes durable with ``sync`` of the folder. ``expected``: the signature of
    the file that ``content`` was made from, or ``None`` if there was no file. ``tag`` marks the
    temporary file, so that ``sweep`` finds it. Raises ``ChangedError``, and changes nothing, if the
    file has another signature now. Raises ``OSError``.
    """
    path = Path(os.path.realpath(path))  # replace the target of a symbolic link, not the link
    partial = path.with_name(f"{_prefix(tag)}{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if expected is not None:
                _copy_owner(path, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            # A write by another process between this check and the next line is lost. No file
            # system offers a call that does both.
            if signature_of(path) != expected:
                raise ChangedError
            os.replace(partial, path)
            return sign(os.fstat(file.fileno()))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _copy_owner(path: Path, descriptor: int) -> None:
    """Give the open file the owner and permissions of the file at ``path``."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return  # deleted since it was read; ``replace`` raises ChangedError next
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) and os.geteuid() == 0:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)


def sync(folder: Path) -> None:
    """Make the replaced and removed names of a folder durable. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, tag: str) -> None:
    """Delete the temporary files that dead writers left. No writer may be active meanwhile."""
    for stray in folder.glob(f"{_prefix(tag)}*.tmp"):
        stray.unlink(missing_ok=True)


def _prefix(tag: str) -> str:
    return f".eventsync-{tag}-"
