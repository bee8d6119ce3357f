"""Settlement: dead letters, held changes, and bytes that are no envelope."""

from __future__ import annotations

import math
import time

import pytest
from support.worker_harness import Fussy, Product, letters, publish, put, worker_parts

from eventsync.broker.bus import Bus, dead_queue, held_queue, store_queue
from eventsync.changes.clock import Clock, Version
from eventsync.engine.apply import Limits
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.envelope import batch, codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


def test_poison_is_alone(bus, store):
    """A record that the store refuses becomes a dead letter; the rest of its batch is applied."""
    clock = Clock()
    publish(bus, *(put(clock, n, "poison" if n == 37 else "fine") for n in range(100)))
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    assert store.count(Product) == 99
    (letter,) = letters(bus)
    assert (letter.key, letter.reason, letter.attempts) == ("37", "rejected", 1)
    assert letter.change().data["name"] == "poison"
    assert letter.queue == store_queue("crm")


def test_rejected_winner_does_not_take_what_it_superseded_along(bus, store):
    """If the latest of several changes of a record is refused, the one before it is applied."""
    clock = Clock()
    publish(bus, put(clock, 1, "good"), put(clock, 1, "poison"))
    Worker(store, bus).drain(timeout=0.05)
    assert store[Product, 1].name == "good"
    assert [letter.reason for letter in letters(bus)] == ["rejected"]


def test_a_body_that_is_none_is_a_dead_letter_and_supersedes_nothing(bus, store):
    """A change whose values cannot be read supersedes nothing and becomes a dead letter."""
    clock = Clock()
    good, bad = put(clock, 1, "good"), put(clock, 1, "bad")
    # In the place of the text a byte that begins none.
    broken = bus.encode(bad).replace(b"\xa3bad", b"\xa3\xffad")
    bus.publish("Product", [bus.encode(good), broken])
    worker = Worker(store, bus)
    worker.drain()
    assert store.get(Product, 1).name == "good"
    (letter,) = letters(bus)
    assert letter.reason == "value"
    assert letter.raw == broken
    assert worker.outcomes == {Outcome.APPLIED: 1, Outcome.REJECTED: 1}


def test_a_superseded_body_is_not_read(bus, store):
    """The values of a change that a later one of the same batch supersedes are not read."""
    clock = Clock()
    bad, good = put(clock, 1, "bad"), put(clock, 1, "good")
    broken = bus.encode(bad).replace(b"\xa3bad", b"\xa3\xffad")
    bus.publish("Product", [broken, bus.encode(good)])
    worker = Worker(store, bus)
    worker.drain()
    assert worker.outcomes == {Outcome.APPLIED: 1, Outcome.SUPERSEDED: 1}
    assert letters(bus) == []


def test_replayed_letter_passes_the_gate(bus, store):
    """A replayed dead letter does not overwrite a newer change."""
    clock = Clock()
    first = put(clock, 1, "poison")
    publish(bus, first)
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    publish(bus, put(clock, 1, "later"))
    with bus.letters("crm") as found:
        ((letter, delivery),) = found.read()
        bus.send_to("crm", [letter.raw])
        found.settle([delivery])
    worker.drain(timeout=0.05)
    assert store[Product, 1].name == "later"
    assert letters(bus) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/x-eventsync"),
        (b"\xff\x00 no message", "application/x-eventsync"),
        (b"{}", "application/json"),
        (batch.join_batch([b"no envelope"]), "application/x-eventsync"),
    ],
)
def test_foreign_bytes_end_as_dead_letters(bus, store, body, content_type):
    """Bytes that are no message become dead letters unchanged, and stop no other message."""
    clock = Clock()
    bus._send([body], key=store_queue("crm"), content_type=content_type)
    publish(bus, put(clock, 1, "fine"))
    Worker(store, bus).drain(timeout=0.05)
    assert store[Product, 1].name == "fine"
    (letter,) = letters(bus)
    assert letter.raw in (body, b"no envelope")
    assert letter.message


def test_unknown_type_and_old_change_are_refused(bus, store):
    """Changes of an unknown type, or older than the tombstones, become dead letters."""
    clock = Clock()
    old = put(clock, 1)
    old.version = Version.of(int((time.time() - 11 * 86_400) * 1000))
    foreign = put(clock, 2)
    foreign.type = "Unknown"
    bus.send_to("crm", [bus.encode(old), bus.encode(foreign)])
    Worker(store, bus).drain(timeout=0.05)
    assert sorted(letter.reason for letter in letters(bus)) == ["too-old", "unknown-type"]
    assert store.count(Product) == 0


def test_change_from_the_future_is_held_then_applied(bus, store):
    """A change with a version in the future is held until that time, then applied."""
    ahead = Clock(now=lambda: time.time() + 3.0)
    publish(bus, put(ahead, 1, "early"))
    worker = Worker(store, bus, options=Options(limits=Limits(drift=1.0)))
    worker.drain(timeout=0.02)
    assert store.count(Product) == 0
    assert worker.outcomes[Outcome.HELD] >= 1
    deadline = time.monotonic() + 10
    while not store.count(Product):
        assert time.monotonic() < deadline
        worker.drain(timeout=0.02)
    assert letters(bus) == []


def test_change_from_the_far_future_becomes_a_dead_letter(bus, store):
    """A change from the far future is dead-lettered and does not advance the clock."""
    ahead = Clock(now=lambda: time.time() + 3600)
    publish(bus, put(ahead, 1))
    worker = Worker(store, bus, options=Options(hold_for=0.0))
    worker.drain(timeout=0.02)
    assert [letter.reason for letter in letters(bus)] == ["clock-drift"]
    assert store.clock.tick().millis < (time.time() + 60) * 1000


def test_message_that_kills_workers_is_put_aside(bus, store):
    """A message that workers took too often without settling it becomes a dead letter."""
    publish(bus, put(Clock(), 1))
    _, _, settlement = worker_parts(store, bus, Options(max_deliveries=1))
    subscription = bus.subscribe("crm", ["Product"], prefetch=1)
    (delivery,) = subscription.fetch(timeout=1.0, limit=1)
    delivery.attempts = 1
    settlement.store(settlement.apply([delivery]))
    subscription.close()
    assert [letter.reason for letter in letters(bus)] == ["crashes"]
    assert bus.state(dead_queue("crm")).ready == 1


@pytest.mark.parametrize("name", ["held", "dead", "crm-held", "crm_dead"])
def test_store_may_be_named_like_a_queue(tmp_path, name):
    """In a store named ``held`` or ``dead`` changes are held, retried, dead-lettered, replayed."""
    accessor = Fussy(Product)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        for store in (name, "crm"):
            bus.declare(store, ["Product"])
        store = Store(name, accessor).open()
        early = Clock(now=lambda: time.time() + 3600.0)
        publish(bus, put(Clock(), 1, "poison"), put(Clock(), 2, "fine"), put(early, 3))
        options = Options(limits=Limits(drift=1.0))
        Worker(store, bus, options=options).drain(timeout=0.02)
        assert [r.key for r in store.find(Product)] == ["2"]
        (held,) = letters(bus, name, held=True)
        (dead,) = letters(bus, name)
        assert (held.key, held.queue, held.attempts) == ("3", store_queue(name), 1)
        assert (dead.key, dead.queue) == ("1", store_queue(name))
        _, _, settlement = worker_parts(store, bus, options)
        with bus.letters(name, held=True) as found:
            due = found.read()
            settlement.settle_held(due, queue_oldest=math.inf)
            found.settle(delivery for _, delivery in due)
        (held,) = letters(bus, name, held=True)
        assert (held.key, held.queue, held.attempts) == ("3", held_queue(name), 2)
        # The held change is given up in time, and both can be replayed.
        Worker(store, bus, options=Options(hold_for=0.0)).drain(timeout=0.02)
        assert letters(bus, name, held=True) == []
        given_up = max(letters(bus, name), key=lambda letter: letter.key)
        assert (given_up.key, given_up.queue) == ("3", held_queue(name))
        accessor.accepts_all = True
        with bus.letters(name) as found:
            for letter, delivery in found.read():
                bus.send_to(name, [letter.raw])
                found.settle([delivery])
        Worker(store, bus, options=Options(limits=Limits(drift=7200.0))).drain(timeout=0.02)
        assert {r.key for r in store.find(Product)} == {"1", "2", "3"}
        assert (letters(bus, name), letters(bus, name, held=True)) == ([], [])
        # The other store's queue has its own copies of the changes, and nothing else.
        assert bus.state(store_queue("crm")).ready == 1


def test_a_decoder_fault_is_the_failure_of_one_envelope(bus, store, monkeypatch):
    """Whatever is raised while an envelope is read makes a dead letter of it, and of no other."""
    real = codec.decode_all

    def faulty(raws, **options):
        if any(b"odd" in raw for raw in raws):
            raise ZeroDivisionError("a fault of the decoder")
        return real(raws, **options)

    monkeypatch.setattr(codec, "decode_all", faulty)
    publish(bus, *(put(store.clock, n, "odd" if n == 2 else "fine") for n in range(5)))
    assert Worker(store, bus).drain(timeout=0.05) == 1
    assert store.count(Product) == 4
    (letter,) = letters(bus)
    assert (letter.reason, b"odd" in letter.raw) == ("envelope", True)
    assert "ZeroDivisionError: a fault of the decoder" in letter.message


@pytest.mark.parametrize("raw", [b"", b"\xc1" * 30, b"[" * 30])
def test_a_message_of_rubbish_becomes_few_dead_letters(bus, store, raw):
    """Beyond ten, the envelopes of one message that cannot be read share a dead letter."""
    count = 3_000
    publish(bus, put(Clock(), 1, "good"))
    bus.publish("Product", [*[raw] * count, bus.encode(put(Clock(), 2, "good"))])
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    assert store.count(Product) == 2
    found = letters(bus)
    messages = -(-count // 500)  # this is how many messages the bus makes of them
    assert len(found) <= 11 * messages
    told = [envelope for one in found for envelope in rubbish_in(one.raw, raw)]
    assert told == [raw] * count
    assert sum(len(one.encode()) for one in found) < 20_000 + 4 * count * (len(raw) + 3)


def rubbish_in(raw, expected):
    """Return the envelopes in the bytes of a dead letter."""
    return [raw] if raw == expected else batch.split_batch(raw)


@pytest.mark.parametrize("wrong", ["first_time", "last_time"])
def test_letters_dated_in_the_future_do_not_stay(bus, store, wrong):
    """A held change is retried at once, and a dead letter grows old from now on."""
    ahead = {wrong: time.time() + 30 * 86_400.0}
    early = Clock(now=lambda: time.time() + 60.0)
    raw = bus.encode(put(early, 1))
    given = {"first_time": time.time(), "last_time": time.time()} | ahead
    letter = DeadLetter(
        reason="clock-drift", message="", store="crm", queue="", attempts=1, raw=raw, **given
    )
    bus.declare("crm", ["Product"])
    bus.hold("crm", [letter])
    Worker(store, bus, options=Options(hold_for=0.0)).drain(timeout=0.05)
    assert letters(bus, held=True) == []
    assert [one.reason for one in letters(bus)] == ["clock-drift"]
