"""The scenario of many kinds: two databases and files, each with its own view of two record types.

Records merge as wholes (``Item``) or by their fields (``Contact``); they are published by producers
and edited through the stores. It knows nothing of faults.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from model import winners_per_field, winners_per_record

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import NotFoundError
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.files import JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.sql import SqlAccessor

__all__ = ["EDITS_STORES", "POISON", "STORES", "compose", "expected", "produce", "stores"]

EDITS_STORES = True
"""Changes come from the stores too, so producers' journals do not have all of them."""
STORES = ("left", "right", "docs")


class Item(Record):
    """Merged per record: every store holds all of it."""

    id: int = Field(key=True)
    name: str
    amount: Decimal
    day: dt.date | None = None


class Contact(Record, rule="field"):
    """Merged per field: no store but the documents holds all of it."""

    id: int = Field(key=True)
    name: str = ""
    email: str | None = None
    balance: Decimal = Decimal(0)
    active: bool = True
    city: str = ""


POISON = ("Item", {"amount": "no number"})
"""A record type, and values that no store can take for it."""


def stores(folder: Path, urls: Mapping[str, str]) -> StoreRegistry:
    """The stores below ``folder``, not opened; ``urls``: none, for all of them are files."""
    (folder / "docs").mkdir(exist_ok=True)
    left = f"sqlite:///{folder / 'left.db'}?timeout=60"
    right = f"sqlite:///{folder / 'right.db'}?timeout=60"
    return StoreRegistry(
        Store(
            "left",
            SqlAccessor(Item, left, create=True),
            SqlAccessor(
                Contact, left, create=True, view=View(only=("id", "name", "email", "active"))
            ),
        ),
        Store(
            "right",
            SqlAccessor(
                Item,
                right,
                table="article",
                create=True,
                view=View(
                    rename={"name": "title", "amount": "cents"},
                    convert={"amount": Convert(lambda v: int(v * 100), lambda v: Decimal(v) / 100)},
                ),
            ),
            SqlAccessor(
                Contact,
                right,
                table="person",
                create=True,
                view=View(
                    only=("id", "name", "balance", "city"),
                    rename={"name": "full_name"},
                    constant={"origin": "chaos"},
                ),
            ),
        ),
        Store(
            "docs",
            JsonLinesAccessor(Item, folder / "docs" / "items.jsonl"),
            JsonFolderAccessor(
                Contact, folder / "docs" / "contacts", view=View(where={"active": True})
            ),
            index=folder / "docs" / "versions.db",
        ),
    )


def compose(rng: random.Random, clock: Clock, key: int) -> Change:
    """One change of one item."""
    item = Item(
        id=key,
        name=f"Item {key} é {rng.randrange(1000)}",
        amount=Decimal(rng.randrange(10**6)) / 100,
        day=dt.date(2020, 1, 1) + dt.timedelta(days=rng.randrange(2000)),
    )
    gone = rng.random() < 0.1
    return Change(
        type="Item",
        key=str(key),
        op="delete" if gone else "put",
        version=clock.tick(),
        data=None if gone else item.raw(),
        source="chaos",
    )


def produce(
    rng: random.Random,
    registry: StoreRegistry,
    clock: Clock,
    send: Callable[[str, Sequence[Change]], None],
    *,
    count: int,
    keys: int,
) -> int:
    """Publish some items, as a producer without a store does, or edit contacts; how many."""
    if rng.random() < 0.5:
        changes = [compose(rng, clock, rng.randrange(keys)) for _ in range(min(count, 50))]
        rng.shuffle(changes)
        send("Item", changes)
        return len(changes)
    return _edit_contacts(rng, registry, min(count, 10), keys)


def _edit_contacts(rng: random.Random, registry: Any, count: int, keys: int) -> int:
    """Creations, edits, deletes and filter crossings through a store that holds a part of them."""
    store = rng.choice(list(registry))
    accessor = store.accessors["Contact"]
    for _ in range(count):
        key = rng.randrange(keys)
        held = store.get(Contact, key)
        if held is None:
            # A record that lives elsewhere is edited there; a new one may be created anywhere.
            values: dict[str, Any] = {"id": key, "name": f"Contact {rng.randrange(1000)}"}
            store.update(accessor.make(values), upsert=True)
        elif rng.random() < 0.08:
            with contextlib.suppress(NotFoundError):
                store.remove(held)
        else:
            for name, value in _some_values(rng).items():
                if name in accessor.view.names:
                    held[name] = value
            with contextlib.suppress(NotFoundError):
                store.update(held)
    return count


def _some_values(rng: random.Random) -> dict[str, Any]:
    values = {
        "name": f"Ĉiu {rng.randrange(1000)}",
        "email": rng.choice([None, f"c{rng.randrange(1000)}@example.org"]),
        "balance": Decimal(rng.randrange(10**6)) / 100,
        "active": rng.random() < 0.7,
        "city": rng.choice(["Łódź", "Paris", "東京"]),
    }
    return {name: values[name] for name in rng.sample(list(values), rng.randint(1, 3))}


def expected(history: Iterable[Change]) -> dict[type[Any], dict[str, dict[str, Any]]]:
    """What all stores together hold of each record type, whole."""
    history = list(history)
    contacts = winners_per_field(c for c in history if c.type == "Contact")
    for key, values in contacts.items():
        values["id"] = int(key)
        for name, fallback in Contact(id=0).raw().items():
            values.setdefault(name, fallback)
    return {
        Item: winners_per_record(c for c in history if c.type == "Item"),
        Contact: contacts,
    }
