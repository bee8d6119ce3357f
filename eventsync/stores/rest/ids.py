"""Objects under ids of the service's own: which record each is, and its creation, once.

It owns the order of notes and requests that makes a creation happen once. It knows neither URLs
nor what is in an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from eventsync.errors import (
    DependencyError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.records.record import RecordType
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest.service import Answer

__all__ = ["Ids", "OvertakenError"]


class OvertakenError(StoreUnavailableError):
    """Somebody else changed the object between the read and the write; nothing was written."""


class Objects(Protocol):
    """What is needed of the accessor; see ``RestAccessor``."""

    @property
    def type(self) -> RecordType: ...

    @property
    def leaves(self) -> bool: ...

    def listed(self, query: Mapping[str, str]) -> Iterable[dict[str, Any]]: ...

    def fetch(self, key: str) -> object | None: ...

    def create(self, key: str, members: Mapping[str, Any]) -> Answer: ...

    def find_marked(self, key: str) -> str | None: ...

    def marker_in(self, data: dict[str, Any]) -> str | None: ...

    def id_in(self, data: Mapping[str, Any]) -> str | None: ...

    def id_made(self, answer: Answer, members: Mapping[str, Any]) -> str: ...

    def overtaken(self, what: str) -> OvertakenError: ...


class Ids:
    """The ids of the records of one accessor."""

    def __init__(self, objects: Objects, identity: IdentityMap) -> None:
        self._objects = objects
        self._map = identity

    def id_of(self, key: str) -> str | None:
        """The id of a record, ``None`` if it has none; one of a lost answer is looked for."""
        name = self._objects.type.name
        id = self._map.id_of(name, key)
        if id is None and self._map.is_open(name, key):
            id = self._rediscovered(key)
        return id

    def key_in(self, data: dict[str, Any]) -> str:
        """The key of the record that an object is. Raises ``RecordError``."""
        type, id = self._objects.type, self._objects.id_in(data)
        known = None if id is None else self._map.key_of(type.name, id)
        if known is not None:
            return known
        marked = self._valid(self._objects.marker_in(data))
        if marked is not None and (id is None or self._map.bind(type.name, marked, id)):
            return marked
        if id is None:
            raise RecordError(f"{type.name}: an object without an id")
        # Created by others, or a copy of a marked one.
        minted = self._map.minted(id)
        type.key_values(minted)
        if not self._map.bind(type.name, minted, id):
            raise RecordError(f"{type.name} {minted!r} has another id than {id} in {self._map!r}")
        return minted

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        """Create the object of a record once, whatever became of earlier attempts.

        Raises ``OvertakenError`` if it is found to be there, and what ``create`` raises.
        """
        objects, name = self._objects, self._objects.type.name
        if not self._map.is_surveyed(name):
            # The map may be a new one in place of one that was lost.
            for data in objects.listed({}):
                self.key_in(data)
            self._map.surveyed(name)
            if self._map.id_of(name, key) is not None and objects.fetch(key) is not None:
                raise objects.overtaken(key)
        self._map.forget(name, key)  # of an object that is gone
        if self._map.begin(name, key) and self._rediscovered(key) is not None:
            raise objects.overtaken(key)
        try:
            answer = objects.create(key, members)
        except StoreUnavailableError as error:
            if not error.uncertain:
                self._map.abandon(name, key)
            raise
        except DependencyError:
            if not objects.leaves:
                self._map.abandon(name, key)
            raise
        except RejectedError:
            self._map.abandon(name, key)
            raise
        if not self._map.bind(name, key, objects.id_made(answer, members)):
            raise StoreUnavailableError(f"{name} {key!r} got an id meanwhile", uncertain=True)
        return answer

    def _valid(self, marked: str | None) -> str | None:
        if marked is None:
            return None
        try:
            self._objects.type.key_values(marked)
        except RecordError:
            return None  # a text that only looks like a marker
        return marked

    def _rediscovered(self, key: str) -> str | None:
        """The id of what an earlier attempt may have created."""
        name = self._objects.type.name
        id = self._objects.find_marked(key)
        if id is not None and not self._map.bind(name, key, id):
            other = self._map.key_of(name, id)
            raise RejectedError(
                f"{name} {key!r} was created as {id}, which is taken for {other!r}",
                hint="remove one of the two by hand",
            )
        return id
