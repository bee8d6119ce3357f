"""An application with an ORM of its own, kept in sync with Redis and documents by configuration.

The application knows nothing of eventsync: its own models, foreign keys, sequences, cascades and a
link table without a key of its own. eventsync is configured from outside, captures its writes from
the log or by triggers, and writes nothing but its own tables to the database.
"""

from __future__ import annotations

import json
import signal

import psycopg
import pytest
import redis
import sqlalchemy as sa
from servers import running
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from sqlalchemy import orm
from support.project import Cli
from support.waiting import eventually

pytestmark = [pytest.mark.server, pytest.mark.slow]

RECORDS = """
from __future__ import annotations

import datetime as dt
from decimal import Decimal

from eventsync import Field, Record


class Author(Record):
    id: int = Field(key=True)
    name: str


class Book(Record, rule="field"):
    id: int = Field(key=True)
    title: str
    author_id: int | None = None
    price: Decimal | None = None
    published: dt.date | None = None
"""

WORKERS = """
from __future__ import annotations

from eventsync import Store, StoreRegistry
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from records import Author, Book

registry = StoreRegistry(
    Store(
        "library",
        SqlAccessor(Author, "{postgres}", table="author"),
        SqlAccessor(Book, "{postgres}", table="book"),
        capture="{kind}",
    ),
    Store("cache", RedisAccessor(Author, "{redis}"), RedisAccessor(Book, "{redis}")),
    Store(
        "documents",
        JsonFolderAccessor(Author, "documents/authors"),
        JsonFolderAccessor(Book, "documents/books"),
        index="documents.db",
    ),
)
"""


class Base(orm.DeclarativeBase):
    """The application's models."""


book_tag = sa.Table(
    "book_tag",
    Base.metadata,
    sa.Column("book_id", sa.ForeignKey("book.id", ondelete="CASCADE")),
    sa.Column("tag", sa.String(20)),
)


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(80), unique=True)
    books: orm.Mapped[list[Book]] = orm.relationship(
        back_populates="author", cascade="all, delete-orphan"
    )


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    title: orm.Mapped[str] = orm.mapped_column(sa.Text)
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id", ondelete="CASCADE"))
    price: orm.Mapped[object] = orm.mapped_column(sa.Numeric(8, 2), default=0)
    published: orm.Mapped[object] = orm.mapped_column(sa.Date, nullable=True)
    shelf: orm.Mapped[str] = orm.mapped_column(sa.String(9), server_default="none")
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


@pytest.fixture(scope="module")
def postgres():
    with running(PostgresServer(options=("wal_level=logical",))) as server:
        yield server


@pytest.fixture(scope="module")
def cache():
    with running(RedisServer()) as server:
        yield server


@pytest.fixture(params=["log", "triggers"])
def project(request, tmp_path, monkeypatch, postgres, cache):
    """A database of the application with some rows, and a project that names it."""
    kind = request.param
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS library_{kind} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE library_{kind}")
    url = postgres.url.replace("/test", f"/library_{kind}")
    with cache.client() as client:
        client.flushall()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records.py").write_text(RECORDS)
    (tmp_path / "workers.py").write_text(WORKERS.format(postgres=url, kind=kind, redis=cache.url))
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        for number in range(30):
            author = Author(name=f"author {number}")
            author.books = [Book(title=f"book {number}.{n}", price=n) for n in range(3)]
            session.add(author)
        session.commit()
    cli = Cli(tmp_path)
    processes = []
    yield cli, engine, processes
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=60)
    if kind == "log":
        cli("capture", "remove", "library").check()
    engine.dispose()


def held(cli, cache, engine):
    """What the three places hold: authors and books."""
    with orm.Session(engine) as session:
        authors = {str(a.id): a.name for a in session.scalars(sa.select(Author))}
        books = {
            str(b.id): (b.title, b.author_id, f"{b.price:.2f}", b.published and str(b.published))
            for b in session.scalars(sa.select(Book))
        }
    files = cli.folder / "documents"
    documents = [
        {path.stem: json.loads(path.read_text()) for path in (files / name).glob("*.json")}
        for name in ("authors", "books")
    ]
    return (
        (authors, books),
        (
            {key: one["name"] for key, one in documents[0].items()},
            {key: _book(one) for key, one in documents[1].items()},
        ),
        _in_redis(cache),
    )


def _book(one):
    price = one.get("price")
    return (
        one["title"], one["author_id"], None if price is None else f"{float(price):.2f}",
        one.get("published"),
    )  # fmt: skip


def _in_redis(cache):
    with redis.Redis.from_url(cache.url, decode_responses=True) as client:
        rows = {key: client.hgetall(key) for key in client.keys("Author:*") + client.keys("Book:*")}
    authors = {key.partition(":")[2]: row["name"] for key, row in rows.items() if "name" in row}
    books = {
        key.partition(":")[2]: (
            row["title"], int(row["author_id"]), f"{float(row['price']):.2f}",
            row.get("published") or None,
        )
        for key, row in rows.items()
        if "title" in row
    }  # fmt: skip
    return authors, books


def test_an_application_with_an_orm_is_kept_in_sync(project, cache):
    """From the first copy on: inserts, updates, cascades, rollbacks, raw SQL, a new column."""
    cli, engine, processes = project
    cli("capture", "install", "library").check()
    cli("check").check()
    processes += [cli.start("worker", name) for name in ("library", "cache", "documents")]

    def agree():
        application, documents, redis_rows = held(cli, cache, engine)
        return application == documents == redis_rows

    eventually(agree, timeout=90)
    with orm.Session(engine) as session:
        first = session.scalars(sa.select(Author).order_by(Author.id)).first()
        first.name = "renamed"
        first.books.append(Book(title="new", price="9.90"))
        session.add(Author(name="added", books=[Book(title="with it")]))
        session.commit()
    eventually(agree)
    with orm.Session(engine) as session:
        # A cascade of the ORM, one of the database, and a savepoint that is undone.
        gone = session.scalars(sa.select(Author).where(Author.name == "author 5")).one()
        session.delete(gone)
        session.flush()
        with session.begin_nested() as undone:
            session.add(Author(name="never"))
            session.flush()
            undone.rollback()
        session.execute(sa.text("DELETE FROM author WHERE name = 'author 6'"))
        session.execute(sa.insert(book_tag).values(book_id=1, tag="x"))
        session.commit()
    eventually(agree)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE book ADD COLUMN isbn text DEFAULT 'none'"))
        connection.execute(sa.text("UPDATE book SET price = price + 1, isbn = 'x'"))
        connection.execute(sa.text("UPDATE book SET published = '2026-11-30' WHERE id % 2 = 0"))
    eventually(agree)
    # Nothing that eventsync does not hold was touched.
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT DISTINCT shelf, isbn FROM book")).all()
        assert rows == [("none", "x")]
        assert connection.execute(sa.text("SELECT COUNT(*) FROM book_tag")).scalar() == 1
    status = cli("capture", "status", "library", "--json").check().json
    assert status["installed"] is True
    assert not cli("dlq", "list", "cache", "--json").json
    # What eventsync's users edit comes back into the application's tables.
    cli("publish", "cache", "--type", "Book", input=json.dumps(
        {"id": 1, "title": "edited in the cache", "author_id": 1, "price": "1.00"}
    )).check()  # fmt: skip

    def came_back():
        with orm.Session(engine) as session:
            return session.get(Book, 1).title == "edited in the cache"

    eventually(came_back)
    eventually(agree)
