"""The reader of Debezium's events: skipped events, patches, CloudEvents, the effect in a store."""

from __future__ import annotations

import json
import time

import pytest
from envelope.debezium_events import KEY, LARGE, event, key_text, mysql, recorded, with_schema

from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.envelope.cloudevents import from_cloudevent
from eventsync.envelope.debezium import DebeziumReader, from_debezium
from eventsync.errors import ChangeRefusedError, EnvelopeError
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor

P = "__debezium_unavailable_value"


def reader(**options):
    return DebeziumReader(key_text=key_text, **options)


# -- events that describe no change ----------------------------------------------------------------


def test_other_events_are_skipped_by_name():
    """Heartbeats, transactions, messages and tombstones are counted, with and without schema."""
    found = reader()
    for value, key in recorded("other"):
        assert found.read(value, key) is None
        assert found.read(json.dumps(value) if value else value, json.dumps(key)) is None
    assert found.skipped == {"heartbeat": 4, "transaction": 4, "message": 4, "tombstone": 2}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"ts_ms": 1_800_000_000_000}, "heartbeat"),
        ({"status": "END", "id": "571:1", "ts_ms": 1, "event_count": 2, "data_collections": []},
         "transaction"),
        ({"source": {"server": "shop"}, "position": {}, "databaseName": "shop",
          "ddl": "CREATE TABLE person (id int)", "tableChanges": []}, "schema-change"),
        ({"source": {}, "ts_ms": 1, "databaseName": "shop", "schemaName": "dbo", "ddl": None,
          "tableChanges": [{"type": "ALTER"}]}, "schema-change"),
        ({"op": "m", "ts_ms": 1, "source": {}, "message": {"prefix": "a"}}, "message"),
        ("", "tombstone"),
    ],
)  # fmt: skip
def test_kinds_of_other_events(value, kind):
    found = reader()
    assert found.read(value) is None
    assert found.skipped == {kind: 1}


@pytest.mark.parametrize(
    "flattened", [{"id": 1, "ts_ms": 5}, {"status": "new", "id": 1}, {"ddl": "x"}]
)
def test_rows_without_envelope_are_no_other_events(flattened):
    """A row that ExtractNewRecordState has flattened is malformed, whatever its columns."""
    with pytest.raises(EnvelopeError, match="operation None"):
        reader().read(flattened)


@pytest.mark.parametrize("found", ["[]", "{}", "0", '{"op": "x"}', {"payload": {"op": "c"}}])
def test_malformed_events_are_refused(found):
    """Other texts and events raise ``EnvelopeError``."""
    with pytest.raises(EnvelopeError):
        reader().read(found)


def test_a_truncated_table_is_refused():
    """Skipping it would leave its records elsewhere without a word."""
    with pytest.raises(ChangeRefusedError, match="truncated"):
        reader().read(event("postgresql", "t", lsn=7))


# -- CloudEvents -----------------------------------------------------------------------------------


def test_events_wrapped_in_cloudevents():
    """Debezium's CloudEventsConverter gives the same change as its plain events."""
    value, _ = recorded("cloudevents")[0]
    options = {"rule": "field", "trust_nulls": True}
    change = reader(**options).read(json.dumps(value), KEY)
    plain, key = recorded("adaptive")[0]
    other = reader(**options).read(plain, key)
    assert (change.op, change.type, change.key, change.data) == (PATCH, "person", "1", other.data)
    assert change.version.millis == int(value["iodebeziumtsms"])
    assert change.version.node == int(value["iodebeziumlsn"])
    assert change.source == "crm"


@pytest.mark.parametrize("connector", ["mysql", "sqlserver", "oracle"])
def test_positions_in_cloudevents(connector):
    """The extension attributes have the names of the source block without underscores."""
    source = {
        "mysql": {"file": "mysql-bin.000003", "pos": 154, "row": 1, "server_id": 7},
        "sqlserver": {"change_lsn": None, "commit_lsn": "00000027:00000ac0:0002"},
        "oracle": {"scn": "7", "commit_scn": "9", "rs_id": "0x000082.0000d1cf.0010", "ssn": 1},
    }[connector]
    plain = event(connector, **source)
    attributes = {
        f"iodebezium{name.replace('_', '')}": None if value is None else str(value)
        for name, value in plain["source"].items()
    }
    wrapped = {
        "specversion": "1.0",
        "id": "name:src",
        "source": f"/debezium/{connector}/src",
        "type": f"io.debezium.connector.{connector}.DataChangeEvent",
        "datacontenttype": "application/json",
        "iodebeziumop": "u",
        "data": {"before": plain["before"], "after": plain["after"]},
        **attributes,
    }
    change = reader().read(wrapped, KEY)
    assert change.version == reader().read(plain, KEY).version
    assert change.data == plain["after"]


def test_other_cloudevents_are_named():
    """Each reader says which one reads the event."""
    foreign = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {}}
    with pytest.raises(EnvelopeError, match="from_cloudevent"):
        reader().read(foreign)
    avro = foreign | {"iodebeziumop": "u", "datacontenttype": "application/avro", "data": "AAA="}
    with pytest.raises(EnvelopeError, match="avro"):
        reader().read(avro)
    value, _ = recorded("cloudevents")[0]
    with pytest.raises(EnvelopeError, match="DebeziumReader"):
        from_cloudevent(value)


# -- patches ---------------------------------------------------------------------------------------


def test_an_update_with_the_row_before_is_a_patch_of_what_changed():
    """Where records are merged per field, a value that did not change gets no new version."""
    row = {"id": 1, "name": "Ann", "city": "Bern", "note": None}
    update = mysql(4) | {"before": row, "after": row | {"name": "Bea"}}
    change = reader(rule="field").read(update, KEY)
    assert (change.op, change.data) == (PATCH, {"name": "Bea"})
    assert change.known.values == {"city": "Bern", "note": None}
    assert reader().read(update, KEY).op == PUT


def test_an_update_without_the_row_before_is_a_patch_of_its_columns():
    """It must not blank the fields that the table does not have."""
    update = event("postgresql", after={"id": 1, "name": "Bea"}, lsn=7)
    change = reader(rule="field").read(update, KEY)
    assert (change.op, change.data) == (PATCH, {"name": "Bea"})
    assert change.known.values == {}
    with pytest.raises(ChangeRefusedError, match="argument key"):
        reader(rule="field").read(update)


def test_an_update_that_changes_nothing_is_skipped():
    row = {"id": 1, "name": "Ann"}
    found = reader(rule="field")
    assert found.read(mysql(4) | {"before": row, "after": row}, KEY) is None
    assert found.skipped == {"unchanged": 1}


def test_null_before_an_update_in_postgres_is_no_value():
    """A row before the update may hold only the replica identity; the rest is null."""
    before = {"id": 1, "email": "a@x", "name": None, "bio": None}
    after = {"id": 1, "email": "b@x", "name": None, "bio": P}
    update = event("postgresql", before=before, after=after, lsn=7)
    change = reader(rule="field").read(update, KEY)
    assert change.data == {"email": "b@x", "name": None}
    with pytest.raises(ChangeRefusedError, match="bio"):
        reader().read(update, KEY)


def test_values_come_from_the_row_before():
    """What the row after lacks did not change, so the row before has it."""
    before = {"id": 1, "name": "Ann", "bio": "long"}
    update = event("postgresql", before=before, after=before | {"name": "Bea", "bio": P}, lsn=7)
    assert reader().read(update, KEY).data == {"id": 1, "name": "Bea", "bio": "long"}
    change = reader(rule="field").read(update, KEY)
    assert (change.data, change.known.values) == ({"name": "Bea"}, {"bio": "long"})
    lacking = before | {"bio": P}
    update = event("postgresql", before=lacking, after=lacking | {"name": "Bea"}, lsn=7)
    change = reader(rule="field").read(update, KEY)
    assert (change.data, change.known) == ({"name": "Bea"}, None)


def test_a_patch_needs_the_key_of_the_message():
    """Without it, the key columns are unknown, and a patch must not name them."""
    value, _ = recorded("schemaless")[0]
    with pytest.raises(ChangeRefusedError, match="argument key"):
        reader(rule="field").read(value)


def test_equal_events_give_equal_changes():
    value, key = recorded("adaptive")[0]
    one, two = (reader(rule="field", trust_nulls=True).read(value, key) for _ in range(2))
    assert one == two


# -- the effect in a store -------------------------------------------------------------------------


class Person(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    bio: str | None = None
    tags: list[str] = Field(default_factory=list)


def test_an_update_without_large_values_leaves_them_in_the_store():
    """Neither a placeholder nor a default replaces the value that did not change."""
    with Store("crm", MemoryAccessor(Person)) as store:
        now = int(time.time() * 1000)
        row = {"id": 1, "name": "Ann", "bio": "long", "tags": ["a", "b"]}
        found = reader(rule="field", type="Person")
        created = event("postgresql", "c", after=row, lsn=5, ts_ms=now - 2000, read=now)
        updated = event(
            "postgresql", after=row | {"name": "Bea", "bio": P, "tags": [P]}, lsn=9,
            ts_ms=now - 1000, read=now,
        )  # fmt: skip
        changes = [found.read(one, KEY) for one in (created, updated)]
        for change in changes:
            (settled,) = apply(store, [change], clock=Clock())
            assert settled.outcome == "applied", settled.error
        assert store[Person, 1].raw() == row | {"name": "Bea"}


def test_an_update_leaves_fields_that_the_table_lacks():
    """A source may hold only some of the fields."""
    with Store("crm", MemoryAccessor(Person)) as store:
        store.add(Person(id=1, name="Ann", bio="long", tags=["a"]))
        now = int(time.time() * 1000) + 1000
        update = event("postgresql", after={"id": 1, "name": "Bea"}, lsn=9, ts_ms=now, read=now)
        change = reader(rule="field", type="Person").read(update, KEY)
        apply(store, [change], clock=Clock())
        assert store[Person, 1].raw() == {"id": 1, "name": "Bea", "bio": "long", "tags": ["a"]}


def test_a_store_that_missed_a_record_takes_it_from_an_update():
    """If the row is whole. A row without its large values waits for the rest."""
    now = int(time.time() * 1000)
    row = {"id": 1, "name": "Bea", "bio": "long", "tags": []}
    for bio, outcome in (("long", "applied"), (P, "pending")):
        update = event("postgresql", after=row | {"bio": bio}, lsn=9, ts_ms=now, read=now)
        change = reader(rule="field", type="Person").read(update, KEY)
        with Store("crm", MemoryAccessor(Person)) as store:
            (settled,) = apply(store, [change], clock=Clock())
            assert settled.outcome == outcome
            assert store.get(Person, 1) is None or store[Person, 1].raw() == row


def test_the_last_change_in_the_log_wins_in_the_store():
    """Of two updates of a record, the later in the log has the earlier time."""
    with Store("crm", MemoryAccessor(Person)) as store:
        now = int(time.time() * 1000)
        found = reader(type="Person")
        for pos, name, ago in ((100, "A1", 9000), (300, "A2", 1000), (500, "B", 4000)):
            update = mysql(pos, ts_ms=(now - ago) // 1000 * 1000, read=now)
            update["after"] = {"id": 1, "name": name, "bio": None, "tags": []}
            (settled,) = apply(store, [found.read(update, KEY)], clock=Clock())
            assert settled.outcome == "applied"
        assert store[Person, 1].name == "B"


def test_deletes_and_flat_events_without_key():
    """The key may come from the row that is deleted."""
    value, key = recorded("adaptive")[1]
    for change in (reader().read(value, key), reader().read(value)):
        assert (change.op, change.key, change.data) == (DELETE, "2", None)
    assert not LARGE & from_debezium(with_schema(1, {}), key_text=key_text).data.keys()
