"""Records in MongoDB, each a document, with their versions in a collection of their own.

Needs the extra ``mongo``.
"""

from __future__ import annotations

from eventsync.errors import ConfigError

try:
    import pymongo as _pymongo  # noqa: F401
except ImportError as error:  # pragma: no cover - not run where pymongo is installed
    raise ConfigError(
        "the MongoDB store needs pymongo", hint="pip install 'eventsync[mongo]'"
    ) from error

from eventsync.stores.mongo.accessor import MongoAccessor
from eventsync.stores.mongo.index import MongoIndex

__all__ = ["MongoAccessor", "MongoIndex"]
