"""Databases with tables of somebody else, and a foreign writer's connection to them."""

from __future__ import annotations

import time
import uuid
from typing import Any

import sqlalchemy as sa

from eventsync.changes.change import Change
from eventsync.changes.clock import Version

__all__ = ["ForeignDatabase", "change_of", "fresh_database"]


def fresh_database(server: str) -> str:
    """Return the URL of a new, empty schema on the server at that URL."""
    name = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    if server.startswith("postgresql"):
        return f"{server}?options=-csearch_path%3D{name},public"
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


class ForeignDatabase:
    """One database and a foreign writer's connection to it. ``kind``: the dialect's name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        self.kind = self.engine.dialect.name

    def run(self, *statements: str) -> None:
        """Run and commit statements as a foreign writer, without parameters."""
        raw = self.engine.raw_connection()
        try:
            cursor = raw.cursor()
            for statement in statements:
                cursor.execute(statement)
            raw.commit()
        finally:
            raw.close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a foreign reader sees."""
        raw = self.engine.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute(statement)
            return [tuple(row) for row in cursor.fetchall()]
        finally:
            raw.close()


def change_of(type: str, key: str, step: int, data: dict[str, Any] | None, op: str = "") -> Change:
    """Return a put, patch (``op``) or delete (no data) ; ``step`` orders them, in milliseconds."""
    moment = int(time.time() * 1000) - 1000 + step
    op = op or ("delete" if data is None else "put")
    return Change(type=type, key=key, op=op, version=Version.of(moment, 0, 7), data=data)
