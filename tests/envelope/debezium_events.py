"""Events of Debezium's connectors, for tests.

The files in the folder ``debezium`` hold messages that Debezium 3.6.3 sent for tables in PostgreSQL
15 whose large columns have external storage, one file for each configuration. ``binlog`` was sent
by its MySQL connector for MariaDB 10.11: a snapshot, two transactions that wait for each other, a
delete, and a new column. The other functions
write events in the documented form of connectors whose databases are not at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "debezium"

# What the large columns of the recorded table hold is not in its updates.
LARGE = {"bio", "tags", "nums", "bigs", "dates", "uuids", "photo", "doc", "doc2", "attrs", "x"}

TIME = 1_800_000_000_000


def recorded(name: str) -> list[tuple[Any, Any]]:
    """The values and keys of the messages in a file."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [(m["value"], m["key"]) for m in map(json.loads, lines)]


def key_text(columns: Any) -> str:
    return str(columns["id"])


def event(connector: str, op: str = "u", *, before: Any = None, after: Any = None, **source: Any):
    """An event without schema. ``read``: the time at which the connector read the change."""
    row = {"id": 1, "name": "Ann"}
    read = source.pop("read", TIME + 60_000)
    block = {"version": "3.6.3.Final", "connector": connector, "name": "src", "snapshot": "false"}
    block |= {"db": "shop", "table": "person", "ts_ms": TIME}
    return {
        "op": op,
        "before": before if before is not None else row if op == "d" else None,
        "after": None if op == "d" else row if after is None else after,
        "source": block | source,
        "ts_ms": read,
    }


def mysql(pos: int, seconds: float = 0, *, file: int = 3, row: int = 0, op: str = "u", **source):
    """A change in the log of MySQL, whose times are whole seconds."""
    return event(
        "mysql",
        op,
        **{"server_id": 223344, "gtid": None, "file": f"mysql-bin.{file:06}", "pos": pos}
        | {"row": row, "thread": 7, "query": None, "ts_ms": TIME + int(seconds * 1000)}
        | source,
    )


def sqlserver(change_lsn: str | None, commit_lsn: str, **source):
    return event(
        "sqlserver",
        **{"schema": "dbo", "change_lsn": change_lsn, "commit_lsn": commit_lsn}
        | {"event_serial_no": "1"}
        | source,
    )


def oracle(scn: str, **source):
    return event(
        "oracle",
        **{"schema": "INVENTORY", "txId": "6.28.807", "scn": scn, "commit_scn": scn}
        | {"rs_id": None, "ssn": 0, "redo_thread": 1}
        | source,
    )


def with_schema(value: Any, schema: dict[str, Any], *, op: str = "u", before: Any = None, **source):
    """An event of PostgreSQL with the columns ``id`` and ``value``, with its schema."""
    fields = [{"field": "id", "type": "int32"}, {**schema, "field": "value"}]
    struct = {"type": "struct", "fields": fields}
    payload = event(
        "postgresql",
        op,
        before=before,
        after={"id": 1, "value": value},
        lsn=27_049_872,
        **source,
    )
    sides = [{**struct, "field": "before"}, {**struct, "field": "after"}]
    return {"schema": {"type": "struct", "fields": sides}, "payload": payload}


KEY = {"id": 1}
