"""A FastStream consumer, one message a change, an upsert and a commit each.

Run with ``publish`` and a file it publishes the file's rows. One message is handled at a time, in
order: without a version check the last to be written wins, so they may not pass one another.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import start
from faststream import FastStream
from pydantic import BaseModel

BROKER = os.environ["BROKER"]


class Customer(BaseModel):
    id: int
    name: str
    email: str
    street: str
    city: str
    country: str
    balance: Decimal
    visits: int
    score: float
    active: bool
    born: dt.date
    token: UUID


NAMES = list(Customer.model_fields)
UPSERT = (
    f"INSERT INTO customer ({', '.join(NAMES)}) VALUES ({', '.join(f'%({n})s' for n in NAMES)})"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in NAMES if name != "id")
)

destination: dict[str, Any]
if BROKER.startswith("amqp"):
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
    from faststream.rabbit.schemas.queue import QueueType

    broker: Any = RabbitBroker(BROKER, default_channel=Channel(prefetch_count=1), logger=None)
    queue = RabbitQueue("customers", queue_type=QueueType.QUORUM, durable=True)
    subscriber = broker.subscriber(queue)
    destination = {"queue": queue, "persist": True}
else:
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(BROKER, logger=None)
    subscriber = broker.subscriber(
        stream=StreamSub("customers", group="crm", consumer="crm-1", last_id=">")
    )
    destination = {"stream": "customers"}

app = FastStream(broker, logger=None)
connection: psycopg.AsyncConnection


@app.on_startup
async def connect() -> None:
    """Open the one connection."""
    global connection
    url = os.environ["DATABASE"].replace("+psycopg", "")
    connection = await psycopg.AsyncConnection.connect(url)


@app.after_startup
async def ready() -> None:
    """Say that messages are taken from now on."""
    start.ready()


@subscriber
async def apply_change(customer: Customer) -> None:
    """Write one changed customer."""
    async with connection.transaction():
        await connection.execute(UPSERT, customer.model_dump())


async def publish() -> None:
    """Publish the rows of a file, one at a time."""
    async with broker:
        for row in start.rows():
            await broker.publish(Customer(**row), **destination)


if __name__ == "__main__":
    asyncio.run(publish() if "publish" in sys.argv else app.run())
