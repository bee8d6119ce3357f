"""A short fuzz run of every parser, the inputs that once did harm, and the limits of time."""

from __future__ import annotations

import sqlite3
import time

import pytest
from fuzz.broker_parsers import sqlite_backend, use
from fuzz.parser import Parser
from fuzz.parsers import PARSERS
from fuzz.record_parsers import Thing
from fuzz.run import CORPUS, LONGEST, attempt, run

from eventsync.broker.bus import Bus
from eventsync.errors import BusError, EventSyncError, FilterError
from eventsync.records.query import Filter
from eventsync.stores.files import CsvAccessor

BY_NAME = {parser.name: parser for parser in PARSERS}
FINDS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_no_input_does_harm(parser: Parser) -> None:
    """A parser raises only eventsync's errors, in less than half a second, in bounded memory."""
    found = run(parser, max(5, round(300 * min(parser.weight, 1))), seed=1)
    assert found["wrong"] == {}


@pytest.mark.parametrize("find", FINDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_find_comes_back(find) -> None:
    """An input that once raised a foreign error, or took too long, does no more."""
    outcome, _ = attempt(BY_NAME[find.parent.name], find.read_bytes())
    assert outcome in ("accepted", "refused")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("%a%a%a%a%a%a%a%a%b", "a" * 5000),
        ("%" * 4000 + "b", "a" * 5000),
        ("%_a%_a%_a%_a%_ab", "a" * 20_000),
        ("%ab" * 50 + "c", "ab" * 10_000),
    ],
)
def test_like_takes_linear_time(pattern: str, text: str) -> None:
    """No pattern and no text make ``$like`` backtrack."""
    found = Filter.parse({"name": {"$like": pattern}}, Thing.__record__)
    start = time.thread_time()
    assert not found.matches({"name": text})
    assert time.thread_time() - start < LONGEST


def test_a_like_pattern_is_bounded() -> None:
    """A pattern that would take long to compile is refused."""
    with pytest.raises(FilterError, match="4096 is the limit"):
        Filter.parse({"name": {"$like": "_" * 5000}}, Thing.__record__)


def test_a_wide_csv_header_takes_linear_time(tmp_path) -> None:
    """A header of 300 KiB is read in less than half a second; a column named twice is told."""
    path = tmp_path / "things.csv"
    accessor = CsvAccessor(Thing, path)
    known = ",".join(accessor.view.names.values())
    wide = ",".join(f"c{number}" for number in range(50_000))
    accessor.parse(f"{known},{wide}\n")
    start = time.thread_time()
    with pytest.raises(EventSyncError, match="'c49999' twice"):
        accessor.parse(f"{known},{wide},c49999\n")
    assert time.thread_time() - start < LONGEST


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("DELETE FROM broker", "broker"),
        ("UPDATE broker SET next_id = 'x'", "broker"),
        ("UPDATE broker SET next_id = 9223372036854775807", "broker"),
        ("UPDATE broker SET epoch = x'00'", "broker"),
        ("INSERT INTO exchange VALUES ('e', x'ff', 1, 0, '{}'); "
         "INSERT INTO binding VALUES ('e', '#', 'q', '{}')", "binding"),
        ("INSERT INTO binding VALUES ('none', '#', 'q', '{}')", "binding"),
    ],
)  # fmt: skip
def test_strange_rows_in_a_broker_file_are_named(tmp_path, statement: str, table: str) -> None:
    """An error about a control table of the broker file names the file and the table."""
    path = tmp_path / "broker.db"
    sqlite_backend(path).close()
    with sqlite3.connect(path) as database:
        database.executescript(statement)
    database.close()
    backend = sqlite_backend(path)
    try:
        with pytest.raises(BusError, match=table) as raised:
            _read(backend)
        assert str(path) in str(raised.value)
    finally:
        backend.close()


@pytest.mark.parametrize("values", ["'h', 'x', '1', 1.0, 1.0", "'h', 1, '1', 'x', 'y'"])
def test_a_strange_consumer_in_a_broker_file_holds_no_messages(tmp_path, values: str) -> None:
    """Its messages are taken over, because nobody can renew such a lease."""
    path = tmp_path / "broker.db"
    with Bus(f"sqlite:///{path}") as bus:
        bus.declare("crm", ["Thing"])
        bus.send_to("crm", [b"x"])
        with sqlite3.connect(path) as database:
            database.execute(f"INSERT INTO consumer VALUES (9, {values}, 99)")
            database.execute("UPDATE delivery SET owner = 9")
        database.close()
        sqlite_backend(path).reclaim()
        assert bus.state("eventsync.crm").ready == 1


def _read(backend) -> None:
    use(backend.load_routing())
    backend.reclaim()


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "'=1", "''=1", "'a", "'", "", "a=1", "\\N"]
)
def test_formulas_are_escaped_and_read_back(tmp_path, name: str) -> None:
    """With ``formulas=False`` no cell of text begins like a formula, and every text survives."""
    path = tmp_path / "things.csv"
    accessor = CsvAccessor(Thing, path, formulas=False)
    accessor.ensure()
    accessor.add(Thing(id=1, name=name, number=-5))
    again = CsvAccessor(Thing, path, formulas=False).get("1")
    assert again is not None
    assert (again.name, again.number) == (name, -5)
    cells = next(iter(accessor.parse(path.read_bytes().decode()).segments.values())).data
    assert cells is not None
    assert cells["name"][:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert cells["number"] == "-5"
