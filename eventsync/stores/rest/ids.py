"""Objects with ids that the service assigns: the record of each, and creation exactly once.

The identity map notes each creation before the request is sent. If the answer is lost, the next
attempt searches for the object by its marker instead of creating it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from eventsync.engine.isolation import concerns_all
from eventsync.errors import (
    DependencyError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.records.record import RecordType
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest.answer import Answer

__all__ = ["Ids", "OvertakenError"]


class OvertakenError(StoreUnavailableError):
    """Another client changed the object between our read and our write. Nothing was written."""


class Objects(Protocol):
    """The methods of ``RestAccessor`` that ``Ids`` uses."""

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
    """The ids of the records of one accessor, kept in an identity map."""

    def __init__(self, objects: Objects, identity: IdentityMap) -> None:
        self._objects = objects
        self._map = identity

    def id_of(self, key: str) -> str | None:
        """Return the id of a record, or ``None`` if it has none.

        If the answer to its creation was lost, search for the object.
        """
        name = self._objects.type.name
        id = self._map.id_of(name, key)
        if id is None and self._map.is_open(name, key):
            id = self._find_created(key)
        return id

    def key_in(self, data: dict[str, Any]) -> str:
        """Return the key of the record that an object holds. Raises ``RecordError``."""
        type, id = self._objects.type, self._objects.id_in(data)
        known = None if id is None else self._map.key_of(type.name, id)
        if known is not None:
            return known
        marked = self._valid(self._objects.marker_in(data))
        if marked is not None and (id is None or self._map.bind(type.name, marked, id)):
            return marked
        if id is None:
            raise RecordError(f"{type.name}: an object of the service has no id")
        # Another client created the object, or copied one with a marker.
        minted = self._map.minted(id)
        type.key_values(minted)
        if not self._map.bind(type.name, minted, id):
            raise RecordError(
                f"{type.name} {minted!r} has the id {id} at the service and another in "
                f"{self._map!r}"
            )
        return minted

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        """Create the object of a record exactly once, whatever happened to earlier attempts.

        Raises ``OvertakenError`` if the object exists already, and what ``Objects.create`` raises.
        """
        objects, name = self._objects, self._objects.type.name
        if not self._map.is_surveyed(name):
            # The map may be new, in place of one that was lost: bind all existing objects first.
            for data in objects.listed({}):
                try:
                    self.key_in(data)
                except Exception as error:
                    if concerns_all(error):
                        raise
                    # An object without a readable key is not the one to be created.
            self._map.surveyed(name)
            if self._map.id_of(name, key) is not None and objects.fetch(key) is not None:
                raise objects.overtaken(key)
        self._map.forget(name, key)  # the id of a deleted object
        if self._map.begin(name, key) and self._find_created(key) is not None:
            raise objects.overtaken(key)
        try:
            answer = objects.create(key, members)
        except StoreUnavailableError as error:
            if not error.uncertain:
                self._map.abandon(name, key)
            raise
        except RejectedError:
            self._map.abandon(name, key)
            raise
        except DependencyError:
            if not objects.leaves:
                self._map.abandon(name, key)
            raise
        if not self._map.bind(name, key, objects.id_made(answer, members)):
            raise StoreUnavailableError(
                f"{name} {key!r} got another id while it was being created", uncertain=True
            )
        return answer

    def _valid(self, marked: str | None) -> str | None:
        """Return the key in a marker if it is a key of the record type, else ``None``."""
        if marked is None:
            return None
        try:
            self._objects.type.key_values(marked)
        except RecordError:
            return None  # a text that only looks like a marker
        return marked

    def _find_created(self, key: str) -> str | None:
        """Search for the object that an earlier attempt may have created, and return its id."""
        name = self._objects.type.name
        id = self._objects.find_marked(key)
        if id is not None and not self._map.bind(name, key, id):
            other = self._map.key_of(name, id)
            raise RejectedError(
                f"{name} {key!r} was created with the id {id}, which the identity map has as "
                f"{other!r}",
                hint="remove one of the two objects at the service",
            )
        return id
