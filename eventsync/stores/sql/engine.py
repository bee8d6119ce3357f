"""SQLAlchemy engines from URLs, the dialect of a database, and its errors as eventsync's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from eventsync.errors import (
    ConfigError,
    DependencyError,
    RejectedError,
    StoreUnavailableError,
    UniqueError,
)
from eventsync.index import UndoneError
from eventsync.stores.sql.dialect import Dialect, Fault
from eventsync.stores.sql.sqlite import Sqlite

__all__ = [
    "UNIQUE_HINT",
    "LockedError",
    "connection_of",
    "dialect_of",
    "errors",
    "open_engine",
]

_DRIVERS = {
    "postgresql": ("postgresql+psycopg", "postgres"),
    "postgres": ("postgresql+psycopg", "postgres"),
    "mysql": ("mysql+pymysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "mysql"),
}

UNIQUE_HINT = (
    "a held change is retried when the other record has changed; otherwise change one of the two"
)


class LockedError(StoreUnavailableError):
    """Another session has locked a row or a table for longer than the lock timeout."""

    reason = "locked"


def open_engine(database: str | sa.Engine) -> sa.Engine:
    """Return the engine of a URL, or the engine given. Does not connect. Raises ``ConfigError``."""
    if isinstance(database, sa.Engine):
        engine = database
    else:
        scheme, _, rest = database.partition("://")
        scheme = _DRIVERS[scheme][0] if scheme in _DRIVERS else scheme
        # SQLAlchemy's own errors would show the values of rows.
        options = {"hide_parameters": True}
        if not scheme.startswith("sqlite"):
            options["pool_pre_ping"] = True
        try:
            engine = sa.create_engine(f"{scheme}://{rest}", **options)
            if "@" in (engine.url.host or ""):
                raise ValueError("the password contains an unencoded @")
        except (sa.exc.ArgumentError, ValueError):
            # Nothing of the URL is shown, because the mistake may be in its password.
            raise ConfigError(
                "the database URL is not valid",
                hint="write it like postgresql://user:password@host:5432/crm, with the signs "
                ":/?#[]@ of user and password percent-encoded, or like sqlite:////srv/data/crm.db",
            ) from None
        except ImportError as error:
            extra = _DRIVERS.get(scheme.partition("+")[0], ("", "sql"))[1]
            raise ConfigError(
                f"the driver of {scheme} is missing: {error}",
                hint=f"pip install 'eventsync[{extra}]'",
            ) from None
    dialect_of(engine)
    return engine


def dialect_of(engine: sa.Engine) -> Dialect:
    """Return the dialect of the engine's database. Raises ``ConfigError`` for an unknown one."""
    name, driver = engine.dialect.name, engine.dialect.driver
    if name == "sqlite" and driver == "pysqlite":
        return Sqlite()
    # Imported here, because each needs a driver of its own.
    if name == "postgresql" and driver == "psycopg":
        from eventsync.stores.sql.postgresql import Postgresql

        return Postgresql()
    if name in ("mysql", "mariadb") and driver == "pymysql":
        from eventsync.stores.sql.mysql import Mysql

        return Mysql(maria=name == "mariadb" or bool(getattr(engine.dialect, "is_mariadb", False)))
    raise ConfigError(
        f"the SQL store does not work on {name} with {driver}",
        hint="use sqlite, postgresql+psycopg, mysql+pymysql or mariadb+pymysql",
    )


@contextmanager
def errors(
    what: str, dialect: Dialect, url: sa.URL | None = None, *, values: bool = True
) -> Iterator[None]:
    """Raise the driver's errors as eventsync's: retryable ones, rejections, configuration.

    ``what``: the table that errors name. ``url``: the database URL, named where it may be wrong.
    ``values``: whether errors may quote values of rows.
    """
    try:
        yield
    except OverflowError as error:
        raise RejectedError(f"{what}: {error}") from error
    except (sa.exc.SQLAlchemyError, dialect.error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if not isinstance(cause, dialect.error):
            raise StoreUnavailableError(f"{what}: {str(cause).strip()}") from error
        text = f"{what}: {dialect.said(cause, values=values)}"
        fault = dialect.fault(cause)
        if fault is Fault.UNDONE:
            raise UndoneError(text) from error
        if fault is Fault.DEPENDENCY:
            raise DependencyError(
                text, hint="it is retried when the other record has been written or removed"
            ) from error
        if fault is Fault.UNIQUE:
            raise UniqueError(text, hint=UNIQUE_HINT) from error
        if fault is Fault.LOCKED:
            raise LockedError(
                text, hint="end the session that holds the lock, or wait until it commits"
            ) from error
        if fault is Fault.CONFIG:
            raise ConfigError(
                text, hint="restart the worker if the table was altered while it ran"
            ) from error
        if fault is Fault.ACCESS:
            named = f"{text}; database URL {url.render_as_string()}" if url else text
            raise ConfigError(
                named,
                hint="correct the user, password, database or certificates in the store's URL, or "
                "grant this user the right",
            ) from error
        raise (RejectedError if fault is Fault.REJECTED else StoreUnavailableError)(text) from error


def connection_of(transaction: Any) -> sa.Connection:
    """Return the connection of a caller's own transaction, after flushing its session."""
    if isinstance(transaction, orm.Session | orm.scoped_session):
        transaction.flush()
        return transaction.connection()
    if isinstance(transaction, sa.Connection):
        return transaction
    raise ConfigError(
        f"{type(transaction).__name__} is neither an SQLAlchemy session nor a connection",
        hint="pass the session or connection whose transaction the change joins",
    )
