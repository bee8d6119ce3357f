"""The versions of Debezium's changes: they follow the log, and snapshots are older."""

from __future__ import annotations

import itertools

import pytest
from envelope.debezium_events import (
    KEY,
    TIME,
    event,
    key_text,
    mysql,
    oracle,
    recorded,
    sqlserver,
)

from eventsync.envelope.debezium import DebeziumReader, from_debezium, version_of
from eventsync.errors import ConfigError, EnvelopeError


def version(found):
    return from_debezium(found, KEY, key_text=key_text).version


def postgres(lsn, **source):
    return event("postgresql", lsn=lsn, **source)


RS = "0x000082.0000d1cf"


@pytest.mark.parametrize(
    "log",
    [
        # MySQL and MariaDB: file, position, row. Files beyond the 16th, and beyond 999999.
        [mysql(4, row=0), mysql(4, row=1), mysql(900), mysql(4, file=4), mysql(4, file=5)],
        [mysql(900, file=15), mysql(4, file=16), mysql(4, file=17)],
        [mysql(4, file=999_999), mysql(4, file=1_000_000)],
        [mysql(2**32 - 9), mysql(4, file=4)],
        # SQL Server: the first part of the position grows, too.
        [
            sqlserver("00000027:ffffffff:ffff", "00000028:00000001:0001"),
            sqlserver("00000028:00000002:0001", "00000028:00000002:0003"),
            sqlserver("00000028:00000002:0002", "00000028:00000002:0003"),
        ],
        # Oracle: changes of one system change number, by their places in the redo log.
        [
            oracle("2122185", rs_id=f"{RS}.0010", ssn=0),
            oracle("2122185", rs_id=f"{RS}.0010", ssn=1),
            oracle("2122185", rs_id=f"{RS}.01f0", ssn=0),
            oracle("2122185", rs_id="0x000082.0000d1d0.0010", ssn=0),
            oracle("2122186", rs_id="0x000082.0000d1d0.0020", ssn=0),
        ],
        # Oracle without places: the order in which the connector read them.
        [oracle("2122185", read=TIME + n) for n in (1, 2, 3)],
        [postgres(2**40), postgres(2**40 + 8), postgres(2**48 + 8)],
    ],
    ids=[
        "mysql",
        "16 files",
        "a million files",
        "4 GiB",
        "sqlserver",
        "oracle",
        "read",
        "postgres",
    ],
)
def test_changes_of_one_instant_keep_the_order_of_the_log(log):
    versions = [version(found) for found in log]
    assert versions == sorted(set(versions))
    reader = DebeziumReader(key_text=key_text)
    assert [reader.read(found, KEY).version for found in log] == versions


# -- times that go back ----------------------------------------------------------------------------

# A transaction changes a row in two statements, seconds 0 and 8. Another one waits for the row from
# second 5 on and commits last.
WAITING = [mysql(100, 0), mysql(300, 8), mysql(500, 5)]
GTID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"


@pytest.mark.parametrize(
    "log",
    [
        WAITING,
        [mysql(p, s, gtid=f"{GTID}:{n}") for n, (p, s) in enumerate([(9, 8), (5, 3), (7, 1)])],
        [mysql(p, s, gtid=f"0-1-{n}") for n, (p, s) in enumerate([(9, 8), (5, 3), (7, 1)])],
        [mysql(9, 8, gtid=f"{GTID}:700"), mysql(12, 3, gtid="another:1")],  # another origin
        [mysql(900, 8), mysql(4, 5, file=4), mysql(400, 2, file=4)],
        [mysql(4, 8, row=0), mysql(4, 8, row=1), mysql(9, 1)],
        [postgres(10, ts_ms=TIME), postgres(20, ts_ms=TIME - 3000)],  # a clock was set back
        [
            oracle("7", commit_scn="9", rs_id=f"{RS}.0010"),
            oracle("12", commit_scn="20", rs_id=f"{RS}.0020", ts_ms=TIME - 9000),
        ],
    ],
    ids=["waiting", "gtid", "mariadb", "origin", "next file", "rows", "clock", "oracle"],
)
def test_versions_grow_although_times_go_back(log):
    """The time in the log is the statement's; a later change of a record may carry an earlier."""
    reader = DebeziumReader(key_text=key_text)
    versions = [reader.read(found, KEY).version for found in log]
    assert versions == sorted(set(versions))


def test_a_raised_version_is_not_later_than_the_log():
    """A change gets the time of a change before it, which was before its own commit."""
    reader = DebeziumReader(key_text=key_text)
    versions = [reader.read(found, KEY).version for found in WAITING]
    assert [v.millis - TIME for v in versions] == [0, 8000, 8000]


def test_changes_that_are_read_again_do_not_win():
    """A connector that restarts sends changes again. They are no later than at first."""
    reader = DebeziumReader(key_text=key_text)
    first = [reader.read(found, KEY).version for found in WAITING]
    again = [reader.read(found, KEY).version for found in WAITING]
    assert all(later <= earlier for later, earlier in zip(again, first, strict=True))
    assert reader.read(mysql(700, 6), KEY).version > max(first)


def test_a_recorded_log_keeps_its_order():
    """MariaDB logged the last of three updates with the time of the first."""
    reader = DebeziumReader(key_text=key_text, trust_nulls=True)
    read = [(value, reader.read(value, key)) for value, key in recorded("binlog")]
    changes = [(value["source"], change) for value, change in read if change and change.key == "1"]
    times = [source["ts_ms"] - changes[0][0]["ts_ms"] for source, _ in changes]
    assert times == [0, 1000, 3000, 1000, 3000]
    versions = [change.version for _, change in changes]
    assert versions == sorted(set(versions))
    assert [change.data["name"] for _, change in changes] == ["Ann", "A1", "A2", "B", "B"]
    skipped = {"schema-change": 8, "transaction": 8, "tombstone": 1}
    assert reader.skipped == skipped


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_reader_goes_on_from_its_mark(place):
    """A reader made from the mark gives the rest of the log the same versions."""
    log = [*WAITING, mysql(700, 1)]
    whole = DebeziumReader(key_text=key_text)
    marks, versions = [whole.mark], []
    for found in log:
        versions.append(whole.read(found, KEY).version)
        marks.append(whole.mark)
    resumed = DebeziumReader(key_text=key_text, mark=marks[place])
    assert [resumed.read(found, KEY).version for found in log[place:]] == versions[place:]


def test_the_logs_of_a_stream_do_not_mix():
    """A topic may hold the changes of several shards, or of databases with logs of their own."""
    ahead = [mysql(900, 60, name="one"), sqlserver("2:2:2", "2:2:3", db="one", ts_ms=TIME + 60_000)]
    behind = [mysql(950, 1, name="two"), sqlserver("3:2:2", "3:2:3", db="two", ts_ms=TIME + 1000)]
    reader = DebeziumReader(key_text=key_text)
    for one, two in zip(ahead, behind, strict=True):
        assert reader.read(one, KEY).version.millis == TIME + 60_000
        assert reader.read(two, KEY).version.millis == TIME + 1000
    resumed = DebeziumReader(key_text=key_text, mark=reader.mark)
    assert resumed.read(mysql(990, 0, name="two"), KEY).version.millis == TIME + 1000


@pytest.mark.parametrize("mark", ["x", '{"a":1}', '{"a":["00",{}]}', "[]"])
def test_a_foreign_mark_is_refused(mark):
    with pytest.raises(ConfigError, match="mark"):
        DebeziumReader(key_text=key_text, mark=mark)


def test_a_version_is_not_later_than_the_reading():
    """A session may set its time to any value; the connector's clock is the limit."""
    reader = DebeziumReader(key_text=key_text)
    far = reader.read(mysql(100, 3_000_000, read=TIME + 2000), KEY).version
    assert far.millis == TIME + 2000
    assert reader.read(mysql(300, 3, read=TIME + 4000), KEY).version.millis == TIME + 3000


def test_a_failing_event_does_not_disturb_the_order():
    reader = DebeziumReader(key_text=key_text)
    reader.read(mysql(100, 8), KEY)
    with pytest.raises(EnvelopeError):
        reader.read(mysql(200, 9) | {"after": None}, KEY)
    assert reader.read(mysql(300, 2), KEY).version.millis == TIME + 8000


# -- snapshots -------------------------------------------------------------------------------------


def snapshot(found, flag="true", **source):
    found = found | {"op": "r"}
    return found | {"source": found["source"] | {"snapshot": flag} | source}


# The snapshot starts at 10:00:00.100, the table is read from 10:05:00.700 on.
BESIDE = [
    (snapshot(mysql(154), ts_ms=TIME + 300_700), mysql(400, 0)),
    (snapshot(mysql(154), "first", ts_ms=TIME + 700), mysql(400, 0)),
    (snapshot(mysql(154), "last", ts_ms=0), mysql(400, 0)),
    (snapshot(mysql(154), "incremental", ts_ms=TIME + 2000), mysql(154, 1)),
    (
        snapshot(event("mariadb", file="mariadb-bin.000001", pos=330, row=0), ts_ms=TIME + 900),
        event("mariadb", file="mariadb-bin.000001", pos=500, row=0, gtid="0-1-7", ts_ms=TIME),
    ),
    (snapshot(postgres(100), ts_ms=TIME + 60_000), postgres(200, ts_ms=TIME)),
    (
        snapshot(sqlserver(None, "00000027:00000ac0:0002"), ts_ms=TIME + 60_000),
        sqlserver("00000027:00000ac1:0001", "00000027:00000ac1:0003"),
    ),
    (
        snapshot(event("db2", change_lsn=None, commit_lsn="00000000:00000000:00000000004f1c2a")),
        event(
            "db2",
            change_lsn="00000000:00000000:00000000004f1c2b",
            commit_lsn="00000000:00000000:00000000004f1c2c",
        ),
    ),
    (snapshot(oracle("2122180", commit_scn=None), ts_ms=TIME + 5000), oracle("2122185")),
]


@pytest.mark.parametrize(("row", "change"), BESIDE)
def test_a_snapshot_row_is_older_than_the_changes_beside_it(row, change):
    """Its value was written before the snapshot, whenever its table was read."""
    assert version(row) < version(change)
    for order in itertools.permutations([row, change]):
        reader = DebeziumReader(key_text=key_text)
        versions = {id(found): reader.read(found, KEY).version for found in order}
        assert versions[id(row)] < versions[id(change)]


def test_the_age_of_snapshots_is_an_argument():
    row = snapshot(mysql(154), ts_ms=TIME + 700)
    reader = DebeziumReader(key_text=key_text, snapshot_age=60.0)
    assert reader.read(row, KEY).version.millis == TIME - 60_000
    assert version(row).millis == TIME - 86_400_000
    assert from_debezium(row, KEY, key_text=key_text, snapshot_age=1.0).version.millis < TIME
    assert version_of(row["source"], row, snapshot_age=0).millis == TIME


def test_changes_after_a_snapshot_keep_their_times():
    reader = DebeziumReader(key_text=key_text)
    reader.read(snapshot(mysql(154), ts_ms=TIME + 300_700), KEY)
    assert reader.read(mysql(400, 2), KEY).version.millis == TIME + 2000


def test_oracle_changes_have_the_time_of_their_commit():
    """Newer connectors tell it; the other time is the statement's."""
    assert version(oracle("7", commit_ts_ms=TIME + 5000)).millis == TIME + 5000


@pytest.mark.parametrize(
    "found",
    [
        event("mysql", file="bin.x", pos=4),
        event("mysql", file="bin.1", pos=None, ts_ms=None),
        event("mysql", file="bin.1", pos=[4]),
        event("mysql", file="bin.1", pos=4, gtid=7),
        event("sqlserver", change_lsn="00:zz", commit_lsn=None),
        event("oracle", scn="7", rs_id="0x0.1"),
        event("postgresql", lsn=True),
        event("other"),
    ],
)
def test_positions_that_cannot_be_read_are_refused(found):
    with pytest.raises(EnvelopeError, match="position"):
        version(found)
