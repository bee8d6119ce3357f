"""The description of a kind of object at a REST service: where it is and how it is written.

It owns URL templates. It sends nothing.
"""

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

__all__ = ["Resource", "Since", "Within", "filled"]

_DOTS: Final = {".": "%2E", "..": "%2E%2E"}


def _parse(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Since:
    """How a list is asked for what changed since a time, that time included.

    ``updated``: where in an object that time is. ``query``: the query, with ``{since}`` in it.
    ``parse`` and ``show``: the time's text in an object, and in the query. ``overlap``: by how many
    seconds each read reaches back behind the latest change seen, since changes may come to light
    out of their order.
    """

    updated: str
    query: Mapping[str, str]
    parse: Callable[[str], dt.datetime] = _parse
    show: Callable[[dt.datetime], str] = dt.datetime.isoformat
    overlap: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Within:
    """That there is one list for each of other objects, as of comments for each issue.

    ``items``, ``query``, ``pages``: where those are listed, and how that list is walked if not as
    the inner ones; ``id``: where in one its id is. The paths of
    the objects inside have that id as ``{in}``, and each of them, as it is listed, has the one that
    it is in as ``@in``: so ``id="number"`` is found at ``@in.number``, and a field at that path
    says what an object is created in. What changed is asked of the outer list.
    """

    items: str
    query: Mapping[str, str] = field(default_factory=dict)
    pages: Pages | None = None
    id: str = "id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """Where the objects of one kind are, and what may be done to them.

    ``items``: the path of the list. ``item``: that of one object, with the key's fields in braces
    or ``{key}``, the whole key; where the service gives ids of its own, ``{id}``.
    ``pages``: how the list is walked; ``query``: sent with it. ``single``: the query that is sent
    with a read of one object. ``body``: where in the answer to a
    single read the object is (``data``); empty for the answer itself. ``within``: if there are many
    such lists; an id of the service's own is then that of the outer object and that of the inner
    one, with a ``:`` between. ``paths``: by the view's
    names, where in an object the value is, as a path of names with points or a ``Place``; a field
    that is not in it is a member of its own name.

    ``create``: ``PUT`` to the object's path, or ``POST`` to the list, or to ``creations`` where
    that is another path. ``update``: ``PUT`` of the
    whole object, with what else is in it, or ``PATCH`` of what changed. ``etags``: use strong
    entity tags, so that a change which somebody else made in between is not overwritten.
    ``returns``: the answer to a write is the object as a read would give it. ``taken``: statuses
    that answer the creation of what is there already.

    ``id``: where in an object the service's own id is. ``marker``: where it keeps the record's key,
    by which an object is found again whose creation was not answered; ``marked``: a query that
    narrows the list down to objects with that marker, with ``{key}`` in it. ``since``: how to ask
    for what changed.
    """

    items: str
    item: str
    pages: Pages = field(default_factory=OnePage)
    query: Mapping[str, str] = field(default_factory=dict)
    single: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    within: Within | None = None
    paths: Mapping[str, str | Place] = field(default_factory=dict)
    create: Literal["PUT", "POST"] = "POST"
    creations: str = ""
    update: Literal["PUT", "PATCH"] = "PATCH"
    etags: bool = True
    returns: bool = False
    taken: frozenset[int] = frozenset({409})
    id: str = "id"
    marker: str | Place | None = None
    marked: Mapping[str, str] = field(default_factory=dict)
    since: Since | None = None

    def names(self) -> set[str]:
        """The names in braces in the path of one object. Raises ``ConfigError``."""
        try:
            return {name for _, name, *_ in Formatter().parse(self.item) if name is not None}
        except ValueError as error:
            raise ConfigError(f"item={self.item!r}: {error}") from None

    def under(self, base: str, *, rename: Mapping[str, str] | None = None) -> Resource:
        """The same with ``base`` for the point in paths that begin with ``./``.

        ``rename``: other names for those in braces in the path of one object.
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
    """A path with values in place of the names in braces, escaped as one part of a path each."""
    texts = {}
    for name, value in values.items():
        text = quote(str(value), safe="")
        # As they are they would lead to another place.
        texts[name] = _DOTS.get(text, text)
    return template.format(**texts)
