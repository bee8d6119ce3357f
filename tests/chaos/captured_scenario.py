"""The stores and processes of ``captured.py``: a database that others write to, and its copy."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog

from eventsync.broker.bus import Bus
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.capture_service import CaptureService
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

__all__ = ["TYPES", "Customer", "Item", "Place", "Setting", "capture", "work"]


class Customer(Record, rule="field"):
    """Merged per field; others alter its table meanwhile."""

    id: int = Field(key=True)
    name: str = ""
    mail: str | None = None
    amount: int = 0


class Item(Record):
    """Merged per record; its key is a text that others change."""

    code: str = Field(key=True, length=40)
    customer: int = 0
    text: str | None = None


class Setting(Record):
    """A few rows, which are truncated now and then."""

    name: str = Field(key=True, length=40)
    value: str = ""


TYPES = (Customer, Item, Setting)


@dataclass(frozen=True)
class Place:
    """Where one database, its copy and their broker are, for each process to open by itself.

    ``kind``: the kind of the change source. ``url``: the database that others write to.
    """

    name: str
    kind: str
    url: str
    folder: Path

    def source(self) -> Store:
        """The store that others write to. Nothing but its change source finds their writes."""
        return Store("source", *(SqlAccessor(one, self.url) for one in TYPES), capture=self.kind)

    def copy(self) -> Store:
        """The store that must hold the same."""
        url = f"sqlite:///{self.folder}/copy.db"
        return Store("copy", *(SqlAccessor(one, url, create=True) for one in TYPES))

    def bus(self) -> Bus:
        """The embedded broker."""
        return Bus(f"sqlite:///{self.folder}/broker.db", lease=3.0)


def _log_to(path: Path) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(path.open("a", buffering=1, encoding="utf-8")),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


def work(place: Place, name: str) -> None:
    """Apply the changes in the queue of one of the two stores."""
    _log_to(place.folder / f"{name}.log")
    stores = {"source": place.source, "copy": place.copy}
    peers = [make() for other, make in stores.items() if other != name]
    with place.bus() as bus:
        worker = Worker(stores[name](), bus, options=Options(retry_for=10.0), peers=peers)
        run(worker, grace=20.0)


def capture(place: Place) -> None:
    """Capture what others write."""
    _log_to(place.folder / "capture.log")
    with place.bus() as bus:
        try:
            run(CaptureService(place.source(), bus), grace=20.0)
        except ConfigError as error:
            structlog.get_logger().error("the capture ends", error=str(error), hint=error.hint)
            sys.exit(78)
