"""A folder of JSON documents, one for each record.

A document is named after the key of its record, so that people find it. No two keys share a name,
also where file names ignore case: ``1.json``, ``1+2.json`` for a composite key, ``Ada%20L~1.json``
for ``Ada L`` (``~1`` says which letters are capital). A document with any other name belongs to the
record whose key is in it, and keeps its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar
from urllib.parse import unquote

from eventsync.engine.accessor import Write
from eventsync.errors import RecordError, StoreUnavailableError, kept
from eventsync.index import IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import disk
from eventsync.stores.files.accessor import FileAccessor, located, rejecting_unreadable
from eventsync.stores.files.text import MAX_SIZE, Members, dump, escape_surrogates, parse
from eventsync.stores.files.watch import Written

__all__ = ["JsonFolderAccessor", "file_name", "key_in_name"]

R = TypeVar("R", bound=Record)
EMPTY: Final = ".eventsync-empty"
"""The file that says that a folder without documents is what it should be."""
_SUFFIX: Final = ".json"
_LONGEST: Final = 200  # most file systems take 255 bytes
_NAME: Final = re.compile(r"((?:[A-Za-z0-9_.+-]|%[0-9a-f]{2})*|%)(?:~[0-9a-f]+)?\.json")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]|^\.")


def file_name(key: str) -> str:
    """Return the name of the document for a key.

    Two keys never have the same name, also if case is ignored.
    """
    body = _UNSAFE.sub(_escaped, key) or "%"
    capitals = sum(1 << place for place, letter in enumerate(body) if letter.isupper())
    name = f"{body}~{capitals:x}{_SUFFIX}" if capitals else body + _SUFFIX
    if len(name) > _LONGEST:
        # The document holds the key, so the name need not: it must only be unique.
        digest = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        name = f"{body[:100].lower()}~~{digest}{_SUFFIX}"
    return name


def key_in_name(name: str) -> str | None:
    """Return the key for which ``file_name`` returns ``name``.

    ``None``: there is no such key, or the name is a shortened one.
    """
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


class JsonFolderAccessor(FileAccessor[R]):
    """Records of one type as JSON documents in a folder of their own.

    A document has the members that the view names, in the order of the view, indented and in UTF-8.
    Members that other programs add to a document stay as they are. Hidden files and files not
    called ``*.json`` are ignored. A document that cannot be read affects its own record only: the
    record can neither be read nor written until somebody repairs the document, and it does not
    count as deleted. ``create``: create the folder if it does not exist. The version index is
    ``.eventsync.db`` in the folder, unless the store names another.

    If the store held records before, a folder without documents counts as a failure, not as a
    folder without records: a file system that is not mounted looks the same. A file named
    ``.eventsync-empty`` in the folder means that all records were deleted on purpose.
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
        self.codec = Members(self.view)
        # Two caches, which are checked against the folder at each use: names that belong to a key;
        # and, for documents with other names, the key that was in the document of this signature.
        self._key_names: set[str] = set()
        self._keys_inside: dict[str, tuple[disk.Signature, str]] = {}
        # Of documents with other names: the key that was in the document when it was last told.
        self._keys_told: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"JsonFolderAccessor({self.type.name}, {str(self._folder)!r})"

    def index_path(self) -> Path:
        return self._folder / ".eventsync.db"

    # -- reading and writing -----------------------------------------------------------------------

    def get(self, key: str) -> R | None:
        found, unreadable = self._find([key])
        if key not in found and unreadable:
            raise unreadable[0]  # the record may be in that document
        return self._record(found[key], key) if key in found else None

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        found = self._find_certain(keys, transaction)
        return {key: self._record(document, key).raw() for key, document in found.items()}

    def write(
        self,
        writes: Sequence[Write],
        removals: Sequence[str],
        transaction: IndexTransaction | None,
    ) -> None:
        keys = [*(write.key for write in writes), *removals]
        # Encode everything first, so that a refused record is refused before any write.
        encoded = [self.codec.encode(self.view.to_store(write.values)) for write in writes]
        with disk.errors(self._folder), rejecting_unreadable():
            documents = self._find_certain(keys, transaction)
            for write, members in zip(writes, encoded, strict=True):
                self._write_document(write, members, documents.get(write.key))
            if writes:
                (self._folder / EMPTY).unlink(missing_ok=True)
            removed = [documents[key].path for key in removals if key in documents]
            if removed and not self._has_others({path.name for path in removed}):
                self._declare_empty()
            for path in removed:
                path.unlink(missing_ok=True)
            if keys:
                disk.sync(self._folder)

    def _declare_empty(self) -> None:
        """Create the file that says that the folder has no documents on purpose."""
        with contextlib.suppress(FileExistsError):  # O_EXCL does not follow a link either
            os.close(os.open(self._folder / EMPTY, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    def _write_document(
        self, write: Write, members: Mapping[str, Any], found: _Document | None
    ) -> None:
        for _ in range(disk.TRIES):
            if found is not None:
                merged = self.kept(members, found.members)
                if merged == found.members:
                    return
                path, signature = found.path, found.signature
            elif write.whole:
                merged = {**self.codec.encode(self.view.constant), **members}
                path, signature = self._folder / file_name(write.key), None
            else:
                raise StoreUnavailableError(
                    f"the document of {self.type.name} {write.key!r} disappeared during its update"
                )
            try:
                content = f"{escape_surrogates(dump(merged, indent=2))}\n".encode()
                disk.replace(path, content, signature, tag=self._tag, follow=False)
            except disk.ChangedError:
                found = self._find([write.key])[0].get(write.key)
            else:
                return
        raise StoreUnavailableError(
            f"{self._folder}: another process keeps changing the document of {write.key!r}"
        )

    def read_all(self, query: Query) -> Iterator[R]:
        seen: dict[str, str] = {}
        names = sorted(self._names())
        self._check_emptiness(names)
        for name in names:
            try:
                document = self._load(name)
                if document is None:
                    continue  # removed since the folder was listed
                key = self._key_of(document)
                own = file_name(key)
                twin = seen.setdefault(key, name)
                if twin == name and name != own:
                    self._keys_inside[name] = document.signature, key
                    if self._is_another(own, name):
                        twin = own
                if twin != name:
                    raise RecordError(
                        f"{document.path} holds the same key as {twin}",
                        hint="remove one of the two documents, or change the key in it",
                    )
                record = self._record(document, key)
            except RecordError as error:
                self.pass_over(error, query)
            else:
                yield record

    # -- watching ----------------------------------------------------------------------------------

    def places(self) -> list[Path]:
        return [self._folder]

    def begin_watch(self) -> None:
        names, _ = self._names_by_key_inside()
        self._keys_told = {name: key for key, name in names.items()}

    def written(self, names: Collection[str]) -> Written:
        keys: dict[str, None] = {}
        unreadable: list[RecordError] = []
        for name in sorted(names):
            if not name.endswith(_SUFFIX) or name.startswith("."):
                continue
            if self._is_key_name(name):
                keys[key_in_name(name) or ""] = None
                continue
            if (before := self._keys_told.pop(name, None)) is not None:
                keys[before] = None
            try:
                document = self._load(name)
                if document is not None:
                    key = self._key_of(document)
                    keys[key] = None
                    self._keys_told[name] = key
            except RecordError as error:
                unreadable.append(error)
        return Written(keys, unreadable)

    # -- documents ---------------------------------------------------------------------------------

    def _find_certain(
        self, keys: Sequence[str], transaction: IndexTransaction | None
    ) -> dict[str, _Document]:
        """Return the documents of those keys that have one.

        Raises ``RecordError`` if an unreadable document may be the one of a missing key.
        """
        found, unreadable = self._find(keys)
        self.check_missing([key for key in keys if key not in found], unreadable, transaction)
        return found

    def _find(self, keys: Sequence[str]) -> tuple[dict[str, _Document], list[RecordError]]:
        """Return the documents of those keys that have one, and the errors of unreadable documents.

        Raises ``RecordError`` if a document that is named after one of the keys cannot be read.
        """
        self.check_folder()
        found, missing = {}, set()
        for key in keys:
            document = self._load(file_name(key))
            if document is None:
                missing.add(key)
                continue
            inside = self._key_of(document)
            if inside != key:
                raise RecordError(
                    f"{document.path} holds the key {inside!r}, but its name says {key!r}",
                    hint="rename the document, or correct the key in it; a file system that "
                    "ignores case takes Ada.json for ada.json",
                )
            found[key] = document
        if not missing:
            return found, []
        names, unreadable = self._names_by_key_inside()
        for key in missing & names.keys():
            document = self._load(names[key])
            if document is not None:
                found[key] = document
        return found, unreadable

    def _names_by_key_inside(self) -> tuple[dict[str, str], list[RecordError]]:
        """Return by key the documents with other names, and the errors of unreadable ones."""
        names: dict[str, str] = {}
        unreadable = []
        listed = sorted(self._names())
        self._check_emptiness(listed)
        for name in listed:
            if name not in self._keys_inside and self._is_key_name(name):
                continue
            try:
                with disk.errors(self._folder):
                    signature = disk.signature_of(self._folder / name, follow=False)
                known, key = self._keys_inside.get(name, (None, ""))
                if known is None or known != signature:
                    document = self._load(name)
                    if document is None:
                        continue
                    key = self._key_of(document)
                    self._keys_inside[name] = document.signature, key
                names.setdefault(key, name)
            except RecordError as error:
                unreadable.append(kept(error))
        return names, unreadable

    def _is_key_name(self, name: str) -> bool:
        """Return whether ``file_name`` gives this name to a key of the record type."""
        if name in self._key_names:
            return True
        key = key_in_name(name)
        if key is None:
            return False
        try:
            self.type.key_values(key)
        except RecordError:
            return False
        self._key_names.add(name)
        return True

    def _names(self) -> list[str]:
        self.check_folder()
        with disk.errors(self._folder), os.scandir(self._folder) as entries:
            return [entry.name for entry in entries if _is_document(entry)]

    def _has_others(self, names: set[str]) -> bool:
        """Return whether the folder has documents beside these."""
        with os.scandir(self._folder) as entries:
            return any(entry.name not in names and _is_document(entry) for entry in entries)

    def _is_another(self, own: str, name: str) -> bool:
        """Return whether the name ``own`` is of another document than ``name``.

        Where file names ignore case, two names may be of one document.
        """
        try:
            return not os.path.samefile(self._folder / own, self._folder / name)
        except OSError:
            return False  # there is no document of that name

    def absence(self) -> str | None:
        if (found := super().absence()) is not None:
            return found
        with disk.errors(self._folder):
            if (self._folder / EMPTY).exists() or any(True for _ in self._names()):
                return None
        return f"the folder {self._folder} holds no documents"

    def _check_emptiness(self, names: Sequence[str]) -> None:
        """Raise an error if the folder lost all its documents, unless it says that it should."""
        if not names and not (self._folder / EMPTY).exists() and self.knows_records():
            raise self.broken(
                f"the folder {self._folder} holds no documents",
                hint="restore them or mount the file system; if all records were deleted on "
                f"purpose, create an empty file {EMPTY} in the folder",
            )

    def _load(self, name: str) -> _Document | None:
        """Return a document, or ``None`` if it does not exist. Raises ``RecordError``."""
        path = self._folder / name
        key = key_in_name(name)
        with located(str(path), self.type.name, key):
            with disk.errors(path):
                try:
                    self._check_file(path)
                    content, signature = disk.read(path, follow=False)
                except FileNotFoundError:
                    return None
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise RecordError(f"not UTF-8: {error}") from error
            return _Document(path, signature, parse(text))

    def _check_file(self, path: Path) -> None:
        """Raise ``RecordError`` for a file that cannot be read although the folder can."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return  # ``disk.read`` refuses it
        if status.st_size > MAX_SIZE:
            raise RecordError(f"it has {status.st_size} bytes; {MAX_SIZE} is the limit")
        if not os.access(path, os.R_OK) and os.access(self._folder, os.R_OK | os.X_OK):
            raise RecordError(
                "permission denied", hint="let the user of this process read and write it"
            )

    def _key_of(self, document: _Document) -> str:
        with located(str(document.path)):
            return self.key_of(document.members)

    def _record(self, document: _Document, key: str) -> R:
        with located(str(document.path), self.type.name, key):
            return self.data_to_record(document.members)


def _is_document(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of the folder is a document, be it a link to a missing one."""
    name = entry.name
    if not name.endswith(_SUFFIX) or name.startswith("."):
        return False
    # A link is not followed. Following one that names itself would raise an error for the folder.
    return entry.is_symlink() or entry.is_file()
