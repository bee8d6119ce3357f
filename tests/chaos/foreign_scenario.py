"""The stores of ``foreign_writers.py``, its worker processes, and its operator.

``Note`` merges as a whole (PostgreSQL, a CSV file, Redis), ``Person`` by its fields (PostgreSQL,
JSON documents, Redis). Workers capture each store a few times a second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import structlog

from eventsync.broker.bus import Bus
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

__all__ = ["CONFIGURATION", "FIELDS", "RULES", "TABLE", "Places", "synchronize", "work"]


class Note(Record):
    """Merged per record."""

    id: int = Field(key=True)
    title: str
    pages: int


class Person(Record, rule="field"):
    """Merged per field."""

    id: int = Field(key=True)
    name: str = ""
    city: str = ""
    score: int = 0
    email: str | None = None


RULES: Final = {"Note": "record", "Person": "field"}
FIELDS: Final = {
    "Note": ("title", "pages"),
    "Person": ("name", "city", "score", "email"),
}
CONFIGURATION: Final = 78
"""The exit code of a worker whose configuration is wrong."""
TABLE: Final = "Note"
"""The type whose documents are the rows of one CSV file."""


@dataclass(frozen=True)
class Places:
    """Where everything is, for each process to open it by itself."""

    STORES: ClassVar[tuple[str, ...]] = ("sql", "docs", "cache")

    folder: Path
    database: str
    cache: str

    @property
    def documents(self) -> Path:
        """The folder that editors edit in."""
        return self.folder / "docs"

    def store(self, name: str) -> Store:
        """One of the three stores."""
        often = {"capture_every": 0.3, "capture_whole_every": 0.6}
        if name == "sql":
            tables = [SqlAccessor(t, self.database, create=True) for t in (Note, Person)]
            return Store(name, *tables, **often)
        if name == "docs":
            return Store(
                name,
                CsvAccessor(Note, self.documents / "Note.csv"),
                JsonFolderAccessor(Person, self.documents / "Person"),
                index=self.folder / "docs.versions.db",
                **often,
            )
        return Store(name, *(RedisAccessor(t, self.cache) for t in (Note, Person)), **often)

    def bus(self) -> Bus:
        """The embedded broker."""
        return Bus(f"sqlite:///{self.folder}/broker.db", lease=3.0)


def _log_to(path: Path) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(path.open("a", buffering=1, encoding="utf-8")),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


def work(places: Places, name: str) -> None:
    """What a worker process does."""
    _log_to(places.folder / f"{name}.log")
    with places.bus() as bus:
        peers = [places.store(other) for other in Places.STORES if other != name]
        options = Options(prefetch=16, retry_for=10.0)
        try:
            run(Worker(places.store(name), bus, options=options, peers=peers), grace=20.0)
        except ConfigError as error:
            structlog.get_logger().error("the worker ends", error=str(error))
            sys.exit(CONFIGURATION)


def synchronize(places: Places, sources: Sequence[str], target: str) -> None:
    """Fill a store again from others, as ``eventsync sync --from .. --to ..`` does."""
    _log_to(places.folder / "operator.log")
    stores = [places.store(name) for name in Places.STORES]
    with places.bus() as bus, StoreRegistry(*stores).open(publisher=bus) as registry:
        registry.synchronize(sources=sources, targets=[target])


def accept_deletes(places: Places, source: str) -> None:
    """Take what is missing for deleted, as ``eventsync sync --from .. --allow-deletes`` does."""
    _log_to(places.folder / "operator.log")
    stores = [places.store(name) for name in Places.STORES]
    with places.bus() as bus, StoreRegistry(*stores).open(publisher=bus) as registry:
        registry.synchronize(sources=[source], deletes=1.0)
