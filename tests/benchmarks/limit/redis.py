"""Rows that redis-py writes: hashes, by a pipeline or by one script a batch."""

from __future__ import annotations

from typing import Any, ClassVar

import redis
from benchmarks.limit.raw import Raw, Row, Stamped, Way, Ways, Write

from eventsync.records.record import Record

__all__ = ["Redis"]

# Versions travel as hexadecimal digits: what Lua's '<' makes of other bytes depends on the locale.
_SCRIPT = """
local step, apart = tonumber(ARGV[1]), ARGV[2] == 'apart'
for i = 1, #KEYS do
  local at = 3 + (i - 1) * step
  local held
  if apart then held = redis.call('HGET', 'versions', KEYS[i])
  else held = redis.call('HGET', KEYS[i], 'version') end
  if not held or held < ARGV[at] then
    if apart then redis.call('HSET', 'versions', KEYS[i], ARGV[at])
    else redis.call('HSET', KEYS[i], 'version', ARGV[at]) end
    redis.call('HSET', KEYS[i], unpack(ARGV, at + 1, at + step - 1))
  end
end
"""


class Redis(Raw):
    """Redis."""

    ways: ClassVar[Ways] = {
        Way.PLAIN: ("pipeline",),
        Way.IN_ROW: ("script",),
        Way.TABLES: ("script", "looked_up"),
    }

    def __init__(self, url: str, record: type[Record]) -> None:
        super().__init__(url, record)
        self.client = redis.Redis.from_url(url)

    def prepare(self, way: Way) -> None:
        self.client.flushdb()

    def close(self) -> None:
        self.client.close()

    def pipeline(self, way: Way) -> Write:
        """An HSET for each row, all at once."""

        def write(rows: Stamped) -> None:
            with self.client.pipeline(transaction=True) as pipe:
                for row, _ in rows:
                    pipe.hset(self._key(row), mapping=self._texts(row))
                pipe.execute()

        return write

    def script(self, way: Way) -> Write:
        """One script a batch, which compares versions and sets hashes."""
        script = self.client.register_script(_SCRIPT)
        apart = "apart" if way is Way.TABLES else ""

        def write(rows: Stamped) -> None:
            words: list[Any] = [1 + 2 * len(self.names), apart]
            for row, stamp in rows:
                words.append(stamp.hex() if apart else stamp[:16].hex())
                for name, held in row.items():
                    words += (name, str(held))
            script(keys=[self._key(row) for row, _ in rows], args=words)

        return write

    def looked_up(self, way: Way) -> Write:
        """The versions are read; a pipeline, atomic, of what is newer."""

        def write(rows: Stamped) -> None:
            keys = [self._key(row) for row, _ in rows]
            held: list[bytes | None] = self.client.hmget("versions", keys)
            stamps = {}
            with self.client.pipeline(transaction=True) as pipe:
                for key, version, (row, stamp) in zip(keys, held, rows, strict=True):
                    if version is None or version < stamp:
                        pipe.hset(key, mapping=self._texts(row))
                        stamps[key] = stamp
                if stamps:
                    pipe.hset("versions", mapping=stamps)
                pipe.execute()

        return write

    def _key(self, row: Row) -> str:
        return f"{self.type}:{row['id']}"

    @staticmethod
    def _texts(row: Row) -> dict[str, str]:
        return {name: str(held) for name, held in row.items()}
