"""Paging: the ways in which REST services return a long list page by page."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urljoin

from eventsync.errors import ConfigError, RecordError, shown
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.path import at
from eventsync.stores.rest.service import Service
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
    ``max_pages``: how many pages a list may have; the read of a longer list fails.
    """

    items: str = ""
    size: int = 100
    size_name: str = "per_page"
    max_pages: int = 10_000

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("max_pages", self.max_pages)):
            if value < 1:
                raise ConfigError(f"{type(self).__name__}({name}={value!r}): expected 1 or more")

    def walk(
        self,
        service: Service,
        path: str,
        query: Mapping[str, str],
        *,
        alone: bool = False,
        name: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages of the list at ``path``.

        An item that is not an object is replaced by an ``Unreadable``. ``alone``: the list is one
        of several, in an object of its own; if that is gone, only this list cannot be read.
        ``name``: a function that returns what identifies an object, to recognize a page that comes
        again with other values in its objects.

        Raises what ``Service.request`` raises, and ``RecordError`` for an answer without a list and
        for a list that does not end: a list that breaks off must not look like a complete one.
        """
        what = f"GET {service.url}/{path.lstrip('/')}"
        requests, pages = _Seen(), _Seen()
        request: PageRequest | None = path, {**query, **self.first()}
        while request is not None:
            if not requests.add((request[0], sorted(request[1].items()))):
                raise RecordError(
                    f"{what}: the pages of the list go round in circles: page {len(requests)} "
                    "leads back to a page that was read before; nothing was taken for deleted",
                    hint="correct the paging of the service, or the description of it (pages=)",
                )
            if len(requests) > self.max_pages:
                raise RecordError(
                    f"{what}: the list has more than {self.max_pages} pages; nothing was taken for "
                    "deleted",
                    hint="if the list is that long, raise max_pages, as in "
                    f"{type(self).__name__}(max_pages={self.max_pages * 10}), or the size of a "
                    "page; otherwise correct the paging of the service",
                )
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
            if found and not pages.add([_named(item, name) for item in found]):
                raise RecordError(
                    f"{what}: page {len(requests)} of the list has the same objects as an earlier "
                    "page; nothing was taken for deleted",
                    hint="the service ignores the parameters of the paging, or repeats itself: "
                    "correct the description of its paging (pages=)",
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


class _Seen:
    """The values that were met during a walk; of each, only a digest of fixed size is kept."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, value: Any) -> bool:
        """Add a value. Return false if it was met before."""
        known = len(self._digests)
        text = repr(value).encode("utf-8", "surrogatepass")
        self._digests.add(hashlib.blake2b(text, digest_size=16).digest())
        return len(self._digests) > known


def _named(item: Any, name: Callable[[dict[str, Any]], Any] | None) -> Any:
    """Return what identifies an item of a list: its name, or all of it."""
    if name is None or not isinstance(item, dict) or isinstance(item, Unreadable):
        return item
    try:
        named = name(item)
    except Exception:  # whoever reads the object meets the same failure, and reports it
        return item
    return item if named is None else named


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
