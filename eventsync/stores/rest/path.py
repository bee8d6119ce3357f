"""Places in a JSON document: how a field's value is read there and written.

It knows nothing of fields, or of what is in the document beside.
"""

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
"""In place of a value: the document says nothing there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field's value is in a document, if a path cannot say it.

    ``read`` gets the document and gives the value as JSON, or ``ABSENT``. ``write`` gets the body
    that is about to be sent, and the value, and puts it there.
    """

    read: Callable[[dict[str, Any]], Any]
    write: Callable[[dict[str, Any], Any], None]


def at(document: Any, path: str) -> Any:
    """What is at a path of names with points between; ``None`` if nothing is there."""
    found = _look(document, path)
    return None if found is ABSENT else found


def place(path: str) -> Place:
    """The place that a path names: ``fields.status.name``."""
    return Place(lambda document: _look(document, path), lambda body, held: put(body, path, held))


def put(body: dict[str, Any], path: str, held: Any) -> None:
    """Put a value at a path, making the objects on the way. Raises ``RejectedError``."""
    *way, last = path.split(".")
    for name in way:
        inner = body.get(name)
        if inner is None:
            inner = body[name] = {}
        if not isinstance(inner, dict):
            raise RejectedError(f"{path}: there is no object at {name!r} to put a value into")
        body = inner
    body[last] = held


def _look(document: Any, path: str) -> Any:
    if not path:
        return document
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return ABSENT
        document = document[name]
    return document
