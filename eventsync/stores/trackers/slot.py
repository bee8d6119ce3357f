"""The slot: the mapping of one record field to its place in the JSON objects of a tracker."""

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

    ``at``: the path where the value is read, as in ``fields.status.name``. ``to``: the path where
    it is written, if that is another; empty for a field that is only read. ``read``, ``write``:
    convert the JSON value, which may be ``None``. ``words``: the allowed values of the record, each
    with the value of the tracker; another value is rejected. ``of``: the name of the record type
    that the field refers to.

    ``new``: the value that a new object always has; another value is written in a second request.
    ``fixed``: the reason why the field cannot be changed. ``kept``: the reason why its value cannot
    be removed. ``omitted``: whether the tracker leaves out the member if it has no value. Otherwise
    a missing member says nothing of the field. ``marked``: whether the field is the text that ends
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
        """The path in the body of a request; empty if the field is only read."""
        return self.at if self.to is None else self.to


def text(value: Any) -> str:
    """Return a text, also if the tracker returns null for an empty one."""
    return "" if value is None else str(value)


def day(value: Any) -> str | None:
    """Return the day of a time or date in ISO 8601."""
    return str(value)[:10] if value else None


def utc(moment: dt.datetime) -> str:
    """Return a time in ISO 8601, in UTC and without fractions of a second."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
