"""One replica: edits, foreign writes, completion and recovery, with an index in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.changes.change import Change, read_rows
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.edit import Edit
from eventsync.engine.gate import Outcome
from eventsync.engine.joint import apply_jointly
from eventsync.engine.replica import Replica
from eventsync.envelope import codec
from eventsync.errors import (
    AlreadyExistsError,
    ChangeRefusedError,
    ConfigError,
    DependencyError,
    NotFoundError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.index import MemoryIndex, Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing.fake import Crash, FakeTime


class Product(Record):
    """Merged per record."""

    id: int = Field(key=True)
    name: str
    price: int = 0


class Note(Record, rule="field"):
    """Merged per field."""

    id: int = Field(key=True)
    text: str
    colour: str = "white"
    pinned: bool | None = None


def replica_of(record_type, *, accessor=None, view=None, time=None):
    """Return a replica of its own store, named ``here``."""
    if accessor is None:
        accessor = MemoryAccessor(record_type, view=view)
    index = MemoryIndex()
    accessor.bind(index)
    return Replica(accessor, index, Clock(now=time or FakeTime()), "here")


def add(key, **values):
    return Edit("add", str(key), {"id": key, **values})


def update(key, **values):
    return Edit("update", str(key), {"id": key, **values})


def remove(key):
    return Edit("remove", str(key))


def edit(replica, *edits):
    replica.edit(edits, codec.encode)


def published(replica):
    """Return the changes in the outbox."""
    return [codec.decode(outgoing.body) for outgoing in replica.index.outgoing()]


def entry(replica, key="1"):
    return dict(replica.index.scan(replica.type.name)).get(key)


def data(replica):
    """Return the data of the store, which a foreign writer may alter."""
    return replica.accessor.data


# -- edits -----------------------------------------------------------------------------------------


def test_an_added_record_is_published_whole():
    """The change of an ``add`` is a put with all fields of the record, from this store."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp", price=5))
    [change] = published(replica)
    assert (change.op, change.source) == (PUT, "here")
    assert change.data == {"id": 1, "name": "Lamp", "price": 5} == data(replica)["1"]
    assert entry(replica).stamp == change.stamp


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (add(1, name="again"), AlreadyExistsError),
        (update(2, name="none"), NotFoundError),
        (remove(2), NotFoundError),
    ],
)
def test_a_refused_edit_changes_nothing(refused, error):
    """Existence is checked, and the other edits of the call are undone with the refused one."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp"))
    before = dict(data(replica)), published(replica)
    with pytest.raises(error):
        edit(replica, add(3, name="Desk"), refused)
    assert (data(replica), published(replica)) == before
    assert entry(replica, "3") is None


@pytest.mark.parametrize("exists", [True, False])
def test_upsert_takes_both(exists):
    """An ``upsert`` adds a record that does not exist and updates one that does."""
    replica = replica_of(Product)
    if exists:
        edit(replica, add(1, name="old"))
    edit(replica, Edit("upsert", "1", {"id": 1, "name": "new"}))
    assert data(replica)["1"]["name"] == "new"


def test_an_edit_that_changes_nothing_makes_no_change():
    """Equal values are neither written nor published."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp", price=5))
    edit(replica, update(1, name="Lamp", price=5))
    assert len(published(replica)) == 1


@pytest.mark.parametrize("record_type", [Product, Note])
def test_an_edit_writes_the_touched_fields_only(record_type):
    """A field that the program did not set keeps the newer value of the store."""
    replica = replica_of(record_type)
    name, other = ("name", "price") if record_type is Product else ("text", "pinned")
    edit(replica, add(1, **{name: "old", other: None if record_type is Note else 0}))
    edit(replica, update(1, **{other: 1}))
    stale = {"id": 1, name: "new", other: 0}
    edit(replica, Edit("update", "1", stale, frozenset({name})))
    assert (data(replica)["1"][name], data(replica)["1"][other]) == ("new", 1)


def test_an_update_per_record_publishes_the_whole_record():
    """The put contains the fields that the edit left alone."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp", price=5))
    edit(replica, update(1, price=6))
    assert published(replica)[-1].data == {"id": 1, "name": "Lamp", "price": 6}


def test_an_update_per_field_publishes_a_patch_with_its_base_state():
    """The patch contains the changed field; the base state contains the others and the stamp."""
    replica = replica_of(Note)
    edit(replica, add(1, text="hello", colour="red", pinned=None))
    edit(replica, update(1, text="bye"))
    put, patch = published(replica)
    assert (patch.op, patch.data) == (PATCH, {"text": "bye"})
    assert patch.known.stamp == put.stamp
    assert patch.known.values == {"colour": "red", "pinned": None}


def test_an_edit_is_newer_than_all_that_the_store_has_seen():
    """Even if the clock that issued the stored version is a little fast."""
    replica = replica_of(Product, time=FakeTime(1_000_000.0))
    ahead = Version.of(1_000_004_000)
    replica.apply({"1": [put(1, ahead, name="ahead")]})
    edit(replica, update(1, name="edited"))
    assert published(replica)[-1].version > ahead
    assert entry(replica).stamp == published(replica)[-1].stamp


def test_a_stored_version_far_in_the_future_does_not_drag_the_clock_along():
    """An edit or a foreign write of that record is refused until its time; others go on."""
    time = FakeTime(1_000_000.0)
    replica = replica_of(Product, time=time)
    replica.apply({"1": [put(1, Version.of(1_003_600_000), name="fast")]})
    for refused in (update(1, name="edited"), Edit("remove", "1")):
        with pytest.raises(ChangeRefusedError, match="Product '1' cannot be changed") as told:
            edit(replica, refused)
        assert told.value.reason == "clock-drift"
    edit(replica, add(2, name="another"))
    assert published(replica)[-1].version.millis == 1_000_000_000
    replica.accessor.data["1"]["name"] = "foreign"
    with pytest.raises(ChangeRefusedError, match=r"lies 3600\.0 s in the future"):
        replica.capture(["1"], None)
    time.now += 3600.0
    (captured,) = replica.capture(["1"], None)
    assert (captured.data["name"], captured.version.millis) == ("foreign", 1_003_600_000)


def test_one_call_edits_a_record_once():
    """A second edit of the same record in one call is an error, and nothing is written."""
    replica = replica_of(Product)
    with pytest.raises(ConfigError, match="Product '1' is edited twice"):
        edit(replica, add(1, name="a"), Edit("upsert", "1", {"id": 1, "name": "b"}))
    assert (data(replica), published(replica)) == ({}, [])


class OneByOne(MemoryAccessor):
    """A store that cannot write a batch as a whole."""

    atomic = False


def test_without_atomic_writes_each_edit_is_its_own():
    """The edits before the one that fails stand, and are published."""
    replica = replica_of(Product, accessor=OneByOne(Product))
    with pytest.raises(NotFoundError):
        edit(replica, add(1, name="Lamp"), update(2, name="none"), add(3, name="Desk"))
    assert list(data(replica)) == ["1"] == [change.key for change in published(replica)]


def test_without_an_encoder_nothing_is_published():
    """The edit is written and has a version all the same."""
    replica = replica_of(Product)
    replica.edit([add(1, name="Lamp")], None)
    assert data(replica)["1"]["name"] == "Lamp"
    assert entry(replica).presence is Presence.PRESENT
    assert published(replica) == []


def test_a_removed_record_leaves_a_tombstone():
    """The change is a delete."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp"))
    edit(replica, remove(1))
    assert published(replica)[-1].op == DELETE
    assert entry(replica).presence is Presence.DELETED
    assert data(replica) == {}


# -- apply -----------------------------------------------------------------------------------------


def put(key, version, **values):
    return changed(PUT, key, version, {"id": key, **values})


def changed(op, key, version, values, record_type=Product):
    return Change(
        type=record_type.__record__.name, key=str(key), op=op, version=version, data=values
    )


def outcomes(verdicts):
    return {key: [verdict.outcome for verdict in of_key] for key, of_key in verdicts.items()}


def test_the_gate_decides():
    """A newer change is applied, the same one is a duplicate and an older one is stale."""
    replica = replica_of(Product)
    for version, outcome in [
        (2, Outcome.APPLIED),
        (2, Outcome.DUPLICATE),
        (1, Outcome.STALE),
        (3, Outcome.APPLIED),
    ]:
        verdicts = replica.apply({"1": [put(1, Version.of(version), name=str(version), price=0)]})
        assert outcomes(verdicts) == {"1": [outcome]}
    assert data(replica)["1"]["name"] == "3"


class Refusing(MemoryAccessor):
    """Refuses records by their name."""

    def add(self, record):
        if record.name == "bad":
            raise RejectedError("it is bad")
        super().add(record)

    def waiting(self, rows, removals, transaction):
        return {k: DependencyError("later") for k, row in rows.items() if row["name"] == "early"}


def test_a_refused_batch_writes_nothing():
    """The others of the batch are applied when they are tried again without the refused one."""
    replica = replica_of(Product, accessor=Refusing(Product))
    batch = {
        str(n): [put(n, Version.of(n), name=name, price=0)] for n, name in [(1, "good"), (2, "bad")]
    }
    with pytest.raises(RejectedError):
        replica.apply(batch)
    assert (data(replica), entry(replica)) == ({}, None)
    assert outcomes(replica.apply({"1": batch["1"]})) == {"1": [Outcome.APPLIED]}


def test_records_that_wait_are_held():
    """A record that waits for another is left out of a joint write, with the reason."""
    replica = replica_of(Product, accessor=Refusing(Product))
    batch = {
        str(n): [put(n, Version.of(n), name=name, price=0)]
        for n, name in [(1, "ready"), (2, "early")]
    }
    verdicts = apply_jointly([(replica, batch)])
    assert [v.outcome for v in verdicts["Product", "1"]] == [Outcome.APPLIED]
    assert [v.outcome for v in verdicts["Product", "2"]] == [Outcome.HELD]
    assert str(verdicts["Product", "2"][0].error) == "later"
    assert list(data(replica)) == ["1"]
    assert entry(replica, "2") is None


class Plain(MemoryAccessor):
    """Takes the fast paths."""

    plain = property(lambda self: self.type.rule == "record")
    patchable = property(lambda self: self.type.rule == "field")

    def update_rows(self, writes, transaction):
        present = [write for write in writes if write.key in self.data]
        for write in present:
            self.data[write.key] |= write.values
        return [write.key for write in present]


small = st.integers(0, 2)
versions = st.builds(Version.of, st.integers(1, 9))
keys = st.sampled_from(["1", "2", "3"])
deletes = st.builds(lambda key, version: (DELETE, key, version, None), keys, versions)
puts_of_products = st.builds(
    lambda key, version, name: (PUT, key, version, {"id": int(key), "name": name, "price": 0}),
    *(keys, versions, st.sampled_from("ab")),
)
puts_of_notes = st.builds(
    lambda key, version, text: (
        *(PUT, key, version),
        {"id": int(key), "text": text, "colour": "red", "pinned": None},
    ),
    *(keys, versions, st.sampled_from("ab")),
)
patches_of_notes = st.builds(
    lambda key, version, values: (PATCH, key, version, values),
    *(keys, versions),
    st.fixed_dictionaries(
        {}, optional={"text": st.sampled_from("cd"), "colour": st.sampled_from("xy")}
    ).filter(bool),
)


@given(st.lists(st.lists(st.one_of(puts_of_products, deletes), min_size=1, max_size=4), max_size=6))
def test_newer_puts_are_written_as_the_gate_decides(batches):
    """The fast path of the per-record rule leaves the same verdicts, entries and data."""
    assert_same(
        Product,
        [{key: (op, key, *rest) for op, key, *rest in batch} for batch in batches],
    )


@given(
    st.lists(
        st.lists(st.one_of(puts_of_notes, patches_of_notes, deletes), min_size=1, max_size=3),
        max_size=6,
    )
)
def test_newer_patches_are_written_as_the_gate_decides(batches):
    """The fast path of the per-field rule leaves the same verdicts, entries and data."""
    assert_same(Note, [{key: (op, key, *rest) for op, key, *rest in batch} for batch in batches])


def test_a_patch_of_a_removed_record_waits():
    """The fast path leaves a record alone that a foreign writer removed, and patches the others."""
    replica = replica_of(Note, accessor=Plain(Note))
    edit(replica, add(1, text="a"), add(2, text="b"))
    del data(replica)["1"]
    later = Version.of(2_000_000_000_000)
    patches = {key: [changed(PATCH, key, later, {"colour": "red"}, Note)] for key in "12"}
    verdicts = replica.apply(patches)
    assert outcomes(verdicts) == {"1": [Outcome.PENDING], "2": [Outcome.APPLIED]}
    assert [row["colour"] for row in data(replica).values()] == ["red"]


def assert_same(record_type, batches):
    results = []
    for accessor in (MemoryAccessor(record_type), Plain(record_type)):
        replica = replica_of(record_type, accessor=accessor)
        verdicts = []
        for batch in batches:
            # As a worker has them: decoded, and puts read in bulk.
            changes = [decoded(changed(*of, record_type)) for of in batch.values()]
            read_rows(changes, accessor.reader)
            found = replica.apply({change.key: [change] for change in changes})
            verdicts.append({key: list(of_key) for key, of_key in found.items()})
        results.append((verdicts, replica.index.scan(record_type.__record__.name), data(replica)))
    assert results[0] == results[1]


def decoded(change):
    return codec.decode(codec.encode(change))


# -- foreign writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("record_type", [Product, Note])
def test_a_foreign_write_is_captured_once(record_type):
    """It gets a version above the record's own, and the data stay as they are."""
    replica = replica_of(record_type)
    name = "name" if record_type is Product else "text"
    edit(replica, add(1, **{name: "ours"}), add(2, **{name: "untouched"}))
    before = entry(replica).version
    data(replica)["1"][name] = "theirs"
    [change] = replica.capture(["1", "2"], codec.encode)
    assert (change.key, change.data[name], change.source) == ("1", "theirs", "here")
    assert change.op == (PUT if record_type is Product else PATCH)
    assert change.version > before
    assert published(replica)[-1] == change
    assert data(replica)["1"][name] == "theirs"
    assert replica.capture(["1", "2"], codec.encode) == []


def test_a_foreign_delete_is_captured():
    """A record that is gone was deleted."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp"))
    data(replica).clear()
    assert [change.op for change in replica.capture(["1"], codec.encode)] == [DELETE]
    assert entry(replica).presence is Presence.DELETED
    assert replica.capture(["1"], codec.encode) == []


def test_an_expired_record_was_not_deleted():
    """Where records expire, one that is gone makes no change."""
    replica = replica_of(Product)
    replica.accessor.forgets = True
    edit(replica, add(1, name="Lamp"))
    data(replica).clear()
    assert replica.capture(["1"], codec.encode) == []


def test_a_record_that_was_added_again_is_captured():
    """A foreign writer adds a record that eventsync had deleted."""
    replica = replica_of(Product)
    edit(replica, add(1, name="Lamp"))
    edit(replica, remove(1))
    data(replica)["1"] = {"id": 1, "name": "back", "price": 0}
    [change] = replica.capture(["1"], codec.encode)
    assert (change.op, change.data["name"]) == (PUT, "back")


def test_a_foreign_write_is_not_hidden_by_an_edit_of_another_field():
    """An edit neither publishes the foreign write in its base state nor stops its capture."""
    replica = replica_of(Note)
    edit(replica, add(1, text="hello", colour="red", pinned=None))
    data(replica)["1"]["colour"] = "blue"
    edit(replica, update(1, text="bye"))
    patch = published(replica)[-1]
    assert (patch.data, patch.known.values) == ({"text": "bye"}, {"pinned": None})
    [captured] = replica.capture(["1"], codec.encode)
    assert captured.data == {"colour": "blue"}
    assert captured.version > patch.version


@pytest.mark.parametrize("foreign", ["zzz", "aaa"])
def test_a_foreign_write_is_no_second_change_of_one_version(foreign):
    """A patch that comes back while its field is edited again is no collision, and loses."""
    replica = replica_of(Note)
    edit(replica, add(1, text="hello"))
    edit(replica, update(1, text="bye"))
    patch = published(replica)[-1]
    data(replica)["1"]["text"] = foreign
    [verdict] = replica.apply({"1": [patch]})["1"]
    assert not verdict.collision
    assert data(replica)["1"]["text"] == foreign
    [captured] = replica.capture(["1"], codec.encode)
    assert captured.data == {"text": foreign}


def test_the_first_version_of_a_record_overrides_nothing():
    """A record that the store held before eventsync knew it loses to every put."""
    replica, other = replica_of(Note), replica_of(Note)
    data(replica)["1"] = {"id": 1, "text": "old", "colour": "grey", "pinned": None}
    captured = replica.capture(["1"], codec.encode)
    edit(other, add(1, text="new", pinned=True))
    other.apply({"1": captured})
    assert data(other)["1"]["pinned"] is True  # an empty field is no edit


class Shouting(MemoryAccessor):
    """Keeps names and texts in capitals."""

    def record_to_data(self, record):
        kept = super().record_to_data(record)
        return {n: v.upper() if isinstance(v, str) else v for n, v in kept.items()}


@pytest.mark.parametrize("record_type", [Product, Note])
def test_a_store_that_alters_values_makes_no_foreign_writes(record_type):
    """The fingerprint is that of the form in which the store keeps the record."""
    name = "name" if record_type is Product else "text"
    replica = replica_of(record_type, accessor=Shouting(record_type))
    edit(replica, add(1, **{name: "lamp"}))
    replica.apply({"2": [changed(PUT, 2, Version.of(5), {"id": 2, name: "desk"}, record_type)]})
    assert {row[name] for row in data(replica).values()} == {"LAMP", "DESK"}
    assert replica.capture(["1", "2"], codec.encode) == []
    [_, state] = replica.states(["1", "2"])
    assert state.version == Version.of(5)


steps = st.lists(
    st.tuples(
        st.sampled_from(["edit", "foreign", "remove", "foreign remove", "capture"]),
        st.sampled_from([1, 2]),
        st.sampled_from(["text", "colour"]),
        st.sampled_from("abc"),
    ),
    max_size=12,
)


@given(steps, st.randoms(use_true_random=False))
def test_captured_changes_make_other_stores_equal(steps, rng):
    """Whatever edits and foreign writes are made, all changes in any order give the same data."""
    replica, other, time = replica_of(Note), replica_of(Note), FakeTime()
    replica = replica_of(Note, time=time)
    changes = []
    for kind, key, name, value in [*steps, ("capture", 0, "", "")]:
        time.advance(1)
        row = data(replica).get(str(key))
        if kind == "edit":
            values = {"id": key, "text": "new", "colour": "white", "pinned": None, name: value}
            touched = None if row is None else frozenset({name})
            edit(replica, Edit("upsert", str(key), values, touched))
        elif kind == "foreign" and row is not None:
            row[name] = value
        elif kind == "remove" and row is not None:
            edit(replica, remove(key))
        elif kind == "foreign remove":
            data(replica).pop(str(key), None)
        elif kind == "capture":
            replica.capture(["1", "2"], codec.encode)
            assert replica.capture(["1", "2"], codec.encode) == []
    changes = published(replica)
    rng.shuffle(changes)
    for change in changes:
        other.apply({change.key: [change]})
    assert data(other) == data(replica)


# -- states and completion -------------------------------------------------------------------------


def test_states_leave_out_what_the_store_does_not_hold():
    """Present and deleted records have a state; filtered and pending ones have none."""
    replica = replica_of(Note, view=View(where={"pinned": True}))
    edit(replica, add(1, text="kept", pinned=True), add(2, text="gone", pinned=True))
    edit(replica, remove(2))
    replica.apply({"3": [changed(PUT, 3, Version.of(1), {"id": 3, "text": "out"}, Note)]})
    replica.apply({"4": [changed(PATCH, 4, Version.of(1), {"text": "part"}, Note)]})
    assert entry(replica, "3").presence is Presence.FILTERED_OUT
    assert entry(replica, "4").presence is Presence.PENDING
    assert [(s.key, s.op) for s in replica.states(["1", "2", "3", "4"])] == [
        ("1", PATCH),
        ("2", DELETE),
    ]


def test_a_state_keeps_the_version_of_the_record():
    """It changes nothing in a store that holds the record already."""
    replica, other = replica_of(Product), replica_of(Product)
    edit(replica, add(1, name="Lamp", price=5))
    for expected in (Outcome.APPLIED, Outcome.DUPLICATE):
        [state] = replica.states(["1"])
        assert state.stamp == published(replica)[0].stamp
        assert outcomes(other.apply({"1": [state]})) == {"1": [expected]}


def test_a_state_has_the_stamp_of_the_change_that_made_it():
    """Even if the store alters the values, another store that holds the change keeps its own."""
    replica, other = replica_of(Product, accessor=Shouting(Product)), replica_of(Product)
    edit(replica, add(1, name="lamp", price=5))
    other.apply({"1": published(replica)})
    assert outcomes(other.apply({"1": replica.states(["1"])})) == {"1": [Outcome.DUPLICATE]}
    assert data(other)["1"]["name"] == "lamp"


def pending(values):
    """Return a replica with one pending note, of which only ``values`` are known."""
    replica = replica_of(Note)
    verdicts = replica.apply({"1": [changed(PATCH, 1, Version.of(9), values, Note)]})
    assert outcomes(verdicts) == {"1": [Outcome.PENDING]}
    return replica


def test_a_pending_record_is_completed_from_another_store():
    """It becomes whole: its own newer field stays, and what nobody holds takes its default."""
    replica = pending({"colour": "blue"})
    other = replica_of(Note, view=View(omit=("pinned",)))
    other.apply(
        {"1": [changed(PUT, 1, Version.of(1), {"id": 1, "text": "there", "colour": "red"}, Note)]}
    )
    states = {"1": other.states(["1"])}
    assert replica.complete(states) == 1
    assert data(replica)["1"] == {"id": 1, "text": "there", "colour": "blue", "pinned": None}
    assert entry(replica).presence is Presence.PRESENT
    assert replica.complete(states) == 0
    assert replica.capture(["1"], codec.encode) == []


def test_a_record_without_a_required_field_stays_pending():
    """No store holds the text, and it has no default."""
    replica = pending({"colour": "blue"})
    other = replica_of(Note, view=View(omit=("text",)))
    edit(other, Edit("add", "1", {"id": 1, "colour": "red", "pinned": None}))
    assert replica.complete({"1": other.states(["1"])}) == 0
    assert entry(replica).presence is Presence.PENDING
    assert data(replica) == {}


def test_only_pending_records_are_completed():
    """A record that is present is not written again."""
    replica, other = replica_of(Note), replica_of(Note)
    edit(replica, add(1, text="ours"))
    edit(other, add(1, text="theirs"))
    assert replica.complete({"1": other.states(["1"])}) == 0
    assert data(replica)["1"]["text"] == "ours"


# -- recovery --------------------------------------------------------------------------------------


class Dying(MemoryAccessor):
    """Dies in ``write_rows``, before or after the data are written."""

    dies: str | None = None
    error: Exception | None = None
    unreadable: dict = {}  # noqa: RUF012  # replaced, never altered

    def write_rows(self, writes, removals, transaction):
        if self.dies == "before":
            raise Crash
        super().write_rows(writes, removals, transaction)
        if self.error is not None:
            raise self.error
        if self.dies == "after":
            raise Crash

    def read_rows(self, keys, transaction):
        for key in keys:
            if key in self.unreadable:
                raise self.unreadable[key]
        return super().read_rows(keys, transaction)


def crashed(dies, *edits):
    """Return a replica whose writer died while it made edits."""
    accessor = Dying(Product)
    replica = replica_of(Product, accessor=accessor)
    accessor.dies = dies
    with pytest.raises(Crash):
        edit(replica, *edits)
    accessor.dies = None
    return replica


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_write_that_was_cut_short_is_finished_or_undone(dies):
    """After a crash data and entry agree, and the next transaction sees neither or both."""
    replica = crashed(dies, add(1, name="Lamp"))
    assert entry(replica) is None
    assert replica.capture(["1"], codec.encode) == []
    written = dies == "after"
    assert ("1" in data(replica)) == written
    assert (entry(replica) is not None) == written
    # The envelope is sent either way: the store gets its own change back through its queue.
    [change] = published(replica)
    assert change.key == "1"
    verdicts = replica.apply({"1": [change]})
    assert outcomes(verdicts) == {"1": [Outcome.DUPLICATE if written else Outcome.APPLIED]}
    assert data(replica)["1"]["name"] == "Lamp"


def test_a_foreign_write_after_a_crash_is_kept():
    """A record that no longer matches its intent is not taken for eventsync's own write."""
    replica = crashed("after", add(1, name="Lamp"))
    data(replica)["1"]["name"] = "theirs"
    [change] = replica.capture(["1"], codec.encode)
    assert change.data["name"] == "theirs"


@pytest.mark.parametrize("error", [ValueError("a bug"), RejectedError("no"), RecursionError()])
def test_a_record_that_cannot_be_read_stops_no_recovery(error):
    """Whatever is raised for one record, the intents of the others are finished."""
    replica = crashed("after", *(add(n, name="Lamp") for n in range(1, 6)))
    replica.accessor.unreadable = {"3": error}
    replica.states([])
    finished = {key for key, _ in replica.index.scan("Product")}
    assert finished == {"1", "2", "4", "5"}
    with replica.index.transaction() as transaction:
        assert transaction.open_intents("Product") == {}


def test_an_unreachable_store_leaves_the_intents_open():
    """An error that concerns the whole store is raised, and recovery begins again later."""
    replica = crashed("after", add(1, name="Lamp"), add(2, name="Desk"))
    replica.accessor.unreadable = {"2": StoreUnavailableError("away")}
    with pytest.raises(StoreUnavailableError):
        replica.states([])
    assert replica.index.scan("Product") == []
    replica.accessor.unreadable = {}
    replica.states([])
    assert [key for key, _ in replica.index.scan("Product")] == ["1", "2"]


def test_a_failed_write_publishes_nothing():
    """The store refused it, so its intent is closed and its envelope dropped."""
    replica = replica_of(Product, accessor=Refusing(Product))
    with pytest.raises(RejectedError):
        edit(replica, add(1, name="bad"))
    replica.states([])
    assert (entry(replica), published(replica)) == (None, [])


def test_a_write_whose_answer_is_lost_is_looked_at():
    """The store may have made it: the next transaction compares the data with the intent."""
    accessor = Dying(Product)
    replica = replica_of(Product, accessor=accessor)
    accessor.error = StoreUnavailableError("no answer", uncertain=True)
    with pytest.raises(StoreUnavailableError):
        edit(replica, add(1, name="Lamp"))
    accessor.error = None
    assert replica.capture(["1"], codec.encode) == []
    assert entry(replica).stamp == published(replica)[0].stamp


# -- another index ---------------------------------------------------------------------------------


def test_with_index_leaves_the_replica_as_it_is():
    """The copy uses the other index, with the same accessor."""
    replica = replica_of(Product)
    other = replica.with_index(MemoryIndex())
    edit(other, add(1, name="Lamp"))
    assert (entry(replica), published(replica)) == (None, [])
    assert len(published(other)) == 1
    assert data(replica) == data(other)
