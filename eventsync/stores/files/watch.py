"""The change source of files: the operating system tells which files were written.

These are hints. Network file systems do not tell what other machines write, and a burst of events
may be cut short, so a capture that reads all files stays necessary.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from eventsync.engine.change_source import Changes, ChangeSource, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, EventSyncError, RecordError, StoreUnavailableError
from eventsync.records.record import RecordType

__all__ = ["FileWatch", "Watched", "Written", "file_system"]

_INSTALL: Final = "pip install 'eventsync[watch]'"
_NETWORK: Final = ("nfs", "cifs", "smb", "9p", "fuse", "vboxsf", "ceph", "gluster", "afs", "virtio")
"""The beginnings of the names of file systems that other machines may write to."""
# How long to wait for more events before the first ones are told, in milliseconds.
_STEP: Final = 20
_DEBOUNCE: Final = 100
# How long without an event until the folders are checked, in milliseconds.
_QUIET: Final = 200
_POLL: Final = 1000
_START: Final = 30.0
# A file that cannot be read is tried again for so many seconds: an editor may be writing it.
_PATIENCE: Final = 3.0
_QUEUE: Final = Path("/proc/sys/fs/inotify/max_queued_events")
_MOUNTS: Final = Path("/proc/self/mountinfo")


@dataclass(slots=True)
class Written:
    """What became of files that were written.

    ``keys``: the keys of the records in them, now and before. ``unreadable``: the errors of records
    without a readable key. ``whole``: why all records must be read, if so.
    """

    keys: Collection[str] = ()
    unreadable: Sequence[RecordError] = ()
    whole: str = ""


class Watched(Protocol):
    """What the source needs of an accessor."""

    type: RecordType

    def places(self) -> Collection[Path]:
        """Return the folders in which the files are."""

    def begin_watch(self) -> None:
        """Note what the files hold, to tell later what has changed."""

    def written(self, names: Collection[str]) -> Written:
        """Return what became of the files with these names. Raises ``EventSyncError``.

        Names of other files of the folder may be among them.
        """


@dataclass(slots=True)
class _Waiting:
    """What was told and is not taken yet: names by folder, and the folders told as a whole."""

    names: dict[str, set[str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    error: BaseException | None = None


class FileWatch(ChangeSource):
    """Tells the records in files that were written, replaced, renamed or deleted.

    A thread waits for the events. ``polling``: whether to compare the times of the files instead,
    once a second; by default only on network file systems.
    """

    kind = "watch"
    complete = False

    def __init__(self, accessors: Sequence[Watched], *, polling: bool | None = None) -> None:
        self._accessors = list(accessors)
        self._polling = polling
        self._changed = threading.Condition()
        self._waiting = _Waiting()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # By record type: names of files that could not be read, and since when.
        self._again: dict[str, tuple[set[str], float]] = {}

    def folders(self) -> dict[str, os.stat_result]:
        """Return the watched folders, each with its status. Raises ``StoreUnavailableError``."""
        found = {}
        for folder in {
            os.path.realpath(place) for one in self._accessors for place in one.places()
        }:
            try:
                found[folder] = os.stat(folder)
            except OSError as error:
                raise StoreUnavailableError(
                    f"the folder {folder} cannot be watched: {error.strerror}",
                    hint="create it, mount it, or let the user of this process read it",
                ) from error
        return found

    # -- watching ----------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        watch, folders = _watch(), self.folders()
        self._waiting, self._again = _Waiting(), {}
        self._stop, began = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(watch, folders, began), name="eventsync-watch", daemon=True
        )
        self._thread.start()
        if not began.wait(_START):
            raise StoreUnavailableError("the folders could not be watched in time")
        self._raise_failure()
        for accessor in self._accessors:
            accessor.begin_watch()
        return mark

    def _run(
        self,
        watch: Callable[..., Iterator[set[tuple[Any, str]]]],
        folders: Mapping[str, os.stat_result],
        began: threading.Event,
    ) -> None:
        most, burst = _longest_burst(), 0
        try:
            for events in watch(
                *folders,
                watch_filter=_is_foreign,
                debounce=_DEBOUNCE,
                step=_STEP,
                stop_event=self._stop,
                rust_timeout=_QUIET,
                yield_on_timeout=True,
                raise_interrupt=False,
                recursive=False,
                force_polling=self._is_polling(folders) or None,
                poll_delay_ms=_POLL,
            ):
                began.set()
                if events:
                    burst += len(events)
                    # A folder that was removed may be made anew with the same inode.
                    _refuse_replaced(
                        folders.keys() & {path for event, path in events if event.name == "deleted"}
                    )
                    self._note({os.path.split(path) for _, path in events})
                    continue
                if burst > most:
                    # The system drops events when too many wait, and the library does not tell it.
                    with self._changed:
                        self._waiting.whole |= folders.keys()
                        self._changed.notify()
                burst = 0
                self._check(folders)
        except Exception as error:
            with self._changed:
                self._waiting.error = error
                self._changed.notify()
        finally:
            began.set()

    def _note(self, events: Collection[tuple[str, str]]) -> None:
        with self._changed:
            for folder, name in events:
                self._waiting.names.setdefault(folder, set()).add(name)
            self._changed.notify()

    def _check(self, folders: Mapping[str, os.stat_result]) -> None:
        """Raise ``StoreUnavailableError`` if a folder is no longer the one that is watched."""
        now = self.folders()
        _refuse_replaced(
            {one for one, status in folders.items() if not os.path.samestat(status, now[one])}
        )

    def _is_polling(self, folders: Collection[str]) -> bool:
        if self._polling is not None:
            return self._polling
        return any(file_system(folder).startswith(_NETWORK) for folder in folders)

    def changes(self, mark: str, *, wait: float) -> Changes:
        with self._changed:
            if not (self._waiting.names or self._waiting.whole or self._waiting.error):
                self._changed.wait(_STEP / 1000 if self._again else wait)
            self._raise_failure()
            waiting, self._waiting = self._waiting, _Waiting()
        keys: dict[str, dict[str, float | None]] = {}
        whole: dict[str, str] = {}
        unreadable: list[tuple[str, RecordError]] = []
        for accessor in self._accessors:
            type = accessor.type.name
            places = {os.path.realpath(place) for place in accessor.places()}
            names = set().union(*(waiting.names.get(place, ()) for place in places))
            if names or type in self._again:
                found = self._written(accessor, names)
                keys[type] = dict.fromkeys(found.keys)
                unreadable += [(type, error) for error in found.unreadable]
                if found.whole:
                    whole[type] = found.whole
            if places & waiting.whole:
                whole[type] = "so many files were written that events may be lost"
        keys = {type: some for type, some in keys.items() if some}
        return Changes(mark, keys, whole, unreadable=unreadable)

    def _written(self, accessor: Watched, names: set[str]) -> Written:
        type = accessor.type.name
        before, since = self._again.pop(type, (set(), time.monotonic()))
        names |= before
        try:
            return accessor.written(names)
        except EventSyncError as error:
            # Many programs empty a file before they write it.
            if time.monotonic() - since < _PATIENCE:
                self._again[type] = names, since
                return Written()
            return Written(whole=str(error))

    def _raise_failure(self) -> None:
        error = self._waiting.error
        if error is None:
            return
        if isinstance(error, EventSyncError):
            raise error
        raise StoreUnavailableError(
            f"the folders cannot be watched: {error}",
            hint="if there are too many watches, raise fs.inotify.max_user_watches and "
            "fs.inotify.max_user_instances",
        ) from error

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join(_START)

    # -- what an operator does ---------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        try:
            _watch()
        except ConfigError as error:
            yield Finding(Level.WRONG, "capture", f"{error.message}; {error.hint}")

    def state(self) -> SourceState:
        folders = self.folders()
        way = "polling" if self._is_polling(folders) else "events"
        details = {folder: f"{way}, {file_system(folder) or 'unknown'}" for folder in folders}
        return SourceState(installed=True, details=details)


def _watch() -> Callable[..., Iterator[set[tuple[Any, str]]]]:
    try:
        # Imported here, because most file stores do not need it.
        from watchfiles import watch
    except ImportError as error:
        raise ConfigError("to watch files, watchfiles is needed", hint=_INSTALL) from error
    return watch


def _refuse_replaced(folders: Collection[str]) -> None:
    for folder in sorted(folders):
        raise StoreUnavailableError(f"the folder {folder} was replaced by another one")


def _is_foreign(event: Any, path: str) -> bool:
    """Return whether a file is none of eventsync's own, which are written all the time."""
    return ".eventsync" not in os.path.basename(path)


def _longest_burst() -> int:
    """Return how many events may come without a pause until some may have been lost."""
    try:
        return int(_QUEUE.read_text()) // 8
    except (OSError, ValueError):
        return 2048


def file_system(path: str) -> str:
    """Return the name of the file system that holds ``path``; empty if the system does not say."""
    best, found = "", ""
    try:
        for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split(" ")[4].replace("\\040", " ")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, found = point, rest.split(" ")[0]
    except (OSError, IndexError):
        return ""
    return found
