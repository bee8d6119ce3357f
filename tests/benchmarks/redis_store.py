"""Rows per second of batch apply into Redis, beside what plain redis-py does with the same rows.

Run it from the project's root: ``python tests/benchmarks/redis_store.py``. Every way is given the
same rows, half of them new and half changing one that came before, in batches of the same size.
``guarded``: one Lua call a batch that compares a version in hex and sets a JSON string, arguments
made beforehand; ``MSET``: no version at all. Use the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from throughput import Customer, rows

from eventsync.change import PUT, Change
from eventsync.clock import Clock
from eventsync.interchange import to_json
from eventsync.record import Record
from eventsync.store import Store
from eventsync.stores.redis import RedisAccessor

sys.path.append(str(Path(__file__).parents[1]))

from servers.redis import RedisServer  # tests are no package

GUARDED = """
local written = 0
for i = 1, #KEYS do
  local held = redis.call('HGET', 'version', KEYS[i])
  if not held or held < ARGV[2 * i - 1] then
    redis.call('HSET', 'version', KEYS[i], ARGV[2 * i - 1])
    redis.call('SET', KEYS[i], ARGV[2 * i])
    written = written + 1
  end
end
return written
"""


def changes(made: list[dict], record_type: type[Record]) -> list[Change]:
    """The rows as puts, each at a version of its own; under the per-field rule all are new."""
    clock = Clock()
    coerced = [record_type(**row).raw() for row in made]
    name = record_type.__record__.name
    puts = [
        Change(type=name, key=str(row["id"]), op=PUT, version=clock.tick(), data=row)
        for row in coerced
    ]
    for put in puts:
        put.digest  # noqa: B018  # decoding has its own benchmark
    return puts


def batches(items: list, size: int) -> list[dict]:
    """In batches of one put a key, as the worker coalesces them."""
    return [
        {change.key: [change] for change in items[start : start + size]}
        for start in range(0, len(items), size)
    ]


def timed(what: str, count: int, run, limit: float | None = None) -> float:
    started = time.perf_counter()
    run()
    rate = count / (time.perf_counter() - started)
    beside = f"   {rate / limit:5.2f} of guarded" if limit else ""
    print(f"{what:34} {rate:10,.0f} rows/s{beside}")
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=500)
    options = parser.parse_args()
    made = rows(options.rows, seed=7)
    per_field = type("Customer", (Customer,), {"__module__": __name__}, rule="field")
    with RedisServer() as server:
        client = server.client()
        puts = changes(made, Customer)
        raw = [(p.key, p.version.hex(), json.dumps(to_json(p.data))) for p in puts]
        script = client.register_script(GUARDED)
        size = options.batch

        def guarded() -> None:
            for start in range(0, len(raw), size):
                chunk = raw[start : start + size]
                arguments = [part for _, *parts in chunk for part in parts]
                script(keys=[key for key, *_ in chunk], args=arguments)

        def mset() -> None:
            for start in range(0, len(raw), size):
                client.mset({key: text for key, _, text in raw[start : start + size]})

        def hset() -> None:
            fields = [(p.key, {n: str(held) for n, held in p.data.items()}) for p in puts]
            for start in range(0, len(fields), size):
                pipeline = client.pipeline(transaction=False)
                for key, mapping in fields[start : start + size]:
                    pipeline.hset(key, mapping=mapping)
                pipeline.execute()

        limit = timed("redis-py, guarded Lua, JSON", len(raw), guarded)
        client.flushdb()
        timed("redis-py, MSET, JSON, no version", len(raw), mset, limit)
        client.flushdb()
        timed("redis-py, HSET pipelined, no version", len(raw), hset, limit)
        for layout in ("hash", "json"):
            for rule, record_type in (("record", Customer), ("field", per_field)):
                client.flushdb()
                accessor = RedisAccessor(record_type, server.url, layout=layout)
                with Store("crm", accessor):
                    work = batches(changes(made, record_type), size)

                    def applied(accessor=accessor, work=work) -> None:
                        for batch in work:
                            accessor.apply(batch)

                    timed(f"eventsync, {layout}, per {rule}", len(made), applied, limit)
        client.close()


if __name__ == "__main__":
    main()
