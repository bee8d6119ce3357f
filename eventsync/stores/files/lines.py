"""Records in one file, a line or several for each: what such files share, and JSON lines.

It owns the file as a whole: what is in memory of it, and its replacement. It knows nothing of other
files.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.accessor import Write
from eventsync.errors import RecordError, RejectedError, StoreUnavailableError
from eventsync.index import IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import disk
from eventsync.stores.files.disk import located, rejecting_unreadable
from eventsync.stores.files.text import Members, dump, parse

__all__ = ["Content", "JsonLinesAccessor", "OneFile", "Piece"]

R = TypeVar("R", bound=Record)
_BOM: Final = "\ufeff"
_YOUNG: Final = 0.1
_YOUNG_COARSE: Final = 2.5


@dataclass(slots=True)
class Piece:
    """One record's part of the file: its text as it stands, line ends included, and its data.

    ``data``: by the store's names, ``None`` for what holds no readable record. ``line``: where it
    was when the file was read.
    """

    text: str
    data: dict[str, Any] | None = None
    line: int = 0


@dataclass(slots=True)
class Content:
    """A file in memory. Not altered once made.

    ``head``: the text before the first record. ``pieces``: the rest, by a number that stays.
    ``places``: by key, the number of its piece. ``twice``: keys of several pieces. ``lost``: the
    errors of pieces whose key cannot be told. ``columns``: of a table; ``end``: of its lines.
    ``signature``: of the file, ``None`` if there is none; ``digest``: of its bytes.
    """

    head: str = ""
    columns: list[str] = field(default_factory=list)
    end: str = "\n"
    pieces: dict[int, Piece] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    twice: dict[str, RecordError] = field(default_factory=dict)
    lost: list[RecordError] = field(default_factory=list)
    signature: disk.Signature | None = None
    digest: bytes = b""

    def text(self) -> str:
        """All of it, as it is to stand in the file."""
        return self.head + "".join(piece.text for piece in self.pieces.values())


class OneFile(disk.OnDisk[R]):
    """Records of one type in one file, which is read whole and replaced whole.

    What is in memory of the file is used as long as the file is the same, so reading records one by
    one is quick. What cannot be read of the file stops no other record and stays as it stands.
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
        # Other files of the folder may be other stores', with locks of their own.
        tag = hashlib.blake2b(self._path.name.encode(), digest_size=6).hexdigest()
        super().__init__(record_type, self._path.parent, tag=tag, create=create, view=view)
        self._encoding = encoding
        self._content: Content | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {str(self._path)!r})"

    def index_path(self) -> Path:
        return self._path.with_name(f".{self._path.name}.eventsync.db")

    # -- what a kind of file implements ------------------------------------------------------------

    @abstractmethod
    def parse(self, text: str) -> Content:
        """A file's content with its ``pieces`` and what belongs to the kind of file."""

    @abstractmethod
    def line(self, data: Mapping[str, Any], content: Content) -> str:
        """The text of a record's data. Raises ``RejectedError``."""

    @abstractmethod
    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Data of what ``View.to_store`` gave. Raises ``RejectedError``."""

    @abstractmethod
    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What ``View.to_record`` takes, of data. Raises ``FieldError``."""

    @abstractmethod
    def empty(self) -> Content:
        """A file of no records, of which one can tell that nothing was cut off."""

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        self._write([Write(record.key, record.raw(), whole=True)], [], None)

    def update(self, record: R) -> None:
        self._write([Write(record.key, record.changes(), whole=False)], [], None)

    def get(self, key: str) -> R | None:
        content = self._load()
        if key in content.twice:
            raise content.twice[key]
        if key not in content.places:
            if content.lost:
                raise content.lost[0]  # for all that can be told, the record is in there
            return None
        return self._record(content.pieces[content.places[key]])

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._records(query))

    def remove(self, key: str) -> None:
        self._write([], [key], None)

    def record_to_data(self, record: R) -> dict[str, Any]:
        return self.encode(super().record_to_data(record))

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self.decode(data))

    # -- many at once ------------------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        content = self._load()
        self._check(keys, content, transaction)
        return {
            key: self._record(content.pieces[content.places[key]]).raw()
            for key in keys
            if key in content.places
        }

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        self._write(writes, removals, transaction)

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # Every value comes back as it was written, except what a conversion makes of it.
        return self.read_rows(list(writes), transaction) if self.view.convert else {}

    # -- lifecycle ---------------------------------------------------------------------------------

    def ensure(self) -> None:
        super().ensure()
        self._load()

    def ping(self) -> None:
        super().ping()
        self._load()

    def close(self) -> None:
        self._content = None

    # -- writing -----------------------------------------------------------------------------------

    def _write(
        self,
        writes: Sequence[Write],
        removals: Sequence[str],
        transaction: IndexTransaction | None,
    ) -> None:
        encoded = [self.encode(self.view.to_store(write.values)) for write in writes]
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
        raise StoreUnavailableError(f"{self._path}: somebody else keeps writing it")

    def _changed(
        self,
        content: Content,
        writes: Sequence[Write],
        encoded: Sequence[dict[str, Any]],
        removals: Sequence[str],
    ) -> Content | None:
        """The content after these writes and removals; ``None`` if it is the same."""
        start = content if content.head or content.pieces else self.empty()
        # Of a file without records nothing needs to be kept but its header.
        pieces = dict(start.pieces) if start.places or start.lost else {}
        places = dict(start.places)
        following = max(pieces, default=0) + 1
        same = True
        for write, stored in zip(writes, encoded, strict=True):
            number = places.get(write.key)
            if number is not None:
                old = pieces[number].data
                assert old is not None
                data = old | stored
                if data == old:
                    continue
            elif write.whole:
                data = self.encode(self.view.constant) | stored
                number, following = following, following + 1
                self._end_last_line(pieces, start.end)
                places[write.key] = number
            else:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} vanished from {self._path} "
                    "while it was being updated"
                )
            pieces[number] = Piece(self._line(data, start), data)
            same = False
        for key in removals:
            if key in places:
                del pieces[places.pop(key)]
                same = False
        if same:
            return None
        return replace(start, pieces=pieces or self.empty().pieces, places=places)

    def _line(self, data: dict[str, Any], content: Content) -> str:
        text = self.line(data, content)
        try:
            text.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            raise RejectedError(
                f"{self._path}: {error.object[error.start : error.end]!r} has no form in "
                f"{self._encoding}"
            ) from error
        return text

    @staticmethod
    def _end_last_line(pieces: dict[int, Piece], end: str) -> None:
        if pieces:
            number = next(reversed(pieces))
            last = pieces[number]
            if not last.text.endswith(("\n", "\r")):
                pieces[number] = replace(last, text=last.text + end)

    # -- reading -----------------------------------------------------------------------------------

    def _load(self) -> Content:
        """The file as it is now. Raises what keeps it from being read."""
        self.check_folder()
        held = self._content
        with disk.errors(self._path):
            signature = disk.signature_of(self._path)
            if signature is None:
                return self._missing()
            if held is not None and held.signature == signature and _is_settled(signature):
                return held
            raw, signature = disk.read(self._path)
        digest = _digest(raw)
        if held is not None and held.digest == digest:
            self._content = replace(held, signature=signature)
            return self._content
        content = self._parse(raw)
        content.signature, content.digest = signature, digest
        self._content = content
        return content

    def _missing(self) -> Content:
        self._content = None
        if not self._create or self.knows_records():
            raise self.broken(
                f"the file {self._path} is not there",
                hint="restore it; if all records were deleted on purpose, put an empty one there "
                f"({self.empty().text()!r})",
            )
        return Content()

    def _parse(self, raw: bytes) -> Content:
        if not raw and self.knows_records():
            raise self.broken(
                f"the file {self._path} is empty",
                hint="restore it; if all records were deleted on purpose, write "
                f"{self.empty().text()!r} to it",
            )
        try:
            content = self.parse(raw.decode(self._encoding, "surrogateescape"))
        except UnicodeError as error:
            raise self.broken(
                f"{self._path}: {error}", hint="name its encoding, or save it in that"
            ) from error
        for number, piece in content.pieces.items():
            if piece.data is None:
                continue
            try:
                key = self._key_of(piece)
            except RecordError as error:
                content.lost.append(error)
                continue
            first = content.places.setdefault(key, number)
            if first != number:
                content.twice.setdefault(
                    key,
                    RecordError(
                        f"{self._path}, lines {content.pieces[first].line} and {piece.line}: "
                        f"{self.type.name} {key!r} is there twice",
                        hint="remove one of the two, or change its key",
                    ),
                )
        return content

    def _check(
        self, keys: Sequence[str], content: Content, transaction: IndexTransaction | None
    ) -> None:
        """Raise ``RecordError`` unless it is certain where the records of these keys are."""
        for key in keys:
            if key in content.twice:
                raise content.twice[key]
        if content.lost:
            missing = [key for key in keys if key not in content.places]
            self.check_missing(missing, content.lost, transaction)

    def _records(self, query: Query) -> Iterator[R]:
        content = self._load()
        for error in (*content.lost, *content.twice.values()):
            self.pass_over(error, query)
        for key, number in content.places.items():
            if key in content.twice:
                continue
            try:
                record = self._record(content.pieces[number])
            except Exception as error:
                self.pass_over(error, query)
            else:
                yield record

    def _key_of(self, piece: Piece) -> str:
        with self._located(piece):
            return self.key_of(self.decode(self.key_part(piece.data or {})))

    def _record(self, piece: Piece) -> R:
        with self._located(piece):
            return self.data_to_record(piece.data)

    def _located(self, piece: Piece) -> Any:
        return located(f"{self._path}, line {piece.line}" if piece.line else str(self._path))


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _is_settled(signature: disk.Signature) -> bool:
    """Whether a later change would show in the file's time, which goes in steps."""
    coarse = signature.modified % 1_000_000_000 == 0
    age = time.time() - signature.modified / 1e9
    return age > (_YOUNG_COARSE if coarse else _YOUNG)


class JsonLinesAccessor(OneFile[R]):
    """Records of one type as JSON objects, one a line, in UTF-8.

    An object has the members that the view names. Members that somebody else put there stay, and so
    does the order of lines and members; blank lines are passed over. The file is replaced whole,
    once for each batch. ``create``: create the folder and the file if they are not there. The
    version index is beside the file, ``.<name>.eventsync.db``, unless the store names another.

    A file that is missing or of no length where records were before is not taken for an empty one:
    a single empty line says that all were deleted on purpose.
    """

    def __init__(
        self,
        record_type: type[R],
        path: str | os.PathLike[str],
        *,
        view: View | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(record_type, path, view=view, create=create, encoding="utf-8")
        self._members = Members(self.view)

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        return self._members.encode(stored)

    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return self._members.decode(data)

    def empty(self) -> Content:
        return Content(pieces={0: Piece("\n")})

    def line(self, data: Mapping[str, Any], content: Content) -> str:
        return dump(data) + content.end

    def parse(self, text: str) -> Content:
        head = _BOM if text.startswith(_BOM) else ""
        content = Content(head=head)
        for number, line in enumerate(io.StringIO(text[len(head) :], newline=""), start=1):
            piece = content.pieces[number] = Piece(line, line=number)
            if number == 1 and line.endswith("\r\n"):
                content.end = "\r\n"
            if not line.strip():
                continue
            try:
                with self._located(piece):
                    piece.data = parse(line)
            except RecordError as error:
                content.lost.append(error)
        return content
