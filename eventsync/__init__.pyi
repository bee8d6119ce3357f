"""The public names of eventsync, each stated once; loaded when first used."""

from .broker.batch_publisher import BatchPublisher as BatchPublisher
from .broker.bus import Bus as Bus
from .broker.spool import Spool as Spool
from .changes.change import Change as Change
from .changes.clock import (
    Clock as Clock,
)
from .changes.clock import (
    MarkFile as MarkFile,
)
from .changes.clock import (
    Version as Version,
)
from .config import (
    Settings as Settings,
)
from .config import (
    location as location,
)
from .engine.accessor import Accessor as Accessor
from .engine.gate import Outcome as Outcome
from .engine.registry import StoreRegistry as StoreRegistry
from .engine.store import Store as Store
from .engine.synchronize import SyncReport as SyncReport
from .errors import (
    AlreadyExistsError as AlreadyExistsError,
)
from .errors import (
    BusError as BusError,
)
from .errors import (
    BusUnavailableError as BusUnavailableError,
)
from .errors import (
    ChangeRefusedError as ChangeRefusedError,
)
from .errors import (
    ClockDriftError as ClockDriftError,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DependencyError as DependencyError,
)
from .errors import (
    EnvelopeError as EnvelopeError,
)
from .errors import (
    EventSyncError as EventSyncError,
)
from .errors import (
    FieldError as FieldError,
)
from .errors import (
    FilterError as FilterError,
)
from .errors import (
    NotFoundError as NotFoundError,
)
from .errors import (
    RecordError as RecordError,
)
from .errors import (
    RejectedError as RejectedError,
)
from .errors import (
    SignatureError as SignatureError,
)
from .errors import (
    StoreError as StoreError,
)
from .errors import (
    StoreUnavailableError as StoreUnavailableError,
)
from .errors import (
    SuspiciousReadError as SuspiciousReadError,
)
from .errors import (
    UniqueError as UniqueError,
)
from .errors import (
    UnroutableError as UnroutableError,
)
from .errors import (
    ValueRefusedError as ValueRefusedError,
)
from .index import (
    FileIndex as FileIndex,
)
from .index import (
    Index as Index,
)
from .index import (
    MemoryIndex as MemoryIndex,
)
from .records.query import Query as Query
from .records.record import (
    Field as Field,
)
from .records.record import (
    Record as Record,
)
from .records.view import (
    Convert as Convert,
)
from .records.view import (
    View as View,
)
from .stores.identity import IdentityMap as IdentityMap
from .verify import (
    Comparison as Comparison,
)
from .verify import (
    compare as compare,
)
from .worker.worker import Worker as Worker

__version__: str
