"""The description of one kind of object at a REST service: its paths, and how it is written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any, Final, Literal
from urllib.parse import quote

from eventsync.errors import ConfigError
from eventsync.stores.rest.page import OnePage, Pages
from eventsync.stores.rest.path import Place

__all__ = ["Reference", "Resource", "Since", "Within", "filled"]

_DOTS: Final = {".": "%2E", "..": "%2E%2E"}


def _parse(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Since:
    """The way to ask a list for the objects that changed at or after a time.

    ``updated``: the path of the time of the last change in an object. ``query``: the query of the
    list, with ``{since}`` for the time. ``parse``: converts the text in an object to a time.
    ``show``: converts a time to the text in the query. ``overlap``: how many seconds before the
    latest change seen each read begins, because changes may become visible out of order.
    """

    updated: str
    query: Mapping[str, str]
    parse: Callable[[str], dt.datetime] = _parse
    show: Callable[[dt.datetime], str] = dt.datetime.isoformat
    overlap: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Within:
    """The outer objects, if each of them has a list of its own: one of comments for each issue.

    ``items``, ``query``: the path and query of the list of outer objects. ``pages``: how that list
    is paged, if not as the inner lists. ``id``: the path of the id in an outer object.

    The paths of the inner objects contain this id as ``{in}``. A listed inner object has its outer
    object as the member ``@in``. With ``id="number"``, for example, the number of the issue is at
    ``@in.number`` of a comment, and a field with this path says to which issue a comment is added.
    Recent changes are read from the outer list.
    """

    items: str
    query: Mapping[str, str] = field(default_factory=dict)
    pages: Pages | None = None
    id: str = "id"


@dataclass(frozen=True, slots=True)
class Reference:
    """A member that is the id of another object, or a list of such ids.

    ``of``: the name of the record type of the other object. Its accessor must have the same
    identity map. ``write``: converts the id, which is a text, to JSON: ``int`` for numbers.
    """

    of: str
    write: Callable[[str], Any] = str


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """The paths of the objects of one kind, and how they are read and written.

    Reading. ``items``: the path of the list. ``item``: the path of one object, with the key fields
    in braces, or ``{key}`` for the whole key, or ``{id}`` if the service assigns ids. ``pages``:
    how the list is paged. ``query``: the query of the list. ``single``: the query of a read of one
    object. ``body``: the path of the object in the answer to such a read, as in ``data``; empty if
    the answer is the object. ``within``: the outer objects, if each has a list of its own; an id is
    then the outer id and the inner id with ``:`` between. ``paths``: by the view's names, where a
    value is in an object: a path, as in ``fields.status``, or a ``Place``. A field without a path
    is a member of its own name. ``absent``: by the view's names, the JSON value that a missing
    member stands for. Without it, a missing member of an object that was read alone is ``None`` in
    an optional field, and no statement about any other field; a listed object that lacks a member
    is read alone. ``references``: by the view's names, which members are the ids of other objects.

    Writing. ``create``: ``PUT`` to the path of the object, or ``POST`` to the list, or to
    ``creations`` if that is another path. ``update``: ``PUT`` of the whole object, including
    members that the view does not name, or ``PATCH`` of the changed ones. ``etags``: use strong
    entity tags, so that a change by another client is not overwritten. ``returns``: whether the
    answer to a write is the object as a read returns it. ``wrap``: the path at which a request has
    the object, as in ``article``; empty if the body is the object. ``new``: by path, the values
    that each new object gets, unless the record gives others. ``taken``: the statuses of the answer
    if the object to create exists already.

    Identity. ``id``: the path of the id that the service assigns. ``marker``: the path where the
    object keeps the key of its record; if the answer to a creation is lost, the object is found by
    it. ``marked``: a query that selects the objects with this marker, with ``{key}`` for the key.
    ``quote``: how a key is written in the query language of ``marked``, quotation marks included;
    needed if a parameter has more than ``{key}``. ``jql`` and ``phrase`` are ready to use.
    ``since``: how to ask for recent changes.
    """

    items: str
    item: str
    pages: Pages = field(default_factory=OnePage)
    query: Mapping[str, str] = field(default_factory=dict)
    single: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    within: Within | None = None
    paths: Mapping[str, str | Place] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict)
    create: Literal["PUT", "POST"] = "POST"
    creations: str = ""
    update: Literal["PUT", "PATCH"] = "PATCH"
    etags: bool = True
    returns: bool = False
    wrap: str = ""
    new: Mapping[str, Any] = field(default_factory=dict)
    taken: frozenset[int] = frozenset({409})
    id: str = "id"
    marker: str | Place | None = None
    marked: Mapping[str, str] = field(default_factory=dict)
    quote: Callable[[str], str] | None = None
    since: Since | None = None

    def names(self) -> set[str]:
        """Return the names in braces in ``item``. Raises ``ConfigError``."""
        try:
            return {name for _, name, *_ in Formatter().parse(self.item) if name is not None}
        except ValueError as error:
            raise ConfigError(f"item={self.item!r}: {error}") from None

    def under(self, base: str, *, rename: Mapping[str, str] | None = None) -> Resource:
        """Return a copy in which ``base`` replaces the point of paths that begin with ``./``.

        ``rename``: new names for the names in braces in ``item``.
        """

        def full(path: str) -> str:
            return base + path.removeprefix(".") if path.startswith("./") else path

        item = full(self.item)
        for name, other in (rename or {}).items():
            item = item.replace(f"{{{name}}}", f"{{{other}}}")
        within = self.within and replace(self.within, items=full(self.within.items))
        return replace(
            self,
            items=full(self.items),
            item=item,
            creations=full(self.creations),
            within=within,
        )


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Return a path with values for the names in braces, each escaped as one path segment."""
    texts = {}
    for name, value in values.items():
        text = quote(str(value), safe="")
        # Unescaped, these would address another path.
        texts[name] = _DOTS.get(text, text)
    return template.format(**texts)
