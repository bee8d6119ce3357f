"""Records in Redis: a hash or a JSON string for each, and their versions beside them in one slot.

It names what users import. It knows nothing of other stores.
"""

from __future__ import annotations

from eventsync.stores.redis.accessor import RedisAccessor
from eventsync.stores.redis.index import RedisIndex

__all__ = ["RedisAccessor", "RedisIndex"]
