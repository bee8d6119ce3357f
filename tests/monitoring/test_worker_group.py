"""What workers tell of themselves: counted, carried to another process, exported, judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.records import Product

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import PUT
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.monitoring import catalogue, lag
from eventsync.monitoring.backlog import Look, Survey
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.exporters.prometheus import Exporter
from eventsync.monitoring.health import Health
from eventsync.monitoring.worker_group import Report, WorkerGroup
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.stores.memory import MemoryAccessor
from eventsync.worker.options import Options
from eventsync.worker.supervisor import Supervisor
from eventsync.worker.worker import Worker


class Moody(MemoryAccessor):
    """Is busy for as long as it is told to be."""

    away = False

    def ping(self):
        if self.away:
            raise StoreUnavailableError("away for the test")

    def write_rows(self, writes, removals, transaction):
        self.ping()
        super().write_rows(writes, removals, transaction)


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("crm", ["Product"])
        yield bus


@pytest.fixture
def store():
    return Store("crm", Moody(Product)).open()


def publish(bus, *rows, type="Product", age=0.0):
    """Puts of these rows, made so many seconds ago."""
    clock = Clock(now=lambda: time.time() - age)
    for row in rows:
        version = clock.tick()
        id = version[:6] + b"\x70" + os.urandom(9)
        change = Change(type=type, key=str(row["id"]), op=PUT, version=version, data=row, id=id)
        bus.publish("Product", [bus.encode(change)])


def scrape(crew, survey):
    """What is exported, as Prometheus reads it: values by name and labels' values."""
    answer = Exporter(crew, survey).answer("")
    assert answer.status == 200
    return parsed(answer.body.decode())


def parsed(text):
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def looked(bus, stores, **options):
    """A survey that has looked once."""
    survey = Survey(bus, stores, **options)
    for look in (survey.broker, *survey.outboxes.values()):
        look.once()
    return survey


def test_lag_is_counted_by_bounds():
    """Each age is counted in the first bound that it does not pass, by the id's time."""
    now = 1_700_000_000.0
    ages = [0.0, 0.5, 1.0, 1.001, 60.0, 1e6]

    def change(age):
        made = int((now - age) * 1000)
        id = made.to_bytes(6) + b"\x70" + bytes(9)
        # Its version may be much older.
        version = Version.of(min(made, 1_000_000))
        return Change(type="T", key="1", op=PUT, version=version, data={}, id=id)

    found = lag.spread(lag.times(map(change, ages)), (1.0, 60.0), now=now)
    assert found.counts == [3, 2, 1]
    assert found.sum == pytest.approx(sum(ages))
    assert lag.oldest([]) is None
    assert lag.oldest(lag.times(map(change, ages))) == pytest.approx(now - 1e6)


@pytest.mark.parametrize("id", [b"\x40" * 16, b"\x70" * 16, bytes(6) + b"\x70" + bytes(9)])
def test_lag_by_version_when_the_id_tells_no_time(id):
    """A foreign producer's id may be anything; then the version says when the change was made."""
    made = int(time.time()) - 100
    version = Version.of(made * 1000)
    change = Change(type="T", key="1", op=PUT, version=version, data={}, id=id)
    assert lag.oldest(lag.times([change])) == made


def test_a_clock_ahead_makes_no_negative_lag():
    """A change that was made after now, by its producer's clock, has no lag."""
    now = time.time()
    change = Change(type="T", key="1", op=PUT, version=Version.of(int(now * 1000) + 9), data={})
    assert lag.spread(lag.times([change]), (1.0,), now=now).sum == 0.0


def test_tally_travels_and_adds_up():
    """What is taken from one tally and merged into another is there once, and not in the first."""
    ours, theirs = Counters(), Counters()
    for tally in (ours, theirs):
        tally.add(catalogue.MESSAGES, 2, "crm")
        tally.observe(catalogue.BATCH, 10, "crm")
        tally.observe(catalogue.BATCH, 11, "crm")
    ours.merge(json.loads(json.dumps(theirs.take())))
    ours.merge(theirs.take())
    assert list(ours.totals()) == [(catalogue.MESSAGES, ("crm",), 4)]
    ((_, _, spread),) = ours.spreads()
    assert (spread.counts[:4], spread.sum) == ([0, 2, 2, 0], 42)


def test_worker_counts(bus, store):
    """A worker's counts by type and outcome, its batches and its lag are exported."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    crew = WorkerGroup(worker.tally)
    crew.expect("crm", store.accessors)
    crew.join("crm", worker.progress)
    publish(bus, {"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}, age=7.0)
    publish(bus, {"id": 3, "name": 3}, {"id": 4, "name": "d"}, type="Product")
    publish(bus, {"id": 5, "name": "e"}, type="Stranger" * 9)
    worker.drain()
    found = scrape(crew, looked(bus, [store]))
    changes = "eventsync_changes_total"
    assert found[changes, "applied", "crm", "Product"] == 3
    assert found[changes, "superseded", "crm", "Product"] == 1
    assert found[changes, "rejected", "crm", "Product"] == 1
    assert found[changes, "rejected", "crm", "other"] == 1
    assert found[changes, "held", "crm", "Product"] == 0
    assert found["eventsync_dead_letters_total", "field", "crm", "Product"] == 1
    assert found["eventsync_dead_letters_total", "unknown-type", "crm", "other"] == 1
    assert found["eventsync_messages_total", "crm"] == 6
    assert found["eventsync_batch_changes_count", "crm"] == 1
    assert found["eventsync_batch_changes_sum", "crm"] == 6
    assert found["eventsync_lag_seconds_count", "crm", "Product"] == 3
    # Two were made seven seconds before.
    assert found["eventsync_lag_seconds_bucket", "5", "crm", "Product"] == 1
    assert found["eventsync_lag_seconds_bucket", "10", "crm", "Product"] == 3
    assert 7.0 < found["eventsync_current_lag_seconds", "crm"] < 10.0
    assert found["eventsync_queue_messages", "dead", "crm"] == 2
    assert found["eventsync_queue_messages", "work", "crm"] == 0


def test_counting_is_done_by_batches(bus, store, monkeypatch):
    """What a thousand changes cost in counting is what ten cost: a few additions."""
    calls = []
    for name in ("add", "spread"):
        real = getattr(Counters, name)
        monkeypatch.setattr(
            Counters, name, lambda *arguments, real=real: (calls.append(1), real(*arguments))
        )
    worker = Worker(store, bus)
    costs = []
    for count in (10, 1000):
        clock = Clock()
        changes = [
            Change(
                type="Product",
                key=str(n),
                op=PUT,
                version=clock.tick(),
                data={"id": n, "name": "a"},
            )
            for n in range(count)
        ]
        calls.clear()
        bus._message_envelopes = count
        bus.publish("Product", [bus.encode(change) for change in changes])
        worker.drain()
        costs.append(len(calls))
    assert worker.outcomes.total() == 1010
    assert costs[0] == costs[1] < 10


def test_retries_are_counted(bus, store):
    """Each try again counts the changes of its batch, by why."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    publish(bus, {"id": 1, "name": "a"}, {"id": 2, "name": "b"})
    store.accessors["Product"].away = True
    with pytest.raises(StoreUnavailableError):
        worker.drain()
    ((labels, count),) = [
        (labels, count) for one, labels, count in worker.tally.totals() if one is catalogue.RETRIED
    ]
    assert labels == ("crm", "Product", "unavailable")
    assert count >= 2
    assert count % 2 == 0


def test_what_is_published_is_counted(bus, store):
    """What a worker sends from its store's outbox, or a relay through ``counted``, is counted."""
    store.publisher = Bus("redis://127.0.0.1:1/0")
    store.add([Product(id=1, name="a"), Product(id=2, name="b")])
    worker = Worker(store, bus)
    worker.drain()
    crew = WorkerGroup(worker.tally)
    store.add(Product(id=3, name="c"))
    store.flush(crew.counted("crm", bus))
    found = scrape(crew, looked(bus, [store]))
    assert found["eventsync_published_total", "crm", "Product"] == 3


def test_counted_before_the_broker_forgets(bus, store):
    """When a worker dies between counting and acknowledging, its messages come again."""
    worker = Worker(store, bus)
    publish(bus, {"id": 1, "name": "a"})

    def die():
        assert bus.states("crm")["queue"].leased == 1
        raise KeyboardInterrupt

    worker.counted = die
    with pytest.raises(KeyboardInterrupt):
        worker.drain()
    assert (catalogue.MESSAGES, ("crm",), 1) in list(worker.tally.totals())
    again = Worker(store, bus)
    assert again.drain() == 1
    assert again.outcomes == {"duplicate": 1}


def test_survey_sees_what_waits(bus, store, tmp_path):
    """Queues, outboxes and spools are seen, and since when their oldest has been the same."""
    publish(bus, {"id": 1, "name": "a"})
    with Spool(tmp_path / "spool.db") as spool:
        change = Change(type="Product", key="9", op=PUT, version=Clock().tick(), data={"id": 9})
        spool.publish("Product", [spool.encode(change)])
        survey = looked(bus, [store], spools=[spool])
        found = scrape(WorkerGroup(), survey)
        first = survey.spools["spool.db"].answer
        survey.spools["spool.db"].once()
        second = survey.spools["spool.db"].answer
    assert found["eventsync_broker_up",] == 1
    assert found["eventsync_store_up", "crm"] == 1
    assert found["eventsync_queue_messages", "work", "crm"] == 1
    assert 0 <= found["eventsync_queue_oldest_seconds", "crm"] < 60
    assert found["eventsync_outbox_changes", "crm"] == 0
    assert found["eventsync_outbox_changes", "spool.db"] == 1
    assert found["eventsync_spool_bytes", "spool.db"] > 0
    assert first.since == second.since


def test_what_is_not_known_is_not_exported():
    """Of a broker that is away nothing is exported but that it is."""
    survey = looked(Bus("redis://127.0.0.1:1/0"), [Store("crm", MemoryAccessor(Product))])
    found = scrape(WorkerGroup(), survey)
    assert found["eventsync_broker_up",] == 0
    assert not [name for name, *_ in found if name.startswith("eventsync_queue")]


def test_an_answer_grows_old():
    """A look that hangs leaves an answer that is soon none any more."""
    now = [0.0]
    look = Look("it", lambda: 1, every=5.0, monotonic=lambda: now[0])
    assert look.error == "it has not answered yet"
    look.once()
    assert (look.answer, look.error) == (1, "")
    now[0] = 17.0
    assert (look.answer, look.error) == (None, "it does not answer any more")


def test_a_fault_is_no_answer():
    """Whatever is raised where one looks is told, and the next look may find an answer."""
    answers = [ZeroDivisionError("a fault"), 1]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    look = Look("it", ask)
    look.once()
    assert (look.answer, look.error) == (None, "ZeroDivisionError: a fault")
    look.once()
    assert (look.answer, look.error) == (1, "")


def test_progress_is_judged_by_what_moves(bus, store):
    """Work that waits and does not move is unwell after a while; an empty queue never is."""
    now = [time.time()]
    survey = Survey(bus, [store], now=lambda: now[0])
    progress = WorkerStatus("crm", now=lambda: now[0])
    crew = WorkerGroup()
    crew.join("crm", progress)
    health = Health(crew, survey, stores=["crm"], stall_after=300.0, now=lambda: now[0])

    def look(after=0.0):
        now[0] += after
        for one in (survey.broker, *survey.outboxes.values()):
            one.once()
        return health.progress()

    assert look(after=3600.0) == []
    assert health.ready() == ["crm: no worker is ready yet"]
    progress.beat("applying")
    assert health.ready() == []
    publish(bus, {"id": 1, "name": "a"})
    assert look(after=200.0) == []
    (reason,) = look(after=301.0)
    assert reason == (
        "crm: 1 messages wait or are in hand, and none was settled for 301 s; its workers: applying"
    )
    progress.settled(1)
    assert look(after=200.0) == []
    # A broker that tells nothing of what it has handed out; then who holds it does.
    held = replace(survey.broker.answer["crm"], work=0, in_hand=None, since=None)
    survey.broker._held = (survey.broker._held[0], {"crm": held})
    assert health.progress() == []
    progress.in_hand, progress._beat = 3, progress._beat - 301.0
    now[0] += 301.0
    assert health.progress()[0].startswith("crm: 3 messages wait or are in hand")
    progress.settled(3)
    progress.circuit.open(StoreUnavailableError("away for the test"))
    assert look() == ["crm: circuit open: away for the test"]
    assert health.ready() == look()
    assert health.live() == []


def test_an_outbox_that_is_not_relayed_is_unwell(bus):
    """The oldest change in an outbox may wait for a while, and a backlog that moves for ever."""
    store = Store("crm", MemoryAccessor(Product), publisher=Bus("redis://127.0.0.1:1/0")).open()
    store.add(Product(id=1, name="a"))
    now = [time.time()]
    survey = Survey(bus, [store], now=lambda: now[0])
    health = Health(WorkerGroup(), survey, stall_after=300.0, now=lambda: now[0])
    survey.broker.once()
    survey.stores["crm"].once()
    assert health.progress() == []
    now[0] += 301.0
    real = store.clock.now
    store.clock.now = lambda: real() + 301.0
    survey.stores["crm"].once()
    (reason,) = health.progress()
    assert reason == "crm: 1 changes wait to be published, and none was for 301 s"


REPORTING = """
import os, signal, sys
from eventsync.monitoring import catalogue
from eventsync.monitoring.worker_group import Report
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.supervisor import Lifeline
from eventsync.monitoring.counters import Counters
tally = Counters()
report = Report(tally, WorkerStatus("crm"), Lifeline(int(sys.argv[1])).send)
for number in range(100):
    tally.add(catalogue.MESSAGES, 2, "crm")
    report()
    tally.observe(catalogue.BATCH, number, "crm")
report()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_takes_no_counts_along(tmp_path):
    """What a process told before it was killed is counted whole, and its gauges are gone."""
    (tmp_path / "reporting.py").write_text(REPORTING)
    crew = WorkerGroup()
    command = [sys.executable, str(tmp_path / "reporting.py"), "{lifeline}"]
    supervisor = Supervisor({"crm-1": command}, grace=1.0, audience=crew)
    child = supervisor._children[0]
    supervisor._look_after(child)
    process = child.process
    process.wait(20)
    assert process.returncode == -signal.SIGKILL
    told = [count for one, _, count in crew.tally.totals() if one is catalogue.MESSAGES]
    assert not told
    supervisor._look_after(child)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        found = scrape(crew, looked(bus, []))
    assert found["eventsync_worker_starts_total", "crm", "crm-1"] == 1
    assert not [name for name, *_ in found if name.startswith("eventsync_worker_memory")]
    assert found["eventsync_messages_total", "crm"] == 200
    assert found["eventsync_batch_changes_count", "crm"] == 100


def test_report_that_cannot_be_sent_goes_with_the_next():
    """A supervisor that does not listen for a while is told everything in the end, once."""
    sent, listens = [], False
    tally = Counters()

    def send(line):
        if listens:
            sent.append(line)
        return listens

    report = Report(tally, WorkerStatus("crm"), send)
    for _ in range(3):
        tally.add(catalogue.MESSAGES, 1, "crm")
        report()
    listens = True
    report()
    crew = WorkerGroup()
    for line in sent:
        crew.heard("crm-1", line)
    assert list(crew.tally.totals()) == [(catalogue.MESSAGES, ("crm",), 3)]


def test_the_extra_is_named():
    """Who asks for metrics without the library is told how to install it."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import eventsync.monitoring.exporters.prometheus"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "pip install 'eventsync[metrics]'" in ran.stderr.splitlines()[-1]
