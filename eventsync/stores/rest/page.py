"""Paging: the ways in which REST services return a long list page by page."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urljoin

from eventsync.errors import RecordError, shown
from eventsync.stores.rest.path import at
from eventsync.stores.rest.service import Answer, Service
from eventsync.stores.rest.unreadable import Unreadable

__all__ = ["Cursor", "Links", "NextLink", "Numbers", "OnePage", "Pages"]

PageRequest: TypeAlias = tuple[str, Mapping[str, str]]
"""The path and the query of a request for a page."""

_LINK: Final = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+\s*=\s*(?:"[^"]*"|[^\s;,"]*))*)')
_REL: Final = re.compile(r'\brel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Pages(ABC):
    """A way of paging.

    ``items``: the path of the list in an answer, as in ``data.collection``; empty if the answer is
    the list. ``size``: how many objects a page has. ``size_name``: the query parameter for it.
    """

    items: str = ""
    size: int = 100
    size_name: str = "per_page"

    def walk(
        self, service: Service, path: str, query: Mapping[str, str], *, alone: bool = False
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages of the list at ``path``.

        An item that is not an object is replaced by an ``Unreadable``. ``alone``: the list is one
        of several, in an object of its own; if that is gone, only this list cannot be read.

        Raises what ``Service.request`` raises, and ``RecordError`` for an answer without a list: a
        list that breaks off must not look like a complete one.
        """
        seen = set()
        request: PageRequest | None = path, {**query, **self.first()}
        while request is not None:
            if (mark := (request[0], tuple(sorted(request[1].items())))) in seen:
                raise RecordError(
                    f"{service.url}/{path}: the pages of the list go round in circles: one leads "
                    "back to a page that was read before"
                )
            seen.add(mark)
            answer: Answer | None
            if alone:
                answer = service.read_one(request[0], query=request[1])
            else:
                answer = service.request("GET", request[0], query=request[1])
            if answer is None:
                raise RecordError(
                    f"{service.url}/{path}: not found; the object of this list was deleted"
                )
            content = answer.json()
            found = at(content, self.items)
            if not isinstance(found, list) or (
                found and not any(isinstance(item, dict) for item in found)
            ):
                raise RecordError(
                    f"{service.url}/{path}: the answer has no list of objects"
                    + (f" at {self.items!r}" if self.items else "")
                )
            yield [item if isinstance(item, dict) else _odd(service, path, item) for item in found]
            request = self.after(answer, content, found, request)

    def first(self) -> dict[str, str]:
        """Return the parameters that the first request adds to the query."""
        return {self.size_name: str(self.size)} if self.size_name else {}

    @abstractmethod
    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> PageRequest | None:
        """Return the request for the page after this one, or ``None`` after the last.

        ``content``: the JSON of the answer. ``found``: the list in it. ``request``: what this
        answers.
        """


@dataclass(frozen=True, kw_only=True)
class OnePage(Pages):
    """One answer with the whole list."""

    def first(self) -> dict[str, str]:
        return {}

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Links(Pages):
    """Pages that name the next one in the ``Link`` header (RFC 8288)."""

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> PageRequest | None:
        for target, parameters in _LINK.findall(answer.headers.get("link", "")):
            relations = _REL.search(parameters)
            if relations and "next" in (relations[1] or relations[2]).lower().split():
                return _joined(answer, target), {}
        return None


@dataclass(frozen=True, kw_only=True)
class NextLink(Pages):
    """Pages that name the next one by a URL in their body, whole or relative.

    ``at``: the path of the URL in an answer, as in ``links.next``. After the last page there is no
    URL.
    """

    at: str = "next"

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> PageRequest | None:
        target = at(content, self.at)
        if target is None or target == "":
            return None
        if not isinstance(target, str):
            raise RecordError(
                f"{answer.url}: the next page at {self.at!r} is not a URL: {shown(target)}"
            )
        return _joined(answer, target), {}


@dataclass(frozen=True, kw_only=True)
class Numbers(Pages):
    """Pages with numbers or offsets.

    ``name``: the query parameter for the number. ``start``: the first number. ``offsets``: the
    number counts objects instead of pages. ``total``: the path of the number of all objects in an
    answer. Without ``total``, a page that is not full is the last one, so a service that may return
    smaller pages than requested needs ``total``.
    """

    name: str = "page"
    start: int = 1
    offsets: bool = False
    total: str = ""

    def first(self) -> dict[str, str]:
        return {**super().first(), self.name: str(self.start)}

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> PageRequest | None:
        path, query = request
        number = int(query[self.name])
        done = number - self.start if self.offsets else (number - self.start) * self.size
        if self.total:
            total = at(content, self.total)
            if not isinstance(total, int):
                raise RecordError(f"{answer.url}: the answer has no number at {self.total!r}")
            more = bool(found) and done + len(found) < total
        else:
            more = len(found) >= self.size
        following = number + (len(found) if self.offsets else 1)
        return (path, {**query, self.name: str(following)}) if more else None


@dataclass(frozen=True, kw_only=True)
class Cursor(Pages):
    """Pages that name the next one by a cursor.

    ``at``: the path of the cursor in an answer. ``name``: the query parameter for it.
    """

    at: str
    name: str = "cursor"

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], request: PageRequest
    ) -> PageRequest | None:
        cursor = at(content, self.at)
        if cursor is None or cursor == "":
            return None
        return request[0], {**request[1], self.name: str(cursor)}


def _joined(answer: Answer, target: str) -> str:
    """Return the URL of the next page, which may be relative. Raises ``RecordError``."""
    try:
        return urljoin(answer.url, target)
    except ValueError as error:
        raise RecordError(
            f"{answer.url}: the next page is not a URL: {shown(target)}: {error}"
        ) from None


def _odd(service: Service, path: str, item: Any) -> Unreadable:
    return Unreadable(
        RecordError(f"{service.url}/{path}: an item of the list is not an object: {shown(item)}")
    )
