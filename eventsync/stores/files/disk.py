"""Files on disk: consistent reads, and durable replacement of a whole file."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eventsync.errors import ConfigError, RecordError, StoreUnavailableError

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


def signature_of(path: Path, *, follow: bool = True) -> Signature | None:
    """Return the signature of a file, or ``None`` if the file does not exist.

    ``follow``: whether to follow a symbolic link, or to return the signature of the link.
    """
    try:
        return sign(path.stat(follow_symlinks=follow))
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


def read(path: Path, *, follow: bool = True) -> tuple[bytes, Signature]:
    """Return the content of a file at one moment, and its signature at that moment.

    ``follow``: whether to follow a symbolic link. In a folder into which others write, a link could
    name a file that only this user may read. Raises ``RecordError`` for a link that is not to be
    followed, and for anything but a regular file; such a thing is not read, and never blocks.
    Raises ``OSError``, and ``StoreUnavailableError`` if the file changes during each attempt.
    """
    for _ in range(TRIES):
        with open(_open(path, follow=follow), "rb") as file:
            before = sign(os.fstat(file.fileno()))
            # One byte more than expected, so that a file that grows cannot be read without end.
            content = file.read(before.size + 1)
            if before == sign(os.fstat(file.fileno())) and len(content) == before.size:
                return content, before
    raise StoreUnavailableError(f"{path}: another process is writing it")


def _open(path: Path, *, follow: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise RecordError(
                "it is a symbolic link, which is not followed",
                hint="replace the link by the file, or remove it",
            ) from error
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular() from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular()
    return descriptor


def _not_regular() -> RecordError:
    return RecordError("it is not a regular file", hint="move it away")


def replace(
    path: Path, content: bytes, expected: Signature | None, *, tag: str, follow: bool = True
) -> Signature:
    """Replace a file with ``content`` and return the signature of the new file.

    A reader sees the old file or the new one, never a part. The content is durable when this
    returns; the name becomes durable with ``sync`` of the folder. ``expected``: the signature of
    the file that ``content`` was made from, or ``None`` if there was no file. ``tag`` marks the
    temporary file, so that ``sweep`` finds it. Raises ``ChangedError``, and changes nothing, if the
    file has another signature now. ``follow``: whether to replace the target of a symbolic link, or
    the link. Raises ``OSError``.
    """
    if follow:
        path = Path(os.path.realpath(path))
    # A new file has the permissions that the system gives to new files. The content of an old one
    # must not be readable for others, not even for a moment.
    mode = 0o666 if expected is None else 0o600
    partial = path.with_name(f"{_prefix(tag)}{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            if expected is not None:
                _copy_owner(path, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            # A write by another process between this check and the next line is lost. No file
            # system offers a call that does both.
            if signature_of(path, follow=follow) != expected:
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
