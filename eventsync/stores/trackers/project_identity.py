"""The part of an identity map that belongs to one of several projects."""

from __future__ import annotations

from collections.abc import Sequence

from eventsync.stores.identity import IdentityMap

__all__ = ["ProjectIdentity"]


class ProjectIdentity(IdentityMap):
    """The records of one project in the identity map of all projects of a store.

    ``whole``: that map. ``prefixed``: whether ids are unique only within a project. If so, the map
    has ``ann/shop:12`` for the id 12 of the project ``ann/shop``.
    """

    def __init__(self, whole: IdentityMap, project: str, *, prefixed: bool) -> None:
        self.name, self._file = whole.name, whole._file
        self._whole, self._project = whole, project
        self._prefix = f"{project}:" if prefixed else ""

    def __repr__(self) -> str:
        return repr(self._whole)

    @property
    def whole(self) -> IdentityMap:
        return self._whole

    def ids_of(self, type: str, keys: Sequence[str]) -> dict[str, str]:
        return {
            key: id.removeprefix(self._prefix)
            for key, id in self._whole.ids_of(type, keys).items()
            if id.startswith(self._prefix)
        }

    def key_of(self, type: str, id: str) -> str | None:
        return self._whole.key_of(type, self._prefix + id)

    def bind(self, type: str, key: str, id: str) -> bool:
        return self._whole.bind(type, key, self._prefix + id)

    @property
    def _minting(self) -> str:
        return f"{self.name}:{self._prefix}"

    def is_surveyed(self, type: str) -> bool:
        return self._whole.is_surveyed(f"{type} {self._project}")

    def surveyed(self, type: str) -> None:
        self._whole.surveyed(f"{type} {self._project}")
