"""Databases of the run's own, which wait for the disk as by default.

It owns which there are. It knows nothing of what is written to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from servers.redis import RedisServer

__all__ = ["STORES", "emptied", "running_store"]

STORES = ("sqlite", "postgres", "mariadb", "redis")


@contextmanager
def running_store(store: str, folder: Path, *, options: Sequence[str] = ()) -> Iterator[str]:
    """The URL of an empty database that is there for the block. ``options``: of PostgreSQL."""
    if store == "sqlite":
        yield f"sqlite:///{folder / 'crm.db'}"
        return
    servers = {
        "postgres": lambda: PostgresServer(durable=True, options=options),
        "mariadb": lambda: MariaServer(durable=True),
        "redis": RedisServer,
    }
    with servers[store]() as server:
        yield server.url


def emptied(url: str) -> str:
    """The same URL, of a database in which there is nothing any more."""
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:///"))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
    elif url.startswith("redis:"):
        with redis.Redis.from_url(url) as client:
            client.flushdb()
    else:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            tables = sa.MetaData()
            tables.reflect(connection)
            tables.drop_all(connection)
        engine.dispose()
    return url
