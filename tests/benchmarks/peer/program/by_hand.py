"""Changes written by hand with SQLAlchemy, a transaction each, in the two usual ways."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

__all__ = ["Customer", "merge", "upsert"]


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    street: Mapped[str]
    city: Mapped[str]
    country: Mapped[str]
    balance: Mapped[Decimal]
    visits: Mapped[int] = mapped_column(BigInteger)
    score: Mapped[float]
    active: Mapped[bool]
    born: Mapped[dt.date]
    token: Mapped[UUID]


def merge(engine: Engine, row: dict[str, Any]) -> None:
    """A session, ``merge``, a commit: reads the row, and inserts it or updates what differs."""
    with Session(engine) as session:
        session.merge(Customer(**row))
        session.commit()


def upsert(engine: Engine, row: dict[str, Any]) -> None:
    """One ``INSERT .. ON CONFLICT DO UPDATE``, and a commit."""
    statement = insert(Customer).values(row)
    written = {name: statement.excluded[name] for name in row if name != "id"}
    with Session(engine) as session:
        session.execute(statement.on_conflict_do_update(index_elements=[Customer.id], set_=written))
        session.commit()
