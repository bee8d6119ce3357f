"""eventsync keeps the same records consistent across unlike stores, driven by their changes.

This module is the public face: it names what users import, and imports nothing before it is asked
for, so that ``import eventsync`` costs nothing and needs no optional dependency. It must not know
what any of it does. The stores are imported by their own names, as in
``from eventsync.stores.sql import SqlAccessor``, since each may need an extra.
"""

from __future__ import annotations

TYPE_CHECKING = False  # in place of that of typing, which would be imported for it alone
if TYPE_CHECKING:
    from typing import Any

    from eventsync.accessor import Accessor
    from eventsync.bus import Bus
    from eventsync.change import Change
    from eventsync.clock import Clock, MarkFile, Version
    from eventsync.config import Settings
    from eventsync.errors import (
        AlreadyExistsError,
        BusError,
        BusUnavailableError,
        ChangeRefusedError,
        ClockDriftError,
        ConfigError,
        DependencyError,
        EnvelopeError,
        EventSyncError,
        FieldError,
        FilterError,
        NotFoundError,
        RecordError,
        RejectedError,
        SignatureError,
        StoreError,
        StoreUnavailableError,
        SuspiciousReadError,
        UnroutableError,
        ValueRefusedError,
    )
    from eventsync.gate import Outcome
    from eventsync.index import FileIndex, Index, MemoryIndex
    from eventsync.publisher import BatchPublisher
    from eventsync.query import Query
    from eventsync.record import Field, Record
    from eventsync.registry import StoreRegistry, SyncReport
    from eventsync.spool import Spool
    from eventsync.store import Store
    from eventsync.verify import Comparison, compare
    from eventsync.view import Convert, View
    from eventsync.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Accessor",
    "AlreadyExistsError",
    "BatchPublisher",
    "Bus",
    "BusError",
    "BusUnavailableError",
    "Change",
    "ChangeRefusedError",
    "Clock",
    "ClockDriftError",
    "Comparison",
    "ConfigError",
    "Convert",
    "DependencyError",
    "EnvelopeError",
    "EventSyncError",
    "Field",
    "FieldError",
    "FileIndex",
    "FilterError",
    "Index",
    "MarkFile",
    "MemoryIndex",
    "NotFoundError",
    "Outcome",
    "Query",
    "Record",
    "RecordError",
    "RejectedError",
    "Settings",
    "SignatureError",
    "Spool",
    "Store",
    "StoreError",
    "StoreRegistry",
    "StoreUnavailableError",
    "SuspiciousReadError",
    "SyncReport",
    "UnroutableError",
    "ValueRefusedError",
    "Version",
    "View",
    "Worker",
    "__version__",
    "compare",
]

# Where each name lives; what is not listed is an error.
_HOMES = {
    "Accessor": "accessor",
    "BatchPublisher": "publisher",
    "Bus": "bus",
    "Change": "change",
    "Clock": "clock",
    "Comparison": "verify",
    "Convert": "view",
    "Field": "record",
    "FileIndex": "index",
    "Index": "index",
    "MarkFile": "clock",
    "MemoryIndex": "index",
    "Outcome": "gate",
    "Query": "query",
    "Record": "record",
    "Settings": "config",
    "Spool": "spool",
    "Store": "store",
    "StoreRegistry": "registry",
    "SyncReport": "registry",
    "Version": "clock",
    "View": "view",
    "Worker": "worker",
    "compare": "verify",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, "errors" if name in __all__ else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
