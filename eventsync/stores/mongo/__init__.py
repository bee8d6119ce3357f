"""Records in MongoDB: a document for each, and their versions in a collection beside them.

It names what users import. It knows nothing of other stores. It needs the extra ``mongo``.
"""

from __future__ import annotations

from eventsync.errors import ConfigError

try:
    import pymongo as _pymongo  # noqa: F401
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError(
        "the MongoDB store needs pymongo", hint="pip install 'eventsync[mongo]'"
    ) from error

from eventsync.stores.mongo.accessor import MongoAccessor
from eventsync.stores.mongo.index import MongoIndex

__all__ = ["MongoAccessor", "MongoIndex"]
