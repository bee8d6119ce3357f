"""The accessor of records in MongoDB."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Self, TypeVar

from bson import Binary, Decimal128, ObjectId
from pymongo import DeleteOne, UpdateOne

from eventsync.engine.accessor import Accessor, Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import concerns_all, item_error
from eventsync.errors import ConfigError, EventSyncError, RecordError, RejectedError
from eventsync.index import Index, IndexTransaction
from eventsync.records.query import All, Compare, Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.loss import gone, told_of
from eventsync.stores.mongo.codec import DocumentCodec
from eventsync.stores.mongo.database import Database, Place
from eventsync.stores.mongo.index import MongoIndex
from eventsync.stores.mongo.replica import MongoReplica
from eventsync.stores.mongo.staged_write import MARK, DocumentWrite
from eventsync.stores.mongo.stream import ChangeStream
from eventsync.stores.mongo.transaction import MongoTransaction

__all__ = ["MongoAccessor"]

R = TypeVar("R", bound=Record)
_ID: Final = "_id"
_PAGE: Final = 1000
_NOT_TEXT: Final = "convert the key in the view: Convert(ObjectId, str); or give one another key"


class MongoAccessor(Accessor[R]):
    """Records of one type, each a document of a collection.

    ``database``: a ``Database`` of pymongo, or a URL that ends with the database's name, as in
    ``mongodb://localhost:27017/shop``. ``collection``: its name, by default the record type's.

    A document's ``_id`` is the record's key. If the key is one field, ``_id`` is that field, unless
    the view renames it. Otherwise ``_id`` is the key's text, and the key fields are in the document
    too. Fields that the view does not name stay unchanged. eventsync adds the field ``_eventsync``.

    The version, envelope and document of one record change together; several records do not. Any
    number of processes may write at once.
    """

    replica_class = MongoReplica

    @classmethod
    def sources(cls, accessors: Sequence[Self], store: str) -> Sequence[ChangeSource]:
        return [ChangeStream(accessors)]

    def key_of_id(self, id: Any) -> str | None:
        """Return the key of the record whose document has this ``_id``, or ``None``."""
        return self._key_at({_ID: id})

    def __init__(
        self,
        record_type: type[R],
        database: Place,
        *,
        collection: str | None = None,
        view: View | None = None,
    ) -> None:
        keys = record_type.__record__.keys
        if len(keys) == 1:
            view = view or View()
            view = dataclasses.replace(view, rename={keys[0]: _ID, **(view.rename or {})})
        super().__init__(record_type, view=view)
        self.database = Database.of(database)
        self.collection = collection or self.type.name
        self._codec = DocumentCodec(self.view)
        self._natural = len(keys) == 1 and self.view.names[keys[0]] == _ID
        for name in (*self.view.names.values(), *self.view.constant):
            reserved = name == MARK or (name == _ID and not self._natural)
            if reserved or not name or name.startswith("$") or "." in name or "\0" in name:
                raise ConfigError(
                    f"view of {self.type.name}: {name!r} cannot be the name of a document's field",
                    hint="rename it in the view, without dots and $",
                )
        self._constant = self._codec.encode(self.view.constant)
        # Whether _id is text as it stands, which somebody may take an ObjectId for.
        key = self.type.keys[0]
        self._texts = (
            self._natural and self.type.fields[key].type is str and key not in self.view.convert
        )

    def __repr__(self) -> str:
        return f"MongoAccessor({self.type.name}, {self.collection!r})"

    # -- part of a store ---------------------------------------------------------------------------

    def default_index(self) -> Index:
        return MongoIndex(self.database)

    def bind(self, index: Index) -> None:
        if not isinstance(index, MongoIndex) or not index.database.is_same(self.database):
            raise ConfigError(
                f"the MongoDB accessor of {self.type.name} needs a version index in its database",
                hint="leave out the store's index, and give all its accessors one database",
            )
        self.database = index.database  # one client for the whole store
        super().bind(index)

    @property
    def _versions(self) -> MongoIndex:
        index = self.index
        assert isinstance(index, MongoIndex)
        return index

    def ensure(self) -> None:
        options = self._call(lambda documents: documents.options())
        if options.get("collation", {}).get("locale", "simple") != "simple":
            raise ConfigError(
                f"the collection {self.collection!r} has the collation "
                f"{options['collation']['locale']}, which may take different keys for equal",
                hint="use a collection without a collation, or with the collation simple",
            )
        for kind in ("viewOn", "timeseries", "capped"):
            if options.get(kind):
                raise ConfigError(
                    f"{self.collection!r} is not a plain collection ({kind}), so its records could "
                    "not be changed",
                    hint="name another collection",
                )
        self._check_object_ids()
        self._versions.register(self.type.name, self.collection)
        self._versions.prepare()

    def findings(self) -> Iterator[Finding]:
        lack = self.database.lacking_rights([self.collection, *self._versions.collections])
        for name, actions in lack.items():
            yield Finding(
                Level.WRONG,
                self.type.name,
                f"this user may not {', '.join(actions)} in the collection {name!r} of "
                f"{self.database.address}",
                (
                    "db.grantRolesToUser(<user>, "
                    f'[{{role: "readWrite", db: "{self.database.name}"}}])',
                ),
            )

    def _check_object_ids(self) -> None:
        """Refuse a collection of ObjectIds for a key of text, as which they read."""
        if not self._texts:
            return
        for order in (1, -1):
            # Ids of one type are neighbours in this order, so two ends of one type have no other
            # type between them.
            ends = self._ids_of({}, sort=[(_ID, order)], limit=1)
            if not ends or not isinstance(ends[0], ObjectId):
                return
        raise ConfigError(
            f"the documents of {self.collection!r} have an ObjectId as _id, and the key of "
            f"{self.type.name} is text",
            hint=f'pass View(convert={{"{self.type.keys[0]}": Convert(ObjectId, str)}})',
        )

    def loss(self) -> str | None:
        if self._versions.is_lost():
            return (
                f"the versions of {self.type.name} in {self.database.address} are gone, as after "
                "the database was dropped"
            )
        return told_of(self._versions, self.type.name, self._there, self.database.address)

    def accept_loss(self) -> int:
        self._versions.accept_loss()
        self._versions.register(self.type.name, self.collection)
        forgotten = 0
        for keys in gone(self._versions, self.type.name, self._there):
            with self._versions.transaction() as transaction:
                transaction.read(self.type.name, keys)
                there = self._there(keys)
                missing = [key for key in keys if key not in there]
                transaction.forget(self.type.name, missing)
            forgotten += len(missing)
        return forgotten

    def _there(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that have a document, be it unreadable."""
        there: set[str] = set()
        for start in range(0, len(keys), _PAGE):
            ids = {key: self._id(key) for key in keys[start : start + _PAGE]}
            found = self._ids_of({_ID: {"$in": list(ids.values())}})
            # Decimals of one value are one _id of MongoDB, but differ here by their zeros.
            read = {self._codec.read(_ID, each) for each in found}
            there |= {key for key, id in ids.items() if self._codec.read(_ID, id) in read}
        return there

    def ping(self) -> None:
        self._call(lambda documents: documents.find_one({}, {_ID: True}))

    def close(self) -> None:
        self.database.close()

    # -- the six methods of the contract -----------------------------------------------------------

    def add(self, record: R) -> None:
        self._refuse_object_ids([record.key])
        self._write_now(self._document_write(Write(record.key, record.raw(), whole=True)))

    def update(self, record: R) -> None:
        self._write_now(self._document_write(Write(record.key, record.changes(), whole=False)))

    def get(self, key: str) -> R | None:
        rows = self._select([key])
        return self.make(rows[key]) if key in rows else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._found(query))

    def count(self, query: Query) -> int:
        if query.where.fields:
            return super().count(query)
        return int(self._call(lambda documents: documents.count_documents({})))

    def remove(self, key: str) -> None:
        self._write_now(DocumentWrite(self.collection, self._id(key), None))

    def record_to_data(self, record: R) -> dict[str, Any]:
        """Return the document, without ``_id`` where that is not a field of the record."""
        return self._codec.encode(super().record_to_data(record))

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self._codec.decode(data))

    def _write_now(self, write: DocumentWrite) -> None:
        """Write a document without a version, as any other program would."""
        this = {_ID: write.id}
        operation: DeleteOne | UpdateOne = DeleteOne(this)
        if write.sets is not None:
            # An update must set something, even for a record that consists of its key alone.
            update: dict[str, Any] = {"$setOnInsert": {**write.fresh, **this}}
            if write.sets:
                update["$set"] = dict(write.sets)
            operation = UpdateOne(this, update, upsert=write.whole)
        _, refused = self.database.write(self.collection, [operation])
        for problem in refused.values():
            raise self.database.error_of(self.collection, problem)

    # -- many records at once ----------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        return self._select(keys)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        assert isinstance(transaction, MongoTransaction)
        self._refuse_object_ids([write.key for write in writes if write.whole])
        for write in writes:
            transaction.stage(write.key, self._document_write(write))
        for key in removals:
            transaction.stage(key, DocumentWrite(self.collection, self._id(key), None))

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # MongoDB stores values unchanged, so only a conversion can alter one.
        if not self.view.convert:
            return {}
        before = self._select(list(writes))
        back = {}
        for key, values in writes.items():
            kept = self._codec.encode(self.view.to_store(values))
            converted = self.view.to_record(self._codec.decode(kept))
            back[key] = {**before.get(key, {}), **values, **converted}
        return back

    def _refuse_object_ids(self, keys: Sequence[str]) -> None:
        """Raise ``RejectedError`` if a document has one of these keys as an ObjectId."""
        alike = [ObjectId(key) for key in keys if len(key) == 24 and ObjectId.is_valid(key)]
        if not self._texts or not alike:
            return
        found = self._ids_of({_ID: {"$in": alike}}, limit=1)
        if found:
            raise RejectedError(
                f"{self.type.name} {str(found[0])!r} cannot be written: {self.collection} has a "
                f"document with the _id {found[0]!r}, which is not text",
                hint=_NOT_TEXT,
            )

    # -- documents ---------------------------------------------------------------------------------

    def _call(self, action: Callable[[Any], Any]) -> Any:
        return self.database.call(self.collection, action)

    def _ids_of(self, condition: Mapping[str, Any], **options: Any) -> list[Any]:
        """Return the ``_id`` of the documents that fulfil a condition."""

        def find(documents: Any) -> list[Any]:
            return [each[_ID] for each in documents.find(condition, {_ID: True}, **options)]

        ids: list[Any] = self._call(find)
        return ids

    def _id(self, key: str) -> Any:
        """Return the ``_id`` of a record's document."""
        if not self._natural:
            return key
        return self._codec.encode(self.view.to_store(self.type.key_values(key)))[_ID]

    def _document_write(self, write: Write) -> DocumentWrite:
        sets = self._codec.encode(self.view.to_store(write.values))
        sets.pop(_ID, None)
        fresh = self._constant if write.whole else {}
        return DocumentWrite(self.collection, self._id(write.key), sets, fresh, write.whole)

    def _select(self, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        rows: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(keys), _PAGE):
            ids = [self._id(key) for key in keys[start : start + _PAGE]]
            for document in self._documents({_ID: {"$in": ids}}):
                record = self._record(document)
                rows[record.key] = record.raw()
        return rows

    def _documents(self, condition: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        documents = self._call(lambda documents: documents.find(condition, batch_size=_PAGE))
        with documents:
            while page := self._call(lambda _: list(islice(documents, _PAGE))):
                yield from page

    def _record(self, document: Mapping[str, Any]) -> R:
        """Return the record of a document. Raises ``RecordError`` that names the document."""
        try:
            record = self.data_to_record(document)
            key = self.type.key_text(record.raw())
            found, expected = (
                self._codec.read(_ID, each) for each in (document[_ID], self._id(key))
            )
            alike = _family(document[_ID]) == _family(self._id(key))
            if found != expected or not alike:
                raise RecordError(
                    f"a document with the key {key!r} must have the _id {self._id(key)!r}, "
                    f"and this one has {document[_ID]!r}",
                    hint="name the key field _id in the view, with a conversion if it needs one",
                )
        except Exception as error:
            if concerns_all(error):
                raise
            known = item_error(error)
            place = f"{self.collection} {document[_ID]!r}"
            if self.collection != self.type.name:
                place = f"{self.type.name} in {place}"
            unreadable = RecordError(f"{place}: {known.message}", hint=known.hint)
            unreadable.place = f"{self.collection} {document[_ID]!r}"
            unreadable.key = self._key_at(document)
            raise unreadable from error
        return record

    def _key_at(self, document: Mapping[str, Any]) -> str | None:
        """Return the key that this document is found by, or ``None`` if there is no such key."""
        try:
            if self._natural:
                key = self.key_in(self._codec.decode({_ID: document[_ID]}))
            else:
                key = str(document[_ID])
            same = self._id(key) == document[_ID]
            return key if same and _family(self._id(key)) == _family(document[_ID]) else None
        except EventSyncError:
            return None

    def _found(self, query: Query) -> Iterator[R]:
        for document in self._documents(self._condition(query)):
            try:
                yield self._record(document)
            except Exception as error:
                self.pass_over(error, query)

    def _condition(self, query: Query) -> dict[str, Any]:
        """Return a condition on ``_id`` if the query names keys, else one that is always true."""
        tree = query.where.tree
        for node in tree.parts if isinstance(tree, All) else (tree,):
            if (
                isinstance(node, Compare)
                and node.op in ("$eq", "$in")
                and (node.field,) == self.type.keys
            ):
                ids = []
                for wanted in node.operand if node.op == "$in" else (node.operand,):
                    try:
                        ids.append(self._id(self.type.key_of(wanted)))
                    except EventSyncError:
                        continue  # no record can have such a key
                return {_ID: {"$in": ids}}
        return {}


def _family(id: Any) -> Any:
    """Return what two ``_id`` must have in common for MongoDB to take them for one."""
    if isinstance(id, Binary):
        return id.subtype
    if isinstance(id, bytes):
        return 0
    if isinstance(id, int | float | Decimal128) and not isinstance(id, bool):
        return "number"
    return type(id)
