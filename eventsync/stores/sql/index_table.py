"""The tables that eventsync adds to an SQL database: versions, outbox and marks."""

from __future__ import annotations

import sqlalchemy as sa

from eventsync.stores.sql.dialect import Dialect, Target

__all__ = ["IndexTables"]

_SHORT = 4
"""How many columns an entry has that carries neither detail nor echo."""


class IndexTables:
    """eventsync's own tables in one database, and how rows are written to them. Immutable.

    ``version``, ``outbox`` and ``mark`` describe the tables. The other attributes hold quoted names
    for statements: ``name`` and ``columns`` of the version table, and a ``Target`` for each kind of
    row. ``newer`` is the SQL condition that an incoming entry has a later version than the one that
    is there.
    """

    def __init__(self, engine: sa.Engine, dialect: Dialect, schema: str | None) -> None:
        self.dialect = dialect
        self.metadata = sa.MetaData(schema=schema)
        blob = sa.LargeBinary
        self.version = sa.Table(
            "eventsync_version",
            self.metadata,
            sa.Column("type", dialect.text_key(128), primary_key=True),
            sa.Column("key", dialect.text_key(512), primary_key=True),
            sa.Column("stamp", blob(49), nullable=False),
            sa.Column("presence", sa.SmallInteger, nullable=False),
            sa.Column("detail", blob),
            sa.Column("echo", blob),
            sqlite_with_rowid=False,
        )
        columns = self.version.c
        sa.Index(
            "eventsync_version_elsewhere",
            columns.type,
            columns.presence,
            columns.key,
            sqlite_where=columns.presence != 1,
            postgresql_where=columns.presence != 1,
        )
        self.outbox = sa.Table(
            "eventsync_outbox",
            self.metadata,
            sa.Column(
                "number",
                sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
                primary_key=True,
                autoincrement=True,
            ),
            sa.Column("type", dialect.text_key(128), nullable=False),
            sa.Column("body", blob(2**24 - 1), nullable=False),
            sqlite_autoincrement=True,
        )
        self.mark = sa.Table(
            "eventsync_mark",
            self.metadata,
            sa.Column("name", dialect.text_key(128), primary_key=True),
            sa.Column("text", sa.Text, nullable=False),
        )
        quote = engine.dialect.identifier_preparer
        self.name = quote.format_table(self.version)
        self.columns = tuple(quote.quote(column.name) for column in self.version.columns)
        kinds = tuple(dialect.kind(column.type) for column in self.version.columns)
        self.short_entries, self.entries = (
            Target(
                self.name,
                self.columns[:count],
                self.columns[:2],
                self.columns[2:],
                types=kinds[:count],
                sole=True,
            )
            for count in (_SHORT, len(self.columns))
        )
        sent = (self.outbox.c.type, self.outbox.c.body)  # the database numbers the rows
        self.envelopes = Target(
            quote.format_table(self.outbox),
            tuple(quote.quote(column.name) for column in sent),
            keys=(),
            changed=(),
            types=tuple(dialect.kind(column.type) for column in sent),
        )
        text = quote.quote("text")
        self.marks = Target(
            quote.format_table(self.mark), ("name", text), ("name",), (text,), sole=True
        )
        stamp = self.columns[2]
        # The first 16 bytes of a stamp are its version.
        self.newer = f"substr(excluded.{stamp}, 1, 16) > substr({self.name}.{stamp}, 1, 16)"
