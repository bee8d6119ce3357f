"""Debezium's engine in this process, and an upsert of each batch that it hands over."""

from __future__ import annotations

import datetime as dt
import json
import os
from typing import Any

import psycopg
import start
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine

NAMES = (
    *("id", "name", "email", "street", "city", "country"),
    *("balance", "visits", "score", "active", "born", "token"),
)
UPSERT = (
    f"INSERT INTO customer ({', '.join(NAMES)}) VALUES ({', '.join(f'%({n})s' for n in NAMES)})"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in NAMES if name != "id")
)
EPOCH = dt.date(1970, 1, 1)


class Upserts(BasePythonChangeHandler):
    """Writes a batch in one transaction; of a record that changed twice in it only the last."""

    def __init__(self) -> None:
        self.connection = psycopg.connect(os.environ["DATABASE"].replace("+psycopg", ""))

    def handleJsonBatch(self, records: list[Any]) -> None:  # noqa: N802  # Debezium's name
        """Write what the engine hands over."""
        rows: dict[int, dict[str, Any]] = {}
        for record in records:
            row = json.loads(str(record.value()))["after"]
            row["born"] = EPOCH + dt.timedelta(days=row["born"])
            rows[row["id"]] = row
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(UPSERT, list(rows.values()))


properties = {
    "name": "engine",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "database.hostname": "127.0.0.1",
    "database.port": os.environ["SOURCE_PORT"],
    "database.user": "eventsync",
    "database.password": "",
    "database.dbname": "test",
    "topic.prefix": "crm",
    "table.include.list": "public.customer",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    "snapshot.mode": "no_data",
    "decimal.handling.mode": "string",
    "tombstones.on.delete": "false",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.storage.file.filename": os.path.abspath("offsets.dat"),
    "offset.flush.interval.ms": "1000",
}

if __name__ == "__main__":
    engine = DebeziumJsonEngine(properties=properties, handler=Upserts())
    engine.engine  # noqa: B018  # starts Java, so that it is known whether there is one
    start.ready()
    engine.run()
