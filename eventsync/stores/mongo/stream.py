"""The change stream of a MongoDB database as a change source."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from bson import Timestamp, json_util
from pymongo import errors as driver

from eventsync.engine.change_source import Changes, ChangeSource, MarkLostError, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, EventSyncError, StoreUnavailableError
from eventsync.stores.mongo.database import Database

__all__ = ["ChangeStream", "Watched"]

# After so many distinct keys a call returns.
_MOST_KEYS: Final = 200_000
_BATCH: Final = 5000
_LOST: Final = frozenset({136, 260, 280, 286})
"""Errors of a server that cannot continue a stream after a token."""
_CLOSED: Final = 43
_GONE: Final = frozenset({"drop", "rename", "dropDatabase"})
_SHOWN: Final = ("operationType", "ns", "to", "documentKey", "clusterTime", "wallTime")


class Watched(Protocol):
    """What the stream needs of a MongoDB accessor."""

    database: Database
    collection: str

    @property
    def type(self) -> Any:
        """The record type."""

    def key_of_id(self, id: Any) -> str | None:
        """Return the key of the record whose document has this ``_id``, or ``None``."""


class ChangeStream(ChangeSource):
    """Tells the keys of documents as the change stream of the database does.

    It needs a replica set, which may have one member, or a sharded cluster. It creates nothing. The
    mark is the token of the last event. The server can continue after it while its oplog reaches
    back so far.

    Own writes of eventsync are told like others. They equal their fingerprints.
    """

    kind: ClassVar[str] = "stream"

    def __init__(
        self,
        accessors: Sequence[Watched],
        *,
        limit: int = _MOST_KEYS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accessors = list(accessors)
        self._limit = limit
        self._monotonic = monotonic
        self._cursor = 0
        self._token: Any = None
        self._time: Timestamp | None = None
        self._uuids: dict[str, str] = {}
        self._waiting: list[Mapping[str, Any]] = []

    @property
    def _database(self) -> Database:
        return self._accessors[0].database

    # -- the contract ------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        for finding in self.findings():
            raise ConfigError(finding.text, hint=f"run: {finding.statements[0]}")
        now = self._command("hello").get("operationTime")
        self._uuids = self._collections()
        self._token, self._time = None, now
        if mark:
            self._continue(mark, now)
        self._watch()
        return self._mark()

    def _continue(self, mark: str, now: Timestamp | None) -> None:
        """Take the token of a mark. Raise ``MarkLostError`` if the server is another one."""
        try:
            saved = json_util.loads(mark)
            self._token, self._time = saved["token"], saved["time"]
            known = dict(saved["collections"])
        except (ValueError, TypeError, KeyError) as error:
            raise MarkLostError("the mark is not one of a change stream") from error
        if self._time is not None and now is not None and now < self._time:
            raise MarkLostError("the server was restored to a time before the last capture")
        if any(self._uuids.get(name) != uuid for name, uuid in known.items()):
            raise MarkLostError("a collection was made anew, or the server is another one")

    def changes(self, mark: str, *, wait: float) -> Changes:
        deadline = self._monotonic() + wait
        keys: dict[str, dict[str, float | None]] = {}
        whole: dict[str, str] = {}
        count = 0
        while count < self._limit:
            left = 0.0 if keys or whole else deadline - self._monotonic()
            events = self._next(left)
            if not events and (keys or whole or left <= 0):
                break
            for event in events:
                self._take(event, keys, whole)
            count = sum(map(len, keys.values()))
        return Changes(self._mark(), keys, whole, behind=count >= self._limit)

    def close(self) -> None:
        cursor, self._cursor = self._cursor, 0
        self._waiting = []
        if cursor:
            try:
                self._command("killCursors", "$cmd.aggregate", cursors=[cursor])
            except (EventSyncError, OSError, driver.PyMongoError):
                return  # the server ends it by itself

    # -- reading -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        names = sorted({one.collection for one in self._accessors})
        stage: dict[str, Any] = {}
        if self._token is not None:
            stage["startAfter"] = self._token
        elif self._time is not None:
            stage["startAtOperationTime"] = Timestamp(self._time.time, self._time.inc + 1)
        wanted = [
            {"ns.coll": {"$in": names}},
            {"to.coll": {"$in": names}},
            {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
        ]
        answer = self._command(
            "aggregate",
            1,
            pipeline=[
                {"$changeStream": stage},
                {"$match": {"$or": wanted}},
                {"$project": dict.fromkeys(_SHOWN, 1)},
            ],
            cursor={"batchSize": _BATCH},
        )
        self._waiting = list(self._batch(answer, "firstBatch"))

    def _next(self, wait: float) -> Sequence[Mapping[str, Any]]:
        """Return the next events. Wait for the first one, at most ``wait`` seconds."""
        if self._waiting:
            events, self._waiting = self._waiting, []
            return events
        if not self._cursor:
            # After its database was dropped, a stream ends.
            self._watch()
            return self._next(wait)
        answer = self._command(
            "getMore",
            self._cursor,
            collection="$cmd.aggregate",
            batchSize=_BATCH,
            maxTimeMS=max(1, min(1000, int(wait * 1000))),
        )
        return self._batch(answer, "nextBatch")

    def _batch(self, answer: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
        cursor = answer["cursor"]
        self._cursor = int(cursor["id"])
        events: Sequence[Mapping[str, Any]] = cursor[name]
        if events:
            self._token = events[-1]["_id"]
            self._time = events[-1].get("clusterTime") or self._time
        if (token := cursor.get("postBatchResumeToken")) is not None:
            self._token = token
        return events

    def _take(
        self,
        event: Mapping[str, Any],
        keys: dict[str, dict[str, float | None]],
        whole: dict[str, str],
    ) -> None:
        kind = event["operationType"]
        places = {event.get(part, {}).get("coll") for part in ("ns", "to")}
        for one in self._accessors:
            if kind in _GONE:
                if kind == "dropDatabase" or one.collection in places:
                    whole[one.type.name] = f"the event {kind}"
                    self._uuids.pop(one.collection, None)
            elif one.collection in places and "documentKey" in event:
                key = one.key_of_id(event["documentKey"]["_id"])
                if key is None:
                    continue  # a read of all records reports the document
                known = keys.setdefault(one.type.name, {})
                known[key] = max(_moment(event) or 0.0, known.get(key) or 0.0) or None

    def _mark(self) -> str:
        return str(
            json_util.dumps(
                {"token": self._token, "time": self._time, "collections": self._uuids},
                sort_keys=True,
            )
        )

    # -- the server --------------------------------------------------------------------------------

    def _collections(self) -> dict[str, str]:
        """Return the identities of the captured collections that exist."""
        names = sorted({one.collection for one in self._accessors})
        answer = self._command(
            "listCollections", 1, filter={"name": {"$in": names}}, cursor={"batchSize": 10_000}
        )
        return {
            str(found["name"]): str(found.get("info", {}).get("uuid", ""))
            for found in answer["cursor"]["firstBatch"]
        }

    def _command(self, name: str, value: Any = 1, **arguments: Any) -> Mapping[str, Any]:
        try:
            return self._database.command(name, value, **arguments)
        except driver.PyMongoError as error:
            code = error.code if isinstance(error, driver.OperationFailure) else None
            if code in _LOST:
                raise MarkLostError(
                    f"the server cannot continue the change stream after the mark: {error}"
                ) from error
            if code == _CLOSED:
                raise StoreUnavailableError("the change stream ended") from error
            with self._database.errors(self._accessors[0].collection):
                raise

    # -- what an operator does ---------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        hello = self._command("hello")
        if not hello.get("setName") and hello.get("msg") != "isdbgrid":
            yield Finding(
                Level.WRONG,
                "capture by the change stream",
                f"the server of {self._database.address} is not a member of a replica set; start it"
                " with --replSet NAME, and run the statement once; one member is enough",
                ("rs.initiate()",),
            )

    def state(self) -> SourceState:
        wrong = list(self.findings())
        details = {"missing": wrong[0].text} if wrong else {}
        if self._time is not None:
            details["last event"] = json.dumps(self._time.time)
        return SourceState(not wrong, details=details)


def _moment(event: Mapping[str, Any]) -> float | None:
    """Return when an event was committed: exactly since MongoDB 6.0, else the second."""
    if (wall := event.get("wallTime")) is not None:
        return float(wall.timestamp())
    found: Timestamp | None = event.get("clusterTime")
    return None if found is None else float(found.time)
