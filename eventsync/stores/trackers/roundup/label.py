"""The keywords of a Roundup tracker, which are its labels."""

from __future__ import annotations

from typing import TypeVar

from eventsync.records.record import Record
from eventsync.stores.trackers.record import Label
from eventsync.stores.trackers.roundup.item import NamedItems, resource_of
from eventsync.stores.trackers.slot import Slot

__all__ = ["RoundupLabels"]

R = TypeVar("R", bound=Record)


class RoundupLabels(NamedItems[R]):
    """Keywords. They have a name and no other field. Removing a record retires the keyword."""

    shape = Label
    item_class = "keyword"
    fields = "name"
    where = resource_of("keyword")
    keys = (Slot(at="name"),)
