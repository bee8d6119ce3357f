"""The benchmarks: the raw side writes what it says, tables and pages are as they are meant."""

from __future__ import annotations

import json
import random
import time
import xml.etree.ElementTree as ET
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from benchmarks import latency, limit, plot, run, soak, table
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, row, rows
from benchmarks.database import STORES, emptied, running_store
from benchmarks.deployment import table_of
from benchmarks.limit.raw import stamped
from benchmarks.load import Customers
from benchmarks.measurement import MEASUREMENTS, measurement
from benchmarks.passage import passed
from benchmarks.sender import Sender
from benchmarks.shapes import Deletes, Patches, Shaped
from benchmarks.table import Column

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture(params=STORES)
def running(request, tmp_path):
    """A kind of store by its name, and the URL of one that runs."""
    with running_store(request.param, tmp_path) as url:
        yield request.param, url


def held(store, url):
    """The email of each customer in a store, by its id."""
    if store == "redis":
        with redis.Redis.from_url(url, decode_responses=True) as client:
            keys = client.keys("Customer:*")
            return {int(key.partition(":")[2]): client.hget(key, "email") for key in keys}
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = dict(connection.exec_driver_sql("SELECT id, email FROM customer").fetchall())
    engine.dispose()
    return found


def test_raw_ways_write_the_newest(running):
    """Each way of a plain driver leaves the last row of each record; those that look at versions
    let no older one in."""
    store, url = running
    made = rows(300, 1)
    want = {one["id"]: one["email"] for one in made}
    late = [one | {"email": "late@example.org"} for one in made]
    # Of each record the first, which is older than what was written last, or as old.
    older = list({one[0]["id"]: one for one in reversed(stamped(late))}.values())
    with limit.opened(store, url, Customer) as raw:
        for way, hows in raw.ways.items():
            for how in hows:
                limit.rate(raw, made, way=way, how=how, batch=70)
                assert held(store, url) == want, (way, how)
                if way is not limit.Way.PLAIN:
                    getattr(raw, how)(way)(older)
                    assert held(store, url) == want, (way, how)


def test_shapes_are_written_raw_as_by_eventsync(tmp_path):
    """psycopg deletes and patches the same rows, and leaves the same versions."""
    with running_store("postgres", tmp_path) as url:
        for shape, left in ((Deletes(events=20), 0), (Patches(events=20), 20)):
            raw = Shaped(emptied(url), shape.type)
            limit.rate(
                raw,
                list(shape.rows()),
                way=limit.Way.TABLES,
                how=shape.hows[0],
                batch=7,
                before=list(shape.rows_before()),
            )
            name = table_of(shape.type)
            count = f"SELECT count(*) FROM {name}"
            assert raw.connection.execute(count).fetchone() == (left,)
            if left:
                query = f"SELECT visits, balance FROM {name} WHERE id = 19"
                assert raw.connection.execute(query).fetchone() == (57, Decimal("4.75"))
            versions = "SELECT count(*) FROM eventsync_version WHERE get_byte(stamp, 15) >= 20"
            assert raw.connection.execute(versions).fetchone() == (20,)
            raw.close()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_passage_counts_every_event(waiting, tmp_path):
    """All events of a load are applied or dead letters, whoever of the workers had them."""
    with running_broker("embedded") as broker:
        passage = passed(
            Customers(events=600, poison=3, chunk=50),
            broker,
            f"sqlite:///{tmp_path}/crm.db",
            workers=2 if waiting else 1,
            waiting=waiting,
            metrics=not waiting,
        )
    assert sum(passage.outcomes.values()) == 600
    assert passage.dead == passage.outcomes["rejected"] == 3
    assert passage.rate > 0
    assert passage.cpu > 0


def test_a_late_event_counts_from_when_it_was_due():
    """A slow call delays the schedule of nothing: what became due meanwhile goes in the next."""
    calls = []

    class Slow(Sender):
        def send(self, rows):
            calls.append(len(rows))
            time.sleep(0.05)

    made = [row(random.Random(1), number) for number in range(40)]
    due, committed = latency.paced(Slow(), made, 200)
    times = [due[number] for number in range(40)]
    assert [round(late - first, 6) for first, late in pairwise(times)] == [0.005] * 39
    assert calls[0] < max(calls)
    assert max(calls) >= 5
    assert committed[39] - due[39] >= 0.05


def test_percentiles_are_of_the_sorted():
    """The value that so many of all do not exceed, in milliseconds."""
    seconds = [number / 1000 for number in range(100, 0, -1)]
    assert [latency.percentile(seconds, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]


def test_growth_is_that_of_the_line():
    """A steady leak is told as it is, whatever lies under it."""
    assert soak.growth([(at, 80 + at / 1800) for at in range(0, 1200, 5)]) == pytest.approx(2.0)


COLUMNS = (Column("name", "name"), Column("rate", "per s"), Column("ratio", "ratio", 2))
ROWS = [{"name": "a", "rate": 1234567, "ratio": 0.5}, {"name": "bcd", "rate": 12, "ratio": None}]


def test_tables():
    """Numbers stand to the right with their digits, and what is missing is a dash."""
    assert table.text(COLUMNS, ROWS).splitlines() == [
        "name      per s  ratio",
        "a     1,234,567   0.50",
        "bcd          12      -",
    ]
    assert table.markdown(COLUMNS, ROWS).splitlines() == [
        "| name | per s | ratio |",
        "| --- | ---: | ---: |",
        "| a | 1,234,567 | 0.50 |",
        "| bcd | 12 | - |",
    ]


def test_pictures_are_small_and_well_formed():
    """Bars are as long as their values, also by their logarithm; names are no markup."""
    panels = [
        plot.Bars("<b> & c", {"one": {"x": 10.0, "y": 5.0}, "two": {"x": 0.0}}, target=8.0),
        plot.Bars("logs", {"one": {"": 1.0}, "two": {"": 1000.0}}, logarithmic=True),
        plot.Lines("lines", {"w": [(0, 80.0), (20, 90.0)]}, "minutes"),
    ]
    text = plot.svg(panels)
    assert len(text) < 6000
    space = "{http://www.w3.org/2000/svg}"
    drawn = ET.fromstring(text)
    bars = [one for one in drawn.iter(f"{space}rect") if one.get("height") == "11"]
    widths = [float(one.get("width")) for one in bars]
    most = widths[0]
    assert widths == pytest.approx([most, most / 2, 0, most / 4, most], abs=0.1)
    assert "<b> & c" in [one.text for one in drawn.iter(f"{space}text")]


def test_the_page_has_a_place_for_each_measurement():
    """What is measured can be put into the documentation, between marks, again and again."""
    page = DOCS.read_text(encoding="utf-8")
    for name in MEASUREMENTS:
        once = run.put(page, name, "| figures |")
        assert f"<!-- {name}: begin -->\n| figures |\n<!-- {name}: end -->" in once
        assert run.put(once, name, "| others |") == run.put(page, name, "| others |")
    with pytest.raises(ValueError, match="no marks"):
        run.put(page, "nothing", "")


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_alike(name):
    """Each has a small scale and a whole one, columns, and a picture or none."""
    one = measurement(name)
    assert isinstance(one.QUICK, one.Scale)
    assert one.Scale() != one.QUICK
    assert len({column.key for column in one.COLUMNS}) == len(one.COLUMNS)
    assert callable(one.measure)
    assert callable(one.panels)


@pytest.mark.slow
def test_events_are_seen_by_every_way_in():
    """Each way of sending at a pace brings all its events to PostgreSQL, which tells of them."""
    scale = latency.Scale(seconds=((100, 0.2),), brokers=("redis-always",), edit_paces=(100,))
    told = []
    found = latency.measure(told.append, scale)
    assert told == found
    assert [one["way"] for one in found] == ["plain clients", "publish", "edit", "edit, relay"]
    for one in found:
        assert one["events"] == 20
        assert 0 < one["due_p50_ms"] <= one["due_p99_ms"] <= one["due_max_ms"]
        assert one["p99_ms"] <= one["due_p99_ms"]
    relayed = found[-1]
    assert relayed["due_p50_ms"] > found[1]["due_p50_ms"]


@pytest.mark.slow
def test_workers_are_watched_while_they_are_kept_busy():
    """What each worker uses is sampled, and nothing is left of what was published."""
    scale = soak.Scale(minutes=0.05, every=0.2)
    found = soak.measure(lambda row: None, scale)
    assert [one["worker"] for one in found] == [1, 2]
    for one in found:
        assert one["left"] == 0
        assert one["events"] == pytest.approx(1500, rel=0.1)
        assert 20 < one["memory_mib"] < 400
        assert one["files"] >= 3
        assert one["threads"] >= 1
        assert len(one["samples"]) > 5


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    """One command measures, keeps the results, and puts them into the documentation later on."""
    (tmp_path / "benchmarks.md").write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(run, "_DOCS", tmp_path)
    results = tmp_path / "results.json"
    assert run.main(["--only", "start", "--quick", "--json", str(results)]) == 0
    assert json.loads(results.read_text())["start"]["rows"][0]["way"] == "import eventsync"
    assert run.main(["--read", str(results), "--docs"]) == 0
    assert "import eventsync" in capsys.readouterr().out
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| import eventsync |" in page
    assert "(benchmarks/start.svg)" in page
    assert (tmp_path / "benchmarks" / "start.svg").exists()
