"""The labels of a Roundup tracker, called keywords in Roundup."""

from __future__ import annotations

from typing import TypeVar

from eventsync.records.record import Record
from eventsync.stores.trackers.record import Label
from eventsync.stores.trackers.roundup.item import NamedItems, resource_of
from eventsync.stores.trackers.slot import Slot

__all__ = ["RoundupLabels"]

R = TypeVar("R", bound=Record)


class RoundupLabels(NamedItems[R]):
    """Labels: keywords, which have only a name. Removing a record retires the keyword."""

    shape = Label
    item_class = "keyword"
    fields = "name"
    where = resource_of("keyword")
    keys = (Slot(at="name"),)
