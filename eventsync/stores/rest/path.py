"""Places in a JSON document: how a value at a path is read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from eventsync.errors import RejectedError
from eventsync.stores.rest.unreadable import Unreadable

__all__ = ["ABSENT", "Place", "at", "member", "place", "put"]


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""Stands for the value at a path that is not in the document."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a field's value in a document, for a place that no path can describe.

    ``read``: takes the document and returns the value as JSON, or ``ABSENT``. ``write``: takes the
    body of a request and the value, and puts the value into the body.
    """

    read: Callable[[dict[str, Any]], Any]
    write: Callable[[dict[str, Any], Any], None]


def at(document: Any, path: str) -> Any:
    """Return the value at a path, as in ``fields.status``; ``None`` if the path does not exist.

    Raises ``RecordError`` if an object on the path is unreadable.
    """
    found = _look(document, path)
    return None if found is ABSENT else found


def member(document: dict[str, Any], name: str) -> Any:
    """Return a member by its name, points included; ``ABSENT`` without one."""
    if isinstance(document, Unreadable):
        raise document.error
    return _readable(document.get(name, ABSENT))


def place(path: str) -> Place:
    """Return the place of a path, as in ``fields.status.name``."""
    return Place(
        lambda document: _readable(_look(document, path)),
        lambda body, value: put(body, path, value),
    )


def put(body: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a path, creating the objects on the way. Raises ``RejectedError``."""
    *parents, last = path.split(".")
    for name in parents:
        inner = body.get(name)
        if inner is None:
            inner = body[name] = {}
        if not isinstance(inner, dict):
            raise RejectedError(
                f"{path}: no object at {name!r}, but {type(inner).__name__}; a value cannot be "
                "put into it"
            )
        body = inner
    body[last] = value


def _readable(value: Any) -> Any:
    """Return a value, or raise the error of an unreadable object in it, at any depth."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Unreadable):
            raise part.error
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return value


def _look(document: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        if isinstance(document, Unreadable):
            raise document.error
        if not isinstance(document, dict) or name not in document:
            return ABSENT
        document = document[name]
    if isinstance(document, Unreadable):
        raise document.error
    return document
