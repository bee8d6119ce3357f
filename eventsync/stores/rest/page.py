"""How a REST service hands out a long list page by page.

It owns the walk from page to page. It knows nothing of records.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventsync.errors import RecordError
from eventsync.stores.rest.path import at
from eventsync.stores.rest.service import Answer, Service

__all__ = ["Cursor", "Links", "Numbers", "OnePage", "Pages"]

_LINK: Final = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+\s*=\s*(?:"[^"]*"|[^\s;,"]*))*)')
_REL: Final = re.compile(r'\brel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Pages(ABC):
    """Walks a list. ``size``: how many to ask for a page, under the name ``size_name``.

    ``items``: where in an answer the list is (``data.collection``); empty for the answer itself.
    """

    items: str = ""
    size: int = 100
    size_name: str = "per_page"

    def walk(
        self, service: Service, path: str, query: Mapping[str, str]
    ) -> Iterator[list[dict[str, Any]]]:
        """The list at ``path``, page by page. Raises what ``Service.request`` does, and
        ``RecordError`` for an answer that holds no list: a list that ends early is not a short one.
        """
        seen = set()
        step: tuple[str, Mapping[str, str]] | None = path, {**query, **self.first()}
        while step is not None:
            if (mark := (step[0], tuple(sorted(step[1].items())))) in seen:
                raise RecordError(
                    f"{service.url}/{path}: the pages of the list go round in circles"
                )
            seen.add(mark)
            answer = service.request("GET", step[0], query=step[1])
            content = answer.json()
            found = at(content, self.items)
            if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
                raise RecordError(
                    f"{service.url}/{path}: the answer has no list of objects"
                    + (f" at {self.items!r}" if self.items else "")
                )
            yield found
            step = self.after(answer, content, found, step)

    def first(self) -> dict[str, str]:
        """What the first request asks for, beside the query."""
        return {self.size_name: str(self.size)} if self.size_name else {}

    @abstractmethod
    def after(
        self,
        answer: Answer,
        content: Any,
        found: Sequence[Any],
        step: tuple[str, Mapping[str, str]],
    ) -> tuple[str, Mapping[str, str]] | None:
        """Path and query of the page after this one, ``None`` after the last."""


@dataclass(frozen=True, kw_only=True)
class OnePage(Pages):
    """The whole list at once."""

    def first(self) -> dict[str, str]:
        return {}

    def after(self, answer: Answer, content: Any, found: Sequence[Any], step: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Links(Pages):
    """The next page is in the ``Link`` header (RFC 8288)."""

    def after(
        self, answer: Answer, content: Any, found: Sequence[Any], step: Any
    ) -> tuple[str, Mapping[str, str]] | None:
        for target, parameters in _LINK.findall(answer.headers.get("link", "")):
            relations = _REL.search(parameters)
            if relations and "next" in (relations[1] or relations[2]).lower().split():
                return target, {}
        return None


@dataclass(frozen=True, kw_only=True)
class Numbers(Pages):
    """Pages have numbers, or offsets: the next one follows a page that is full.

    ``name``: under which the number is asked for. ``start``: the first. ``offsets``: it counts
    items instead of pages. ``total``: where in an answer the number of all items is; without it a
    page that is not full is the last, so a service that gives smaller pages than it was asked for
    needs it.
    """

    name: str = "page"
    start: int = 1
    offsets: bool = False
    total: str = ""

    def first(self) -> dict[str, str]:
        return {**super().first(), self.name: str(self.start)}

    def after(
        self,
        answer: Answer,
        content: Any,
        found: Sequence[Any],
        step: tuple[str, Mapping[str, str]],
    ) -> tuple[str, Mapping[str, str]] | None:
        path, query = step
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
    """Each answer names the next page by a cursor. ``at``: where; ``name``: how it is sent."""

    at: str
    name: str = "cursor"

    def after(
        self,
        answer: Answer,
        content: Any,
        found: Sequence[Any],
        step: tuple[str, Mapping[str, str]],
    ) -> tuple[str, Mapping[str, str]] | None:
        cursor = at(content, self.at)
        if cursor is None or cursor == "":
            return None
        return step[0], {**step[1], self.name: str(cursor)}
