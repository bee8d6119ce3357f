"""A dlt pipeline of one table, merged by its key: a run each time it is told to go on."""

from __future__ import annotations

import os
import sys

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "CRITICAL"

import dlt
import start
from dlt.sources.sql_database import sql_table

if __name__ == "__main__":
    pipeline = dlt.pipeline(
        "customers",
        pipelines_dir=os.getcwd(),
        destination=dlt.destinations.postgres(os.environ["DATABASE"]),
        dataset_name="crm",
    )
    start.ready()
    for _ in sys.stdin:
        table = sql_table(
            os.environ["SOURCE"],
            table="customer",
            incremental=dlt.sources.incremental("changed"),
            backend=os.environ["BACKEND"],
            write_disposition={"disposition": "merge", "strategy": os.environ["STRATEGY"]},
            primary_key="id",
        )
        pipeline.run(table)
        start.ready()
