"""Records in Redis, each a hash or a JSON string, with their versions in the same hash slot."""

from __future__ import annotations

from eventsync.stores.redis.accessor import RedisAccessor
from eventsync.stores.redis.index import RedisIndex

__all__ = ["RedisAccessor", "RedisIndex"]
