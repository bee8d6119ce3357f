"""The slot: where the JSON objects of a tracker hold a record field, and how it is converted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Slot", "day", "text", "utc"]


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """The place of one field in the JSON objects of a tracker, and the conversion of its value.

    ``at``: the path from which the value is read, for example ``fields.status.name``. ``to``: the
    path to which the value is written; ``None``: the path ``at``; empty: the value is not written.
    ``read``: converts a JSON value to the value of the field; ``write``: the reverse. Each may get
    ``None``. ``words``: by value of the field, the value in the tracker; any other value of the
    field is rejected. ``of``: the name of the record type to which the field refers.

    ``new``: the value that a new object always has; another value is written in a second request.
    ``fixed``: the reason why the field cannot be changed. ``kept``: the reason why its value cannot
    be removed. ``omitted``: whether a missing member means that it has no value. If false, a
    missing member says nothing about the field. ``marked``: whether the field is the text that ends
    with the marker of the record.
    """

    at: str
    to: str | None = None
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same
    words: Mapping[str, Any] | None = None
    of: str = ""
    new: Any = None
    fixed: str = ""
    kept: str = ""
    omitted: bool = False
    marked: bool = False

    @property
    def target(self) -> str:
        """The path of the value in a request body; empty if the value is not written."""
        return self.at if self.to is None else self.to


def text(value: Any) -> str:
    """Return a value as text, and the empty text for ``None``."""
    return "" if value is None else str(value)


def day(value: Any) -> str | None:
    """Return the date part of an ISO 8601 date or time; ``None`` for an empty value."""
    return str(value)[:10] if value else None


def utc(moment: dt.datetime) -> str:
    """Return a time in ISO 8601, in UTC and without fractions of a second."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
