"""The client of a MongoDB database, and its errors as eventsync's."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import pymongo
from bson import DatetimeConversion, UuidRepresentation
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from pymongo import errors as driver
from pymongo.collection import Collection
from pymongo.database import Database as DriverDatabase
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from eventsync.errors import (
    ConfigError,
    EventSyncError,
    RejectedError,
    StoreError,
    StoreUnavailableError,
    UniqueError,
)

__all__ = ["MEANINGS", "Database", "Documents", "Place", "is_duplicate"]

Documents: TypeAlias = "Collection[dict[str, Any]]"
Place: TypeAlias = "str | DriverDatabase[dict[str, Any]] | Database"

_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    # A date beyond Python's years is then rejected by its field, and other records are still read.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    # So is text that is no UTF-8: it becomes text that no field takes.
    unicode_decode_error_handler="surrogateescape",
)
# A write is acknowledged when it survives a crash, and the loss of the primary of a replica set.
_DURABLE: Final = WriteConcern(w="majority", j=True, wtimeout=10_000)
_HOST: Final = re.compile(r"(?:[^:/?#\[\]]+|\[[^\]]*\])(?::\d+)?")
# What a user must be allowed to do with the collections of a store.
_ACTIONS: Final = ("find", "insert", "update", "remove", "createIndex")
_DUPLICATE: Final = 11000
_INVALID: Final = 121
_FORBIDDEN: Final = frozenset({11, 13, 18, 8000})
# What a server's error code means: it may take the same command later; the configuration or the
# server's is wrong; or the document cannot be stored. Any other code of a write is a RejectedError,
# of a command a StoreError: never of the whole store.
MEANINGS: Final[Mapping[int, type[EventSyncError]]] = {
    6: StoreUnavailableError,  # HostUnreachable
    7: StoreUnavailableError,  # HostNotFound
    24: StoreUnavailableError,  # LockTimeout
    43: StoreUnavailableError,  # CursorNotFound
    46: StoreUnavailableError,  # LockBusy
    50: StoreUnavailableError,  # MaxTimeMSExpired
    63: StoreUnavailableError,  # StaleShardVersion
    64: StoreUnavailableError,  # WriteConcernFailed
    89: StoreUnavailableError,  # NetworkTimeout
    91: StoreUnavailableError,  # ShutdownInProgress
    100: StoreUnavailableError,  # UnsatisfiableWriteConcern
    112: StoreUnavailableError,  # WriteConflict
    133: StoreUnavailableError,  # FailedToSatisfyReadPreference
    134: StoreUnavailableError,  # ReadConcernMajorityNotAvailableYet
    150: StoreUnavailableError,  # StaleEpoch
    175: StoreUnavailableError,  # QueryPlanKilled
    189: StoreUnavailableError,  # PrimarySteppedDown
    202: StoreUnavailableError,  # NetworkInterfaceExceededTimeLimit
    234: StoreUnavailableError,  # RetryChangeStream
    251: StoreUnavailableError,  # NoSuchTransaction
    262: StoreUnavailableError,  # ExceededTimeLimit
    290: StoreUnavailableError,  # TransactionExceededLifetimeLimitSeconds
    314: StoreUnavailableError,  # ObjectIsBusy
    317: StoreUnavailableError,  # ConnectionPoolExpired
    365: StoreUnavailableError,  # TemporarilyUnavailable
    384: StoreUnavailableError,  # ConnectionError
    9001: StoreUnavailableError,  # SocketException
    10058: StoreUnavailableError,  # LegacyNotPrimary
    10107: StoreUnavailableError,  # NotWritablePrimary
    11600: StoreUnavailableError,  # InterruptedAtShutdown
    11602: StoreUnavailableError,  # InterruptedDueToReplStateChange
    13388: StoreUnavailableError,  # StaleConfig
    13435: StoreUnavailableError,  # NotPrimaryNoSecondaryOk
    13436: StoreUnavailableError,  # NotPrimaryOrSecondary
    14031: StoreUnavailableError,  # OutOfDiskSpace
    11: ConfigError,  # UserNotFound
    13: ConfigError,  # Unauthorized
    18: ConfigError,  # AuthenticationFailed
    59: ConfigError,  # CommandNotFound
    61: ConfigError,  # ShardKeyNotFound
    73: ConfigError,  # InvalidNamespace
    85: ConfigError,  # IndexOptionsConflict
    86: ConfigError,  # IndexKeySpecsConflict
    115: ConfigError,  # CommandNotSupported
    166: ConfigError,  # CommandNotSupportedOnView
    8000: ConfigError,  # AtlasError
    15: RejectedError,  # Overflow: nested too deep
    52: RejectedError,  # DollarPrefixedFieldName
    56: RejectedError,  # EmptyFieldName
    57: RejectedError,  # DottedFieldName
    66: RejectedError,  # ImmutableField
    _INVALID: RejectedError,  # DocumentValidationFailure
    10334: RejectedError,  # BSONObjectTooLarge
    _DUPLICATE: UniqueError,  # DuplicateKey
    17280: RejectedError,  # KeyTooLong
    17419: RejectedError,  # the document would grow too large
}


class Database:
    """A client of one MongoDB database, with errors that say what to do. Thread-safe.

    Connects on first use. ``close`` leaves open a client that was passed in.
    """

    def __init__(self, place: str | DriverDatabase[dict[str, Any]]) -> None:
        """``place``: a URL with the database's name, or a ``Database`` of pymongo."""
        self._lock = threading.Lock()
        self._client: pymongo.MongoClient[dict[str, Any]] | None = None
        self._given: DriverDatabase[dict[str, Any]] | None = None
        self._process = 0
        if isinstance(place, str):
            self._url = place
            hosts, _, path = place.partition("://")[2].rpartition("@")[2].partition("/")
            self.name = path.partition("?")[0]
            sound = all(_HOST.fullmatch(host) for host in hosts.split(",")) and self.name
            if not (place.startswith(("mongodb://", "mongodb+srv://")) and sound):
                # Nothing of the URL is shown, because the mistake may be in its password.
                raise ConfigError(
                    "the MongoDB URL is not valid, or names no database",
                    hint="write it like mongodb://localhost:27017/shop, with the database's name",
                )
            self.address = f"{hosts}/{self.name}"
        elif isinstance(place, DriverDatabase):
            self._given = place
            self.name = place.name
            self.address = place.name
        else:
            raise ConfigError(
                f"a MongoDB store takes a URL or a pymongo Database, not {type(place).__name__}",
                hint='pass MongoClient(...)["shop"], for example',
            )

    @classmethod
    def of(cls, place: Place) -> Database:
        """Return the database that a caller names."""
        return place if isinstance(place, Database) else cls(place)

    def __repr__(self) -> str:
        return f"Database({self.address!r})"

    def is_same(self, other: Database) -> bool:
        """Return whether both were made for the same database."""
        if self._given is not None and other._given is not None:
            return self._given == other._given
        return self._given is other._given and self._url == other._url

    def collection(self, name: str) -> Documents:
        """Return the collection of that name, read from the primary and written durably."""
        return self._database().get_collection(
            name,
            codec_options=_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=_DURABLE,
        )

    def _database(self) -> DriverDatabase[dict[str, Any]]:
        if self._given is not None:
            return self._given
        with self._lock:
            if self._client is None or self._process != os.getpid():
                # The threads of a client do not exist in a forked process.
                self._client, self._process = self._connected(), os.getpid()
            return self._client[self.name]

    def _connected(self) -> pymongo.MongoClient[dict[str, Any]]:
        # Short, because the worker itself waits for an unreachable server. A silent server must be
        # noticed too.
        defaults = {"serverSelectionTimeoutMS": 5_000, "socketTimeoutMS": 60_000}
        options: dict[str, Any] = {"connect": False, "appname": "eventsync"}
        options |= {n: ms for n, ms in defaults.items() if f"{n}=".lower() not in self._url.lower()}
        try:
            return pymongo.MongoClient(self._url, **options)
        except driver.ConfigurationError as error:
            name = type(error).__name__
            raise ConfigError(
                f"the URL of the MongoDB database {self.address} cannot be used ({name})",
                hint="percent-escape user and password, and see the options in its query",
            ) from None
        except (ValueError, TypeError):
            raise ConfigError(
                f"the URL of the MongoDB database {self.address} has an option that cannot be used"
            ) from None

    def command(self, name: str, value: Any = 1, **arguments: Any) -> dict[str, Any]:
        """Run a command of the database. Raises errors of pymongo."""
        return self._database().command(name, value, codec_options=_OPTIONS, **arguments)

    def call(self, name: str, action: Callable[[Documents], Any]) -> Any:
        """Call ``action`` with the collection of that name; return its result. Blocks."""
        with self.errors(name):
            return action(self.collection(name))

    def write(self, name: str, operations: Sequence[Any]) -> tuple[int, dict[int, dict[str, Any]]]:
        """Write to a collection, each operation atomic, in any order. Blocks.

        Returns how many documents existed to be updated or deleted, and the server's answers to the
        operations that it rejected because of what they write, by their place in ``operations``.
        """
        try:
            with self.errors(name):
                written = self.collection(name).bulk_write(operations, ordered=False)
            return written.matched_count + written.deleted_count, {}
        except _PartlyError as partly:
            details = partly.details
        refused: dict[int, dict[str, Any]] = {}
        for problem in details["writeErrors"]:
            error = self.error_of(name, problem)
            if not isinstance(error, RejectedError):
                raise error
            refused[problem["index"]] = problem
        if details["writeConcernErrors"]:
            text = details["writeConcernErrors"][0].get("errmsg", "")
            raise StoreUnavailableError(self._said(name, text), uncertain=True)
        return details["nMatched"] + details["nRemoved"], refused

    def error_of(self, name: str, problem: Mapping[str, Any]) -> EventSyncError:
        """Return the server's answer to a write as one of eventsync's errors."""
        code, text = problem.get("code"), self._said(name, str(problem.get("errmsg", "")))
        if is_duplicate(problem):
            # The server's text shows values. The index's name is enough to find them.
            index = str(problem.get("errmsg", "")).partition("index: ")[2].partition(" ")[0]
            fields = ", ".join(problem.get("keyPattern") or ())
            holder = self._holder(name, problem)
            return UniqueError(
                self._said(
                    name,
                    f"{holder or 'another document'} has the same {fields or 'value'} in the unique"
                    f" index {index or '?'}",
                ),
                hint="a held change is retried when the other record has changed; otherwise change"
                " one of the two",
            )
        if code == _INVALID:
            return RejectedError(
                self._said(name, f"{problem.get('errmsg')}: {_unsatisfied(problem)}"),
                hint="the collection's validator rejects it; see db.getCollectionInfos()",
            )
        meaning = MEANINGS.get(code or 0, RejectedError)
        if meaning is ConfigError:
            return self._configuration(code, text)
        return meaning(text)

    def _holder(self, name: str, problem: Mapping[str, Any]) -> str:
        """Return the id of the document that has a value already, as far as it can be found."""
        values = problem.get("keyValue")
        if not values:
            return ""
        try:
            found = self.collection(name).find_one(dict(values), {"_id": True})
        except driver.PyMongoError:
            return ""  # the index's name is enough
        return f"the document {found['_id']!r}" if found else ""

    def _said(self, name: str, text: str) -> str:
        return f"MongoDB at {self.address}, {name}: {text}"

    def _configuration(self, code: int | None, text: str) -> ConfigError:
        hint = "see what the server says of its version, collections and indexes"
        if code in _FORBIDDEN:
            hint = "correct user and password, authSource, or the user's roles"
        return ConfigError(text, hint=hint)

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Raise errors of the client as eventsync's."""
        try:
            yield
        except driver.BulkWriteError as error:
            raise _PartlyError(dict(error.details)) from error
        except (driver.ServerSelectionTimeoutError, driver.WaitQueueTimeoutError) as error:
            raise StoreUnavailableError(self._said(name, _brief(error))) from error
        except driver.ConnectionFailure as error:
            # The connection broke, so the server may have done what was asked.
            raise StoreUnavailableError(self._said(name, _brief(error)), uncertain=True) from error
        except driver.ConfigurationError as error:
            raise ConfigError(self._said(name, _brief(error))) from error
        except (driver.DocumentTooLarge, driver.InvalidName, BSONError, OverflowError) as error:
            raise RejectedError(self._said(name, _brief(error))) from error
        except driver.OperationFailure as error:
            text = self._said(name, _brief(error))
            meaning = MEANINGS.get(error.code or 0)
            if meaning is ConfigError:
                raise self._configuration(error.code, text) from error
            later = meaning is StoreUnavailableError or error.timeout
            if not later and not isinstance(error, driver.WriteConcernError):
                if isinstance(error, driver.WriteError) or meaning is RejectedError:
                    details = {"code": error.code, "errmsg": _brief(error), **(error.details or {})}
                    raise self.error_of(name, details) from error
                raise StoreError(text) from error
            raise StoreUnavailableError(
                text, uncertain=isinstance(error, driver.WriteConcernError)
            ) from error
        except (driver.PyMongoError, OSError) as error:
            raise StoreUnavailableError(self._said(name, _brief(error))) from error

    def lacking_rights(self, collections: Sequence[str]) -> dict[str, list[str]]:
        """Return the actions that this user may not do, by collection. Changes nothing.

        Empty if the server requires no login, or does not tell the rights of its users.
        """
        with self.errors("rights"):
            answer = self._database().command("connectionStatus", showPrivileges=True)
        told = answer.get("authInfo") or {}
        privileges = told.get("authenticatedUserPrivileges")
        if not told.get("authenticatedUsers") or not privileges:
            return {}
        found = {}
        for name in collections:
            allowed: set[str] = set()
            for privilege in privileges:
                place = privilege.get("resource") or {}
                here = place.get("db", "-") in ("", self.name)
                here = here and place.get("collection", "-") in ("", name)
                if here or place.get("anyResource"):
                    allowed |= set(privilege.get("actions") or ())
            if lack := [action for action in _ACTIONS if action not in allowed]:
                found[name] = lack
        return found

    def close(self) -> None:
        """Close connections. Idempotent; a later use opens them again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            client.close()


class _PartlyError(Exception):
    """Some of many writes were rejected."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(details)
        self.details = details


def is_duplicate(problem: Mapping[str, Any]) -> bool:
    """Return whether a server rejected a write because of a unique index."""
    return problem.get("code") == _DUPLICATE


def _brief(error: Exception) -> str:
    """Return the driver's message, without the description of all servers at its end."""
    return str(error).partition(", Timeout: ")[0].partition(", full error: ")[0]


def _unsatisfied(problem: Mapping[str, Any]) -> str:
    """Return which rules of a validator a document breaks, without its values."""
    details = (problem.get("errInfo") or {}).get("details") or {}
    names = []
    for rule in details.get("schemaRulesNotSatisfied") or ():
        names.append(str(rule.get("operatorName")))
        names += [str(name) for name in rule.get("missingProperties") or ()]
        broken = rule.get("propertiesNotSatisfied") or ()
        names += [str(each.get("propertyName")) for each in broken]
    return " ".join(names) or str(details.get("operatorName", "its rules"))
