"""Times of the hour that the end of summer time repeats, which Python compares by other rules."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from support.foreign import fresh_database

from eventsync.engine.store import Store
from eventsync.errors import RecordError
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor

BERLIN, PARIS = ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/Paris")
FIRST = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
SECOND = FIRST.replace(fold=1)
IN_UTC = dt.datetime(2024, 10, 27, 1, 30, tzinfo=dt.UTC)
SKIPPED = dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN)


class Shift(Record):
    began: dt.datetime = Field(key=True, zoned=True)
    ended: dt.datetime | None = Field(default=None, zoned=True)
    breaks: dict[str, dt.datetime] = Field(default_factory=dict)
    turns: list[dt.datetime] = Field(default_factory=list)


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL, a MariaDB and a Redis server."""
    with PostgresServer() as postgres, MariaServer() as maria, RedisServer() as redis:
        yield {"postgresql": postgres.url, "mariadb": maria.url, "redis": redis.url}


@pytest.fixture(params=["memory", "sqlite", "postgresql", "mariadb", "redis"])
def store(request, servers, tmp_path):
    kind = request.param
    if kind == "memory":
        accessor = MemoryAccessor(Shift)
    elif kind == "redis":
        Redis.from_url(servers["redis"]).flushall()
        accessor = RedisAccessor(Shift, servers["redis"])
    else:
        url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else fresh_database(servers[kind])
        accessor = SqlAccessor(Shift, sa.create_engine(url), create=True)
    with Store("shifts", accessor) as store:
        yield store


def test_every_store_finds_them(store):
    """``find`` takes the time in any zone, as the key, another field, or within a dict."""
    for moment in (FIRST, SECOND, SKIPPED):
        store.add(Shift(began=moment, ended=moment, breaks={"a": moment}, turns=[moment]))
    assert store.count(Shift) == 3
    for moment in (SECOND, IN_UTC, IN_UTC.astimezone(PARIS), SECOND.astimezone(dt.UTC)):
        for where in (
            {"began": moment},
            {"ended": {"$in": [moment]}},
            {"ended": {"$gte": moment, "$lte": moment}},
            {"breaks": {"$eq": {"a": moment}}},
            {"turns": {"$eq": [moment]}},
        ):
            (found,) = store.find(Shift, where)
            assert (found["began"], found["ended"]) == (IN_UTC, IN_UTC)
            assert found["breaks"] == {"a": IN_UTC}
    (found,) = store.find(Shift, {"ended": {"$lt": SECOND, "$gt": SKIPPED}})
    assert found["ended"] == FIRST.astimezone(dt.UTC)
    (found,) = store.find(Shift, {"ended": SKIPPED})
    assert found["ended"] == SKIPPED.astimezone(dt.UTC)
    assert not any(store.capture())


def test_a_key_set_again(store):
    """The key may be set to the same instant again, not to the other time of its digits."""
    store.add(Shift(began=SECOND, ended=FIRST))
    shift = store[Shift, SECOND]
    shift["began"] = SECOND
    shift["began"] = IN_UTC.astimezone(PARIS)
    with pytest.raises(RecordError, match="the key of a committed record cannot change"):
        shift["began"] = FIRST
    assert not shift.is_dirty
    shift["ended"] = SECOND
    assert shift.dirty == {"ended"}
    store.update(shift)
    assert store[Shift, IN_UTC]["ended"] == IN_UTC
    assert not any(store.capture())


zones = st.sampled_from(
    [BERLIN, PARIS, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe"), dt.UTC]
)


@given(
    st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2025, 1, 1), timezones=zones),
    st.sampled_from([0, 1]),
    zones,
)
def test_equal_instants_are_equal_values(moment, fold, zone):
    """Whatever zone a value has, it equals and sorts as its instant."""
    moment = moment.replace(fold=fold)
    one, other = Shift(began=moment), Shift(began=moment.astimezone(dt.UTC).astimezone(zone))
    assert one == other
    assert hash(one) == hash(other)
    assert one.key == other.key
    assert one["began"] - dt.datetime(2024, 1, 1, tzinfo=dt.UTC) == (
        moment.astimezone(dt.UTC) - dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    )
