"""One file that holds all records of a type: its content in memory, and its replacement."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.accessor import Write
from eventsync.engine.finding import Finding, Level
from eventsync.errors import (
    DependencyError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
    kept,
)
from eventsync.index import IndexTransaction, Presence
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import disk
from eventsync.stores.files.accessor import (
    FileAccessor,
    SwallowedError,
    located,
    rejecting_unreadable,
)
from eventsync.stores.files.watch import Written
from eventsync.values.garbage import collection_paused

__all__ = ["BOM", "Content", "Segment", "SingleFileAccessor"]

R = TypeVar("R", bound=Record)
BOM: Final = "\ufeff"
"""The byte order mark that some programs write at the beginning of a file."""
_YOUNG: Final = 0.1
_YOUNG_COARSE: Final = 2.5


@dataclass(slots=True)
class Segment:
    """The part of the file that one record takes up: its text, line ends included, and its data.

    ``data``: by the store's names; ``None`` for text without a readable record. ``line``: the
    number of its first line when the file was read; 0 for a segment that was added since.
    """

    text: str
    data: dict[str, Any] | None = None
    line: int = 0


@dataclass(slots=True)
class Content:
    """The content of a file. It does not change once it is made.

    ``header``: the text before the first record. ``segments``: the rest, by a number that stays the
    same from one content to the next. ``numbers``: by key, the number of its segment.
    ``duplicates``: the error for each key that stands in several segments. ``unreadable``: the
    errors of segments whose key cannot be read. ``open``: the error of the last segment if text
    that follows it would become a part of it. ``columns``: the names in the header of a table.
    ``line_end``: what ends its lines. ``signature``: of the file, ``None`` if there is no file.
    ``digest``: of its bytes.
    """

    header: str = ""
    columns: list[str] = field(default_factory=list)
    line_end: str = "\n"
    segments: dict[int, Segment] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, RecordError] = field(default_factory=dict)
    unreadable: list[RecordError] = field(default_factory=list)
    open: RecordError | None = None
    signature: disk.Signature | None = None
    digest: bytes = b""

    def text(self) -> str:
        """Return the whole text, as the file has to hold it."""
        return self.header + "".join(segment.text for segment in self.segments.values())

    def segment_of(self, key: str) -> Segment:
        """Return the segment of a key, which must be in ``numbers``."""
        return self.segments[self.numbers[key]]


class SingleFileAccessor(FileAccessor[R]):
    """Records of one type in one file, which is read whole and replaced whole.

    The content stays in memory and is used as long as the file is the same, so reading records one
    by one is fast. Text that cannot be read affects no other record, and stays in the file.
    """

    atomic: ClassVar[bool] = True

    def __init__(
        self,
        record_type: type[R],
        path: str | os.PathLike[str],
        *,
        view: View | None,
        create: bool,
        encoding: str,
    ) -> None:
        self._path = Path(path)
        # The other files of the folder may belong to other stores, whose locks are not ours.
        tag = hashlib.blake2b(self._path.name.encode(), digest_size=6).hexdigest()
        super().__init__(record_type, self._path.parent, tag=tag, create=create, view=view)
        self._encoding = encoding
        self._content: Content | None = None
        # The content when it was last told, to tell what has changed.
        self._told: Content | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {str(self._path)!r})"

    def index_path(self) -> Path:
        return self._path.with_name(f".{self._path.name}.eventsync.db")

    # -- what a file format implements -------------------------------------------------------------

    @abstractmethod
    def parse(self, text: str) -> Content:
        """Return the content of a file, without ``numbers`` and ``duplicates``.

        What cannot be parsed is a segment without data, and its error is in ``unreadable``.
        """

    @abstractmethod
    def format(self, data: Mapping[str, Any], content: Content) -> str:
        """Return the text of a record for a file with this content. Raises ``RejectedError``."""

    @abstractmethod
    def empty(self) -> Content:
        """Return the content of a file without records that cannot be mistaken for a lost file."""

    # -- reading -----------------------------------------------------------------------------------

    def get(self, key: str) -> R | None:
        content = self._load()
        if key in content.duplicates:
            raise content.duplicates[key]
        if key not in content.numbers:
            if content.unreadable:
                raise content.unreadable[0]  # the record may be in that segment
            return None
        return self._record(content.segment_of(key), key)

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        content = self._load()
        self._check(keys, content, transaction)
        return {
            key: self._record(content.segment_of(key), key).raw()
            for key in keys
            if key in content.numbers
        }

    def read_all(self, query: Query) -> Iterator[R]:
        content = self._load()
        for error in (*content.unreadable, *content.duplicates.values()):
            self.pass_over(error, query)
        for key in content.numbers:
            if key in content.duplicates:
                continue
            try:
                record = self._record(content.segment_of(key), key)
            except RecordError as error:
                self.pass_over(error, query)
            else:
                yield record

    # -- lifecycle ---------------------------------------------------------------------------------

    def ensure(self) -> None:
        super().ensure()
        self._load()

    def findings(self) -> Iterator[Finding]:
        absent = list(super().findings())
        yield from absent
        if absent:
            return
        content = self._load()
        if content.open is not None:
            yield Finding(
                Level.WRONG,
                self.type.name,
                f"{content.open}; until then no record is appended to the file, and records behind "
                "this place may have become a part of it",
            )
        broken = [*content.unreadable, *content.duplicates.values()]
        others = [error for error in broken if error is not content.open]
        if others:
            yield Finding(
                Level.RISK,
                self.type.name,
                f"{len(others):,} records of {self._path} cannot be read, the first: {others[0]}",
            )

    def ping(self) -> None:
        super().ping()
        self._load()

    def close(self) -> None:
        self._content = None

    # -- writing -----------------------------------------------------------------------------------

    def write(
        self,
        writes: Sequence[Write],
        removals: Sequence[str],
        transaction: IndexTransaction | None,
    ) -> None:
        encoded = [dict(self.codec.encode(self.view.to_store(write.values))) for write in writes]
        for _ in range(disk.TRIES):
            content = self._load()
            with rejecting_unreadable():
                self._check([*(w.key for w in writes), *removals], content, transaction)
            changed = self._changed(content, writes, encoded, removals)
            if changed is None:
                return
            try:
                raw = changed.text().encode(self._encoding, "surrogateescape")
                with disk.errors(self._path):
                    changed.signature = disk.replace(
                        self._path, raw, content.signature, tag=self._tag
                    )
                    disk.sync(self._folder)
            except disk.ChangedError:
                continue
            changed.digest = _digest(raw)
            self._content = changed
            return
        raise StoreUnavailableError(f"{self._path}: another process keeps changing it")

    def _changed(
        self,
        content: Content,
        writes: Sequence[Write],
        encoded: Sequence[dict[str, Any]],
        removals: Sequence[str],
    ) -> Content | None:
        """Return the content after these writes and removals; ``None`` if nothing changes."""
        start = content if content.header or content.segments else self.empty()
        # Of a file without records only the header is kept.
        segments = dict(start.segments) if start.numbers or start.unreadable else {}
        numbers = dict(start.numbers)
        next_number = max(segments, default=0) + 1
        unchanged = True
        for write, stored in zip(writes, encoded, strict=True):
            number = numbers.get(write.key)
            if number is not None:
                old = segments[number].data
                assert old is not None
                data = self.kept(stored, old)
                if data == old:
                    continue
            elif write.whole:
                if start.open is not None:
                    raise DependencyError(
                        f"{self.named(write.key)} cannot be appended to {self._path}, whose last "
                        f"record is not complete: {start.open.message}",
                        hint=start.open.hint,
                    )
                data = {**self.codec.encode(self.view.constant), **stored}
                number, next_number = next_number, next_number + 1
                self._end_last_line(segments, start.line_end)
                numbers[write.key] = number
            else:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} disappeared from {self._path} "
                    "during its update"
                )
            segments[number] = Segment(self._text(data, start), data)
            unchanged = False
        for key in removals:
            if key in numbers:
                del segments[numbers.pop(key)]
                unchanged = False
        if unchanged:
            return None
        return replace(start, segments=segments or self.empty().segments, numbers=numbers)

    def _text(self, data: dict[str, Any], content: Content) -> str:
        text = self.format(data, content)
        try:
            text.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            raise RejectedError(
                f"{self._path}: {error.object[error.start : error.end]!r} cannot be encoded as "
                f"{self._encoding}"
            ) from error
        return text

    @staticmethod
    def _end_last_line(segments: dict[int, Segment], line_end: str) -> None:
        if segments:
            number = next(reversed(segments))
            last = segments[number]
            if not last.text.endswith(("\n", "\r")):
                segments[number] = replace(last, text=last.text + line_end)

    # -- watching ----------------------------------------------------------------------------------

    def places(self) -> set[Path]:
        return {self._folder, Path(os.path.realpath(self._path)).parent}

    def begin_watch(self) -> None:
        self._told = None
        with contextlib.suppress(EventSyncError):  # it is told when it is written again
            self._told = self._load()

    def written(self, names: Collection[str]) -> Written:
        if self._path.name not in names and os.path.basename(self._path.resolve()) not in names:
            return Written()
        before, now = self._told, self._load()
        self._told = now
        if before is None:
            return Written(whole=f"the file {self._path} could not be read before")
        if before is now or before.digest == now.digest:
            return Written()
        known = {error.message for error in before.unreadable}
        unreadable = [error for error in now.unreadable if error.message not in known]
        # A record that eventsync added after ``before`` may be gone already.
        known_keys = self.index.entries(self.type.name, presence=Presence.PRESENT)
        gone = {key for key, _ in known_keys if key not in now.numbers}
        return Written(_differing(before, now) | gone, unreadable)

    # -- the file ----------------------------------------------------------------------------------

    def _load(self) -> Content:
        """Return the content of the file as it is now, read anew only if the file has changed."""
        self.check_folder()
        cached = self._content
        with disk.errors(self._path):
            signature = disk.signature_of(self._path)
            if signature is None:
                return self._missing()
            if cached is not None and cached.signature == signature and _is_conclusive(signature):
                return cached
            raw, signature = disk.read(self._path)
        digest = _digest(raw)
        if cached is not None and cached.digest == digest:
            self._content = replace(cached, signature=signature)
            return self._content
        content = self._parse(raw)
        content.signature, content.digest = signature, digest
        self._content = content
        return content

    def absence(self) -> str | None:
        if (found := super().absence()) is not None:
            return found
        with disk.errors(self._path):
            if not self._path.exists():
                return f"the file {self._path} does not exist"
            return f"the file {self._path} is empty" if not self._path.stat().st_size else None

    def _missing(self) -> Content:
        self._content = None
        if not self._create or self.knows_records():
            raise self.broken(
                f"the file {self._path} does not exist",
                hint="restore it; if all records were deleted on purpose, create it with the "
                f"content {self.empty().text()!r}",
            )
        return Content()

    def _parse(self, raw: bytes) -> Content:
        if not raw.removeprefix(codecs.BOM_UTF8) and self.knows_records():
            raise self.broken(
                f"the file {self._path} is empty",
                hint="restore it; if all records were deleted on purpose, write "
                f"{self.empty().text()!r} to it",
            )
        try:
            with collection_paused():
                content = self.parse(raw.decode(self._encoding, "surrogateescape"))
        except UnicodeError as error:
            raise self.broken(
                f"{self._path}: {error}",
                hint=f"save the file as {self._encoding}, or pass its encoding",
            ) from error
        for number, segment in content.segments.items():
            if segment.data is None:
                continue
            try:
                key = self._key_of(segment)
            except RecordError as error:
                content.unreadable.append(kept(error))
                continue
            first = content.numbers.setdefault(key, number)
            if first != number:
                twice = RecordError(
                    f"{self._path}, lines {content.segments[first].line} and {segment.line}: "
                    f"{self.type.name} {key!r} stands there twice",
                    hint="remove one of the two, or change its key",
                )
                twice.key = key
                content.duplicates.setdefault(key, twice)
        return content

    def _check(
        self, keys: Sequence[str], content: Content, transaction: IndexTransaction | None
    ) -> None:
        """Raise ``RecordError`` unless it is certain where the record of each key is."""
        for key in keys:
            if key in content.duplicates:
                raise content.duplicates[key]
        if content.unreadable:
            missing = [key for key in keys if key not in content.numbers]
            kind = RecordError if content.open is None else SwallowedError
            self.check_missing(missing, content.unreadable, transaction, kind=kind)

    def _key_of(self, segment: Segment) -> str:
        with self.located(segment):
            return self.key_of(segment.data or {})

    def _record(self, segment: Segment, key: str) -> R:
        with self.located(segment, key):
            return self.data_to_record(segment.data)

    def located(self, segment: Segment, key: str | None = None) -> AbstractContextManager[None]:
        """Turn any error of a segment into a ``RecordError`` that names its line and ``key``."""
        return located(self._place(segment), self.type.name, key)

    def placed(self, segment: Segment, error: RecordError) -> RecordError:
        """Return the error of a segment, whose key is not known, with its line."""
        error.place = self._place(segment)
        error.message = f"{error.place}: {error.message}"
        error.args = (error.message,)
        return error

    def _place(self, segment: Segment) -> str:
        return f"{self._path}, line {segment.line}" if segment.line else str(self._path)


def _differing(before: Content, now: Content) -> set[str]:
    """Return the keys of the records that are not the same in both contents."""
    keys = before.duplicates.keys() | now.duplicates.keys()
    keys |= before.numbers.keys() ^ now.numbers.keys()
    for key in before.numbers.keys() & now.numbers.keys():
        if before.segment_of(key).data != now.segment_of(key).data:
            keys.add(key)
    return keys


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _is_conclusive(signature: disk.Signature) -> bool:
    """Return whether any later write must give the file another signature.

    The modification time advances in steps. A file changed within the last step may change again
    and keep its time, so its signature proves nothing yet.
    """
    coarse = signature.modified % 1_000_000_000 == 0
    age = time.time() - signature.modified / 1e9
    return age > (_YOUNG_COARSE if coarse else _YOUNG)
