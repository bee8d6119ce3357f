"""Places in a JSON document: how a value at a path is read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from eventsync.errors import RejectedError

__all__ = ["ABSENT", "Place", "at", "place", "put"]


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
    """Return the value at a path, as in ``fields.status``; ``None`` if the path does not exist."""
    found = _look(document, path)
    return None if found is ABSENT else found


def place(path: str) -> Place:
    """Return the place of a path, as in ``fields.status.name``."""
    return Place(lambda document: _look(document, path), lambda body, value: put(body, path, value))


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


def _look(document: Any, path: str) -> Any:
    if not path:
        return document
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return ABSENT
        document = document[name]
    return document
