"""The part of the conformance suite about the six methods of an accessor, queries and values."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from eventsync.errors import AlreadyExistsError, NotFoundError, RejectedError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.record_type import same
from eventsync.testing.harness import Contact, Harness, Item, Visit

__all__ = ["CrudContract"]

_EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))

# By field name: the type of the field, and values of this type. A store that can hold the type must
# return each of these values unchanged.
_VALUES: dict[str, tuple[Any, list[Any]]] = {
    "flag": (bool, [True, False]),
    "number": (int, [0, -1, 2**31, -(2**53) - 1, 2**63 - 1, -(2**63)]),
    "ratio": (float, [0.0, 0.1, -1e300, 5e-324, 1 / 3]),
    "price": (
        Decimal,
        [Decimal(text) for text in ("0", "12.50", "-0.001", "1E+3", "123456789.01")],
    ),
    "text": (str, ["", "x", "Zoë Müller", "日本語 🎉", "a,b;c\t'd' \"e\" \\N %s 100% $1 [x] # no"]),
    "blob": (bytes, [b"", b"\x00\xff", b"text"]),
    "day": (dt.date, [dt.date(1, 1, 1), dt.date(2024, 2, 29), dt.date(9999, 12, 31)]),
    "clock": (dt.time, [dt.time(0), dt.time(23, 59, 59, 999999)]),
    "moment": (dt.datetime, [dt.datetime(2026, 1, 2, 3, 4, 5), dt.datetime(1, 1, 1, 0, 0, 0, 1)]),
    "instant": (
        dt.datetime,
        [dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), dt.datetime(2026, 6, 1, tzinfo=_EAST)],
    ),
    "token": (UUID, [UUID(int=0), UUID("12345678-9abc-def0-1234-56789abcdef0")]),
    "tags": (list[str], [[], ["a", "", "é\n"], ["x"] * 50]),
    "prices": (list[Decimal], [[], [Decimal("1.10"), Decimal("-2")]]),
    "nested": (dict, [{}, {"a": [1, {"b": None}], "": True, "é": 1.5}]),
}
_ODD_TEXT = [
    " ",
    " x ",
    "\n",
    "a\r\nb\rc\n",
    "\t",
    "\x00",
    "\x1f\x7f",
    "\u2028\u0085",
    "\ufeff",
    "\\",
]
# By field name: values that a store may refuse. If it accepts a value, it must return it unchanged.
_EXTREME: dict[str, list[Any]] = {
    "number": [2**64, -(10**40)],
    "ratio": [float("inf"), float("-inf"), -0.0],
    "price": [Decimal("0.1234567890123456789012345678901234567890"), Decimal("1E-40")],
    "nested": [{"d": Decimal("1.5")}, {"d": [dt.date(2026, 1, 1)]}, {"n": 2**70}],
}
_ODD_KEYS = ["a/b", "..", ".hidden", "CON", "Ada", "ada", "ADA", "a b", "%41", "é", "*?<>|\"'", "-"]


class CrudContract(Harness):
    """Tests of create, read, update, delete and find, and that values are stored exactly."""

    def test_accessor_round_trip(self, tmp_path: Path) -> None:
        """``get``, ``find`` and ``count`` see an added record, and no longer see a removed one."""
        accessor = self.store(tmp_path, Item).accessor(Item)
        record = Item(id=1, name="Lamp", amount=3)
        accessor.add(record)
        found = accessor.get("1")
        assert found == record
        assert not found.is_dirty
        assert list(accessor.find(Query.parse(accessor.type))) == [record]
        assert accessor.count(Query.parse(accessor.type)) == 1
        accessor.remove("1")
        accessor.remove("1")  # idempotent
        assert accessor.get("1") is None
        assert accessor.count(Query.parse(accessor.type)) == 0

    def test_accessor_updates_what_changed(self, tmp_path: Path) -> None:
        """``update`` writes the dirty fields, and another process reads them."""
        accessor = self.store(tmp_path, Item).accessor(Item)
        accessor.add(Item(id=1, name="Lamp", amount=3, note="red"))
        record = accessor.get("1")
        assert record is not None
        record["amount"], record["note"] = 4, None
        accessor.update(record)
        other = self.store(tmp_path, Item)
        assert self.rows(other, Item) == {"1": {"id": 1, "name": "Lamp", "amount": 4, "note": None}}

    def test_missing_record(self, tmp_path: Path) -> None:
        """``get`` returns ``None`` for a missing record, and ``find`` does not return it."""
        accessor = self.store(tmp_path, Item).accessor(Item)
        assert accessor.get("7") is None
        assert list(accessor.find(Query.parse(accessor.type))) == []

    def test_conversions_are_inverse(self, tmp_path: Path) -> None:
        """``data_to_record`` is the inverse of ``record_to_data``."""
        accessor = self.store(tmp_path, Contact).accessor(Contact)
        record = Contact(id=5, name="Zoë", email=None, score=-2, active=False)
        back = accessor.data_to_record(accessor.record_to_data(record))
        assert back.raw() == record.raw()

    def test_store_crud(self, tmp_path: Path) -> None:
        """The methods and operators of the store work, and raise the documented errors."""
        store = self.store(tmp_path, Item)
        store += Item(id=1, name="Lamp")
        with pytest.raises(AlreadyExistsError):
            store.add(Item(id=1, name="Other"))
        lamp = store[Item, 1]
        lamp.name = "Torch"
        store.update(lamp)
        assert store.get(Item, 1) == lamp
        assert lamp in store
        store |= Item(id=2, name="Chair")
        with pytest.raises(NotFoundError):
            store.update(Item(id=3, name="Nothing"))
        assert store.count(Item) == 2
        del store[Item, 1]
        with pytest.raises(NotFoundError):
            store.remove(lamp)
        assert store.remove(record_type=Item, where={"name": "Chair"}) == 1
        assert self.rows(store, Item) == {}

    def test_several_types(self, tmp_path: Path) -> None:
        """Records of two types in one store stay apart, even with the same key."""
        store = self.store(tmp_path, Item, Contact)
        store.add([Item(id=1, name="Lamp"), Contact(id=1, name="Ada")])
        store.remove(store[Item, 1])
        assert self.rows(store, Item) == {}
        assert self.rows(store, Contact)["1"]["name"] == "Ada"

    def test_composite_keys(self, tmp_path: Path) -> None:
        """Records with a key of several fields stay apart, even if a part contains ``/``."""
        store = self.store(tmp_path, Visit)
        places = ["Paris", "a/b", "50%", "1"]
        store.add([Visit(place=p, number=n, guests=n) for p in places for n in (1, 11)])
        store.remove(store[Visit, ("a/b", 11)])
        other = self.store(tmp_path, Visit)
        assert other[Visit, ("50%", 11)].guests == 11
        assert other.count(Visit) == 7
        assert other.get(Visit, ("a/b", 11)) is None

    def test_odd_keys(self, tmp_path: Path) -> None:
        """Keys that look like paths, differ only in case or have odd characters stay apart."""
        named = Record.derive("Named", {"key": Field(type=str, key=True), "value": Field(type=int)})
        store = self.store(tmp_path, named)
        keys = [*_ODD_KEYS, "k" * self.longest_key]
        if self.odd_text:
            keys += [" ", " x", "a\nb", "\t", "\x01"]
        for number, key in enumerate(keys):
            store.add(named(key=key, value=number))
        other = self.store(tmp_path, named)
        assert {r["key"]: r["value"] for r in other.find(named)} == {
            k: n for n, k in enumerate(keys)
        }
        for number, key in enumerate(keys):
            assert other[named, key]["value"] == number
            other.remove(other[named, key])
        assert store.count(named) == 0

    def test_queries(self, tmp_path: Path) -> None:
        """``find`` and ``count`` give the same result as the same query on records in memory."""
        rng = random.Random(5)
        names = ["Ada", "ada", "Zoë", "", "Bob", "Bob%", "B_b"]
        records = [
            Contact(
                id=number,
                name=rng.choice(names),
                email=rng.choice([None, "", "x@y", "X@Y"]),
                score=rng.randrange(-3, 4),
                active=rng.random() < 0.5,
            )
            for number in range(40)
        ]
        store = self.store(tmp_path, Contact)
        store.add(records)
        accessor = store.accessor(Contact)
        conditions: list[dict[str, Any]] = [
            {},
            {"id": 7},
            {"score": {"$gt": 0}},
            {"score": {"$lte": -1}, "active": True},
            {"name": {"$ne": "Bob"}},
            {"name": {"$in": ["Ada", "Zoë"]}},
            {"name": {"$nin": ["Ada", ""]}},
            {"name": {"$like": "B\\_b%"}},
            {"name": {"$like": "b%"}},
            {"name": {"$re": "^[AZ]"}},
            {"email": None},
            {"email": {"$exists": True}},
            {"email": {"$ne": "x@y"}},
            {"score": {"$mod": [2, 1]}},
            {"name": {"$len": {"$gt": 3}}},
            {"$or": [{"score": 3}, {"email": ""}]},
            {"$not": {"$and": [{"active": True}, {"score": {"$lt": 2}}]}},
            {"$nor": [{"email": None}, {"name": "Ada"}]},
        ]
        slices: list[dict[str, Any]] = [
            {},
            {"sort": ["-score", "name", "id"]},
            {"sort": ["email", "-id"], "limit": 5, "skip": 2},
            {"sort": ["name", "id"], "skip": 30},
            {"sort": ["id"], "limit": 0},
        ]
        for where in conditions:
            for slice in slices:
                query = Query.parse(accessor.type, where, **slice)
                wanted = list(query.select(records))
                found = list(accessor.find(query))
                if not slice:
                    found.sort(key=lambda record: record["id"])
                assert [r["id"] for r in found] == [r["id"] for r in wanted], (where, slice)
            unsliced = Query.parse(accessor.type, where)
            assert accessor.count(unsliced) == len(list(unsliced.select(records))), where

    def test_values(self, tmp_path: Path) -> None:
        """Every value that the store can hold reads back unchanged, and so does ``None``."""
        fields: dict[str, Any] = {"id": Field(type=int, key=True)}
        for name, (kind, _) in _VALUES.items():
            if getattr(kind, "__origin__", kind) in self.holds:
                fields[name] = Field(type=kind | None)
        held_type = Record.derive("Values", fields)
        samples = {name: _VALUES[name][1] for name in fields if name != "id"}
        if self.odd_text and "text" in samples:
            samples["text"] = [*samples["text"], *_ODD_TEXT]
        records = [held_type(id=0)]
        for number in range(1, 1 + max(map(len, samples.values()))):
            picked = {name: values[number % len(values)] for name, values in samples.items()}
            records.append(held_type(id=number, **picked))
        store = self.store(tmp_path, held_type)
        store.add(records)
        other = self.store(tmp_path, held_type)
        for record in records:
            held = other[held_type, record["id"]].raw()
            for name, value in record.raw().items():
                assert same(held[name], value), (name, value)
        self.assert_no_edits(other)

    def test_extreme_values(self, tmp_path: Path) -> None:
        """An extreme value reads back unchanged or is refused with ``RejectedError``."""
        number = 0
        for name, values in _EXTREME.items():
            kind = _VALUES[name][0]
            if kind not in self.holds:
                continue
            fields = {"id": Field(type=int, key=True), name: Field(type=kind)}
            extreme = Record.derive(f"Extreme{name}", fields)
            store = self.store(tmp_path, extreme)
            for value in values:
                number += 1
                record = extreme(id=number, **{name: value})
                try:
                    store.add(record)
                except RejectedError:
                    assert store.get(extreme, number) is None
                    continue
                assert same(store[extreme, number][name], value), value

    def test_update_keeps_the_rest(self, tmp_path: Path) -> None:
        """An update of one field leaves the other fields unchanged."""
        store = self.store(tmp_path, Contact)
        store.add(Contact(id=1, name="Ada", email="a@b", score=4))
        other = self.store(tmp_path, Contact)
        record = other[Contact, 1]
        record.score = 5
        other.update(record)
        late = store[Contact, 1]
        assert (late.name, late.email, late.score) == ("Ada", "a@b", 5)
