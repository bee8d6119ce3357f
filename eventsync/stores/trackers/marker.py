"""Markers: HTML comments at the end of a text in a tracker that hold the key of a record.

An example is ``<!-- eventsync:Issue:A%2D1 -->`` for the key ``A-1``. Most trackers do not show the
comment to readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Object
from eventsync.stores.rest.path import at, put
from eventsync.stores.trackers.slot import Slot
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["MarkedAccessor", "marked", "quoted", "unmarked"]

R = TypeVar("R", bound=Record)
_MARKER: Final = re.compile(
    r"(?:\r?\n){0,2}<!-- eventsync:([\w.-]+):([\w.%~]+)( deleted)? -->\s*\Z", re.ASCII
)


def quoted(key: str) -> str:
    """Return a key in percent-encoding, so that no character in it can end a marker."""
    return quote(key, safe="").replace("-", "%2D")


def marked(text: str, type: str, key: str, *, deleted: bool = False) -> str:
    """Return ``text`` with the marker of a record at its end.

    ``type``: the name of the record type. ``deleted``: mark the record as deleted.
    """
    suffix = " deleted" if deleted else ""
    gap = "\n\n" if text else ""
    return f"{text}{gap}<!-- eventsync:{type}:{quoted(key)}{suffix} -->"


def unmarked(text: str, type: str) -> tuple[str, str | None, bool]:
    """Return a text without its marker, the key in the marker, and whether it says ``deleted``.

    ``type``: the name of the record type. If the text has no marker of this type, the whole text,
    ``None`` and ``False`` are returned.
    """
    found = _MARKER.search(text)
    if found is None or found[1] != type:
        return text, None, False
    return text[: found.start()], unquote(found[2]), found[3] is not None


class MarkedAccessor(TrackerAccessor[R]):
    """The base of accessors of objects that have their marker at the end of a text.

    The text is the value of the field whose slot has ``marked=True``.
    """

    def parts(self, data: Mapping[str, Any]) -> tuple[str, str | None, bool]:
        """Return what ``unmarked`` returns for the marked text of an object."""
        return unmarked(at(data, self._marked.at) or "", self.type.name)

    def marker_in(self, data: dict[str, Any]) -> str | None:
        _, key, deleted = self.parts(data)
        return None if deleted else key

    def mark(self, body: dict[str, Any], key: str) -> None:
        text = at(body, self._marked.target) or ""
        put(body, self._marked.target, marked(text, self.type.name, key))

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        text = self.parts(data)[0]
        values = super().values_in(data)
        return values | {
            name: slot.read(text)
            for name, slot in self.view_slots.items()
            if slot.marked and name in values
        }

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        if at(body, self._marked.target) is not None and self.marker_in(found.data) is not None:
            self.mark(body, key)
        return super().send(key, found, body)

    @property
    def _marked(self) -> Slot:
        return next(slot for slot in self.slots.values() if slot.marked)
