"""Records in MongoDB: a document for each, and their versions in a collection beside them.

It names what users import. It knows nothing of other stores. It needs the extra ``mongo``.
"""

from __future__ import annotations

from eventsync.stores.mongo.accessor import MongoAccessor
from eventsync.stores.mongo.index import MongoIndex

__all__ = ["MongoAccessor", "MongoIndex"]
