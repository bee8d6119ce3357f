"""Records as a folder of JSON documents, one document a record.

It owns the names of the documents and their updates. It knows nothing of other files.

A document is named after its record's key, so that people find it and so that no two keys meet even
where file names ignore case: ``1.json``, ``1+2.json`` for a composite key, ``Ada%20L~1.json`` for
``Ada L`` (``~1``: which letters are capital). A document under any other name belongs to the record
whose key is in it, and keeps its name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar
from urllib.parse import unquote

from eventsync.engine.accessor import Write
from eventsync.errors import RecordError, RejectedError, StoreUnavailableError
from eventsync.index import IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import disk
from eventsync.stores.files.disk import located, rejecting_unreadable
from eventsync.stores.files.text import Members, dump, parse

__all__ = ["JsonFolderAccessor", "file_name", "key_in_name"]

R = TypeVar("R", bound=Record)
_SUFFIX: Final = ".json"
_LONGEST: Final = 200  # most file systems take 255 bytes
_NAME: Final = re.compile(r"((?:[A-Za-z0-9_.+-]|%[0-9a-f]{2})*|%)(?:~[0-9a-f]+)?\.json")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]|^\.")


def file_name(key: str) -> str:
    """The name of the document of the record of that key; no two are equal, whatever their case."""
    body = _UNSAFE.sub(_escaped, key) or "%"
    capitals = sum(1 << place for place, letter in enumerate(body) if letter.isupper())
    name = f"{body}~{capitals:x}{_SUFFIX}" if capitals else body + _SUFFIX
    if len(name) > _LONGEST:
        # The key is in the document; here it only has to be a name that no other key has.
        digest = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        name = f"{body[:100].lower()}~~{digest}{_SUFFIX}"
    return name


def key_in_name(name: str) -> str | None:
    """The key that ``file_name`` made ``name`` of, ``None`` if it did not, or shortened it."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    body = match[1]
    try:
        key = "" if body == "%" else unquote(body.replace("+", "/"), errors="strict")
    except UnicodeDecodeError:
        return None
    return key if file_name(key) == name else None


def _escaped(match: re.Match[str]) -> str:
    if match[0] == "/":
        return "+"
    return "".join(f"%{byte:02x}" for byte in match[0].encode())


class _Document(NamedTuple):
    path: Path
    signature: disk.Signature
    members: dict[str, Any]


class JsonFolderAccessor(disk.OnDisk[R]):
    """Records of one type as JSON documents in a folder of their own.

    A document has the members that the view names, in its order, indented and in UTF-8. Members
    that somebody else put into a document stay. Files that are hidden or not called ``*.json`` are
    not looked at. A document that cannot be read stops no other: its record can neither be read nor
    written until it is mended, and is not taken for deleted. ``create``: create the folder if it is
    not there. The version index is ``.eventsync.db`` in the folder, unless the store names another.
    """

    atomic: ClassVar[bool] = False

    def __init__(
        self,
        record_type: type[R],
        folder: str | os.PathLike[str],
        *,
        view: View | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(record_type, Path(folder), tag="document", create=create, view=view)
        self._members = Members(self.view)
        # Names that a key gave; and of the other documents, which key was in them when they looked
        # like that. Both spare work only: they are checked against the folder at each use.
        self._named: set[str] = set()
        self._strangers: dict[str, tuple[disk.Signature, str]] = {}

    def __repr__(self) -> str:
        return f"JsonFolderAccessor({self.type.name}, {str(self._folder)!r})"

    def index_path(self) -> Path:
        return self._folder / ".eventsync.db"

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        self._write([Write(record.key, record.raw(), whole=True)], [], None)

    def update(self, record: R) -> None:
        self._write([Write(record.key, record.changes(), whole=False)], [], None)

    def get(self, key: str) -> R | None:
        found, lost = self._find([key])
        if key not in found and lost:
            raise lost[0]  # for all that can be told, the record is in there
        return self._record(found[key]) if key in found else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._records(query))

    def remove(self, key: str) -> None:
        self._write([], [key], None)

    def record_to_data(self, record: R) -> dict[str, Any]:
        return self._members.encode(super().record_to_data(record))

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self._members.decode(data))

    # -- many at once ------------------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        found = self._found(keys, transaction)
        return {key: self._record(document).raw() for key, document in found.items()}

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        self._write(writes, removals, transaction)

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # Every value comes back as it was written, except what a conversion makes of it.
        return self.read_rows(list(writes), transaction) if self.view.convert else {}

    def _write(
        self,
        writes: Sequence[Write],
        removals: Sequence[str],
        transaction: IndexTransaction | None,
    ) -> None:
        keys = [*(write.key for write in writes), *removals]
        # What is refused is refused before anything is written.
        encoded = [self._members.encode(self.view.to_store(write.values)) for write in writes]
        with disk.errors(self._folder), rejecting_unreadable():
            documents = self._found(keys, transaction)
            for write, members in zip(writes, encoded, strict=True):
                self._put(write, members, documents.get(write.key))
            for key in removals:
                if key in documents:
                    documents[key].path.unlink(missing_ok=True)
            if keys:
                disk.sync(self._folder)

    def _put(self, write: Write, members: dict[str, Any], found: _Document | None) -> None:
        for _ in range(disk.TRIES):
            if found is not None:
                merged = found.members | members
                if merged == found.members:
                    return
                path, signature = found.path, found.signature
            elif write.whole:
                merged = self._members.encode(self.view.constant) | members
                path, signature = self._folder / file_name(write.key), None
            else:
                raise StoreUnavailableError(
                    f"the document of {self.type.name} {write.key!r} vanished while it was updated"
                )
            try:
                content = f"{dump(merged, indent=2)}\n".encode()
                disk.replace(path, content, signature, tag=self._tag)
            except UnicodeEncodeError as error:
                raise RejectedError(f"{path.name}: a string has no UTF-8 form: {error}") from error
            except disk.ChangedError:
                found = self._find([write.key])[0].get(write.key)
            else:
                return
        raise StoreUnavailableError(f"{self._folder}: somebody else keeps writing {write.key!r}")

    # -- documents ---------------------------------------------------------------------------------

    def _records(self, query: Query) -> Iterator[R]:
        seen: dict[str, str] = {}
        for name in sorted(self._names()):
            try:
                document = self._load(name)
                if document is None:
                    continue  # removed since its name was read
                key = self._key_of(document)
                own = file_name(key)
                twin = seen.setdefault(key, name)
                if twin == name and name != own:
                    self._strangers[name] = document.signature, key
                    if (self._folder / own).exists():
                        twin = own
                if twin != name:
                    raise RecordError(
                        f"{document.path} holds the same key as {twin}",
                        hint="remove one of the two, or change the key in it",
                    )
                record = self._record(document)
            except Exception as error:
                self.pass_over(error, query)
            else:
                yield record

    def _found(
        self, keys: Sequence[str], transaction: IndexTransaction | None
    ) -> dict[str, _Document]:
        """The documents of those keys that have one. Raises ``RecordError`` if it is uncertain."""
        found, lost = self._find(keys)
        self.check_missing([key for key in keys if key not in found], lost, transaction)
        return found

    def _find(self, keys: Sequence[str]) -> tuple[dict[str, _Document], list[RecordError]]:
        """The documents of those keys that have one, and why others may be overlooked.

        Raises ``RecordError`` for an unreadable document that is named after one of the keys.
        """
        self.check_folder()
        found, missing = {}, set()
        for key in keys:
            document = self._load(file_name(key))
            if document is None:
                missing.add(key)
                continue
            held = self._key_of(document)
            if held != key:
                raise RecordError(
                    f"{document.path} holds the key {held!r}",
                    hint="a document that is named after a key has to hold that key: rename it",
                )
            found[key] = document
        if not missing:
            return found, []
        names, lost = self._look_for_strangers()
        for key in missing & names.keys():
            document = self._load(names[key])
            if document is not None:
                found[key] = document
        return found, lost

    def _look_for_strangers(self) -> tuple[dict[str, str], list[RecordError]]:
        """By key, the documents that are not named after it; and what cannot be read of them."""
        keys: dict[str, str] = {}
        lost = []
        for name in sorted(self._names()):
            if name not in self._strangers and self._is_own_name(name):
                continue
            try:
                with disk.errors(self._folder):
                    signature = disk.signature_of(self._folder / name)
                held, key = self._strangers.get(name, (None, ""))
                if held is None or held != signature:
                    document = self._load(name)
                    if document is None:
                        continue
                    key = self._key_of(document)
                    self._strangers[name] = document.signature, key
                keys.setdefault(key, name)
            except RecordError as error:
                lost.append(error)
        return keys, lost

    def _is_own_name(self, name: str) -> bool:
        if name in self._named:
            return True
        key = key_in_name(name)
        if key is None:
            return False
        try:
            self.type.key_values(key)
        except RecordError:
            return False
        self._named.add(name)
        return True

    def _names(self) -> list[str]:
        self.check_folder()
        with disk.errors(self._folder), os.scandir(self._folder) as entries:
            return [
                entry.name
                for entry in entries
                if entry.name.endswith(_SUFFIX)
                and not entry.name.startswith(".")
                and entry.is_file()
            ]

    def _load(self, name: str) -> _Document | None:
        path = self._folder / name
        with disk.errors(path):
            try:
                content, signature = disk.read(path)
            except FileNotFoundError:
                return None
        with located(str(path)):
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise RecordError(f"not UTF-8: {error}") from error
            return _Document(path, signature, parse(text))

    def _key_of(self, document: _Document) -> str:
        """The key in a document. Raises ``RecordError``."""
        with located(str(document.path)):
            return self.key_of(self._members.decode(self.key_part(document.members)))

    def _record(self, document: _Document) -> R:
        with located(str(document.path)):
            return self.data_to_record(document.members)
