"""One Celery task a change; run by itself it publishes the rows of a file.

What is set is what keeps a change safe: acknowledged late, and on RabbitMQ confirmed by a quorum
queue. All else is as Celery has it.
"""

from __future__ import annotations

import os
from typing import Any

import by_hand
import start
from celery import Celery
from celery.signals import worker_ready
from sqlalchemy import create_engine

app = Celery("celery_app", broker=os.environ["BROKER"])
app.conf.task_acks_late = True
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
if os.environ["BROKER"].startswith("amqp"):
    app.conf.task_default_queue_type = "quorum"
    app.conf.worker_detect_quorum_queues = True
    app.conf.broker_transport_options = {"confirm_publish": True}

engine = create_engine(os.environ["DATABASE"])
write = getattr(by_hand, os.environ.get("WRITE", "merge"))


@app.task(name="apply_change")
def apply_change(row: dict[str, Any]) -> None:
    """Write one changed customer."""
    write(engine, row)


@worker_ready.connect
def ready(**given: Any) -> None:
    """Say that tasks are taken from now on."""
    start.ready()


if __name__ == "__main__":
    for row in start.rows():
        apply_change.delay(row)
