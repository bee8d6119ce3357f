"""What the accessors of all issue trackers share: references, and markers in texts.

It owns the translation of references between records, and the marker. It knows no tracker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote, unquote

from eventsync.accessor import Accessor
from eventsync.errors import ConfigError, DependencyError
from eventsync.identity import IdentityMap
from eventsync.key import join as join_key
from eventsync.key import split as split_key
from eventsync.record import Record
from eventsync.stores.rest import Resource, RestAccessor, Service
from eventsync.view import View

__all__ = ["TrackerAccessor", "marked", "quoted", "sorted_names", "unmarked"]

R = TypeVar("R", bound=Record)
_MARKER: Final = re.compile(
    r"(?:\r?\n){0,2}<!-- eventsync:([\w.-]+):([\w.%~]+)( deleted)? -->\s*\Z", re.ASCII
)


def quoted(key: str) -> str:
    """A key as it may stand in a marker: it could not end one."""
    return quote(key, safe="").replace("-", "%2D")


def marked(text: str, type: str, key: str, *, deleted: bool = False) -> str:
    """``text`` with a marker after it that readers do not see: an HTML comment."""
    gone = " deleted" if deleted else ""
    gap = "\n\n" if text else ""
    return f"{text}{gap}<!-- eventsync:{type}:{quoted(key)}{gone} -->"


def unmarked(text: str, type: str) -> tuple[str, str | None, bool]:
    """The text without its marker, the key in that, and whether it says that the record is deleted.

    A marker of another type is a part of the text.
    """
    found = _MARKER.search(text)
    if found is None or found[1] != type:
        return text, None, False
    return text[: found.start()], unquote(found[2]), found[3] is not None


class TrackerAccessor(RestAccessor[R]):
    """Records of one type in an issue tracker. ``holds``: the names of what it can hold.

    Fields that the view holds have to be among these names. References to records of the types in
    ``named`` are names in the tracker too, as of an account: they are the record's key, unless the
    identity map says otherwise. Other references are ids of the tracker.
    """

    holds: ClassVar[frozenset[str]] = frozenset()
    references: ClassVar[Mapping[str, str]] = {}
    """By name, the type of the records that a field refers to."""
    named: ClassVar[frozenset[str]] = frozenset({"Account", "Label"})

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        resource: Resource,
        *,
        view: View | None = None,
        identity: IdentityMap | None = None,
    ) -> None:
        super().__init__(record_type, service, resource, view=view, identity=identity)
        keys = {self.view.names[name] for name in self.type.keys}
        foreign = [name for name in self.view.names.values() if name not in self.holds | keys]
        if foreign:
            raise ConfigError(
                f"{type(self).__name__} holds no {', '.join(map(repr, foreign))} of "
                f"{self.type.name}",
                hint="leave it out or rename it in the view; it holds "
                + ", ".join(sorted(self.holds)),
            )

    def depends_on(self, other: Accessor[Any]) -> bool:
        held = self.view.names.values()
        return any(t == other.type.name and n in held for n, t in self.references.items())

    def reference(self, name: str, held: str | None) -> str | None:
        """What the tracker knows the record by that the field ``name`` refers to.

        ``held``: the value of that record's key field. Raises ``DependencyError`` if it is not here
        yet.
        """
        if held is None:
            return None
        type, key = self.references[name], join_key([held])
        id = None if self.identity is None else self.identity.id_of(type, key)
        if id is None and self.identity is not None and type not in self.named:
            # One that others created there, and that was not captured yet.
            begins = self.identity.minted("")
            id = key.removeprefix(begins) if key.startswith(begins) else None
        if id is None and type in self.named:
            id = held
        if id is None:
            raise DependencyError(
                f"{self.type.name}.{name} refers to {type} {key!r}, which is not in "
                f"{self.service.url} yet"
            )
        return id

    def referred(self, name: str, id: str | None) -> str | None:
        """The key's value of the record that the tracker knows by ``id``: ``reference`` undone."""
        if id is None:
            return None
        type = self.references[name]
        key = None if self.identity is None else self.identity.key_of(type, id)
        if key is not None:
            return split_key(key)[0]
        return id if type in self.named or self.identity is None else self.identity.minted(id)

    def only_held(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``values`` that the view holds."""
        held = set(self.view.names.values())
        return {name: value for name, value in values.items() if name in held}


def sorted_names(names: Iterable[Any]) -> list[str]:
    """Names in one order, since trackers keep them as a set."""
    return sorted({str(name) for name in names})
