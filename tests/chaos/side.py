"""The three sides of ``foreign_writers.py``: what people and programs do there without eventsync.

Each side reads, inserts, edits and deletes records with its own tools: SQL, an editor, a Redis
client. A method that writes returns what it has committed, or ``None`` if it has not: the record is
not there, or somebody else holds it.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row

__all__ = ["UNREADABLE", "Cache", "Documents", "Rows"]

UNREADABLE: Final = "(unreadable)"
Values = dict[str, Any]
Met = Callable[[str, str, Values | None, Values | None], None]
"""Called with type, key, the values read and those found, if a save overwrote unseen ones."""

_WHOLE_NUMBERS: Final = {"id", "pages", "score"}
_libc = ctypes.CDLL(None, use_errno=True)


def _typed(values: Mapping[str, Any], fields: tuple[str, ...]) -> Values:
    """The fields as the record has them; the texts of numbers are numbers."""
    found = {name: values.get(name) for name in fields}
    return {
        name: int(value) if name in _WHOLE_NUMBERS and value is not None else value
        for name, value in found.items()
    }


class Rows:
    """PostgreSQL, written to with SQL. ``fields``: by table, without the key."""

    name = "sql"

    def __init__(self, url: str, fields: Mapping[str, tuple[str, ...]]) -> None:
        self.url = url.replace("+psycopg", "")
        self.fields = fields
        self.renamed: dict[str, dict[str, str]] = {table: {} for table in fields}
        self.widened = False
        self.indexed: set[str] = set()
        self.remark_columns: dict[str, str] = {}
        """By table, what the column is called that only this side has."""
        self.remarks: dict[tuple[str, str], str] = {}
        """By type and key, what that column must hold."""
        self.connection = self.connect()

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        """Another session."""
        # A worker that is stopped may hold locks, and the harness must not wait for it.
        options = "-c lock_timeout=400ms -c statement_timeout=5s"
        return psycopg.connect(
            self.url, autocommit=autocommit, row_factory=dict_row, options=options
        )

    def execute(self, statement: Any, parameters: Any = ()) -> list[Values] | None:
        """Run a statement; its rows, or ``None`` if somebody else holds what it needs."""
        try:
            cursor = self.connection.execute(statement, parameters)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
            return None
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            return None
        return list(cursor.fetchall()) if cursor.description else []

    def column(self, table: str, name: str) -> sql.Identifier:
        """A column, by what it is called just now."""
        return sql.Identifier(self.renamed[table].get(name, name))

    def read(self, table: str) -> dict[str, Values]:
        columns = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(self.column(table, name), sql.Identifier(name))
            for name in ("id", *self.fields[table])
        )
        statement = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(table))
        found: list[Values] | None = None
        while found is None:
            found = self.execute(statement)
        return {str(row.pop("id")): row for row in found}

    def insert(self, table: str, key: str, row: Values) -> Values | None:
        names = ["id", *row]
        statement = sql.SQL(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING RETURNING id"
        ).format(
            sql.Identifier(table),
            sql.SQL(", ").join(self.column(table, name) for name in names),
            sql.SQL(", ").join(sql.Placeholder() for _ in names),
        )
        return row if self.execute(statement, [int(key), *row.values()]) else None

    def edit(self, table: str, key: str, values: Values, met: Met) -> Values | None:
        sets = sql.SQL(", ").join(
            sql.SQL("{} = %s").format(self.column(table, name)) for name in values
        )
        back = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(self.column(table, name), sql.Identifier(name))
            for name in self.fields[table]
        )
        statement = sql.SQL("UPDATE {} SET {} WHERE id = %s RETURNING {}").format(
            sql.Identifier(table), sets, back
        )
        found = self.execute(statement, [*values.values(), int(key)])
        return found[0] if found else None

    def delete(self, table: str, key: str, met: Met) -> bool:
        statement = sql.SQL("DELETE FROM {} WHERE id = %s RETURNING id").format(
            sql.Identifier(table)
        )
        return bool(self.execute(statement, [int(key)]))

    def remark(self, table: str, key: str, text: str) -> bool:
        """Write into the column that only this side has, if it has it just now."""
        column = self.remark_columns.get(table)
        if column is None:
            return False
        statement = sql.SQL("UPDATE {} SET {} = %s WHERE id = %s RETURNING id").format(
            sql.Identifier(table), sql.Identifier(column)
        )
        if not self.execute(statement, [text, int(key)]):
            return False
        self.remarks[table, key] = text
        return True

    def check_remarks(self) -> list[str]:
        """What differs in that column from what was written there."""
        wrong = []
        for (table, key), text in self.remarks.items():
            statement = sql.SQL("SELECT {} AS held FROM {} WHERE id = %s").format(
                sql.Identifier(self.remark_columns[table]), sql.Identifier(table)
            )
            held = self.execute(statement, [int(key)])
            if held != [{"held": text}]:
                wrong.append(f"{table} {key}: {text!r} became {held}")
        return wrong


_EDIT: Final = """
if redis.call('EXISTS', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '(none)' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1
"""


class Cache:
    """Redis, written to by another client."""

    name = "cache"

    def __init__(self, url: str, fields: Mapping[str, tuple[str, ...]]) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.fields = fields
        self._edit = self.client.register_script(_EDIT)

    def names(self, type: str) -> list[str]:
        """The Redis keys of all records of a type."""
        return list(self.client.scan_iter(f"{type}:*", count=1000))

    def read(self, type: str) -> dict[str, Values]:
        names = self.names(type)
        with self.client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hgetall(name)
            found = pipeline.execute()
        return {
            name.split(":", 1)[1]: _typed(row, self.fields[type])
            for name, row in zip(names, found, strict=True)
            if row
        }

    def _set(self, type: str, key: str, values: Values, *, there: int) -> bool:
        texts = [(n, "(none)" if value is None else str(value)) for n, value in values.items()]
        return bool(self._edit([f"{type}:{key}"], [there, *(t for pair in texts for t in pair)]))

    def insert(self, type: str, key: str, row: Values) -> Values | None:
        return row if self._set(type, key, {"id": key, **row}, there=0) else None

    def edit(self, type: str, key: str, values: Values, met: Met) -> Values | None:
        if not self._set(type, key, values, there=1):
            return None
        return _typed(self.client.hgetall(f"{type}:{key}"), self.fields[type])

    def delete(self, type: str, key: str, met: Met) -> bool:
        return bool(self.client.delete(f"{type}:{key}"))


class Documents:
    """A CSV file for one type, a JSON document per record for the others; edited by editors."""

    name = "docs"

    def __init__(
        self, folder: Path, fields: Mapping[str, tuple[str, ...]], table: str, rng: random.Random
    ) -> None:
        self.folder, self.fields, self.table = folder, fields, table
        self._rng = rng

    def path(self, type: str, key: str = "") -> Path:
        """The file of a type, or of a record that has one of its own."""
        if type == self.table:
            return self.folder / f"{type}.csv"
        return self.folder / type / f"{key}.json"

    def read(self, type: str) -> dict[str, Values]:
        if type == self.table:
            text = self.path(type).read_text(encoding="utf-8")
            return self._shown(type, _rows(text))
        found: dict[str, Values] = {}
        for path in (self.folder / type).glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # it was removed a moment ago
                found[path.stem] = self._document(type, path.read_text(encoding="utf-8"))
        return found

    def _document(self, type: str, text: str) -> Values:
        try:
            return _typed(json.loads(text), self.fields[type])
        except ValueError:
            return dict.fromkeys(self.fields[type], UNREADABLE)

    def _shown(self, type: str, rows: Mapping[str, Values]) -> dict[str, Values]:
        return {key: _typed(row, self.fields[type]) for key, row in rows.items()}

    def insert(self, type: str, key: str, row: Values) -> Values | None:
        if type == self.table:
            add = {key: {"id": key, **row}}
            return row if self._save_table(type, lambda r: None if key in r else r | add) else None
        new = self._draft(self.path(type, key), json.dumps({"id": int(key), **row}))
        try:
            os.link(new, self.path(type, key))
        except (FileExistsError, FileNotFoundError):
            return None
        finally:
            new.unlink(missing_ok=True)
        return row

    def edit(self, type: str, key: str, values: Values, met: Met) -> Values | None:
        if type == self.table:

            def change(rows: dict[str, Values]) -> dict[str, Values] | None:
                return {**rows, key: rows[key] | values} if key in rows else None

            saved = self._save_table(type, change, met)
            return None if saved is None else self._shown(type, saved)[key]
        path = self.path(type, key)
        if self._rng.random() < 0.3:
            return self._edit_in_place(type, path, values, met)
        try:
            with path.open(encoding="utf-8") as file:
                text, inode = file.read(), os.fstat(file.fileno()).st_ino
            members = json.loads(text) | values
        except (FileNotFoundError, ValueError):
            return None
        new = self._draft(path, json.dumps(members, ensure_ascii=False, indent=1))
        found = self._exchange(new, path, inode)
        if found is None:
            return None
        if found != text:
            met(type, key, self._document(type, text), self._document(type, found))
        return _typed(members, self.fields[type])

    def _edit_in_place(self, type: str, path: Path, values: Values, met: Met) -> Values | None:
        try:
            with path.open("r+", encoding="utf-8") as file:
                text = file.read()
                members = json.loads(text) | values
                file.seek(0)
                file.truncate()
                file.write(json.dumps(members, ensure_ascii=False))
                file.flush()
                inode = os.fstat(file.fileno()).st_ino
        except (FileNotFoundError, ValueError):
            return None
        saved = _typed(members, self.fields[type])
        try:
            if path.stat().st_ino == inode:
                return saved
        except FileNotFoundError:
            pass
        # The file was replaced meanwhile: what was written may be in a file without a name.
        met(type, path.stem, self._document(type, text), saved)
        return None

    def delete(self, type: str, key: str, met: Met) -> bool:
        if type == self.table:

            def drop(rows: dict[str, Values]) -> dict[str, Values] | None:
                return {k: r for k, r in rows.items() if k != key} if key in rows else None

            return self._save_table(type, drop, met) is not None
        try:
            self.path(type, key).unlink()
        except FileNotFoundError:
            return False
        return True

    def _save_table(
        self,
        type: str,
        change: Callable[[dict[str, Values]], dict[str, Values] | None],
        met: Met = lambda *seen: None,
    ) -> dict[str, Values] | None:
        """Read the table, change it and save it; what was saved, or ``None``."""
        path = self.path(type)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                text, inode = file.read(), os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return None
        if not text:
            return None
        before = _rows(text)
        after = change(dict(before))
        if after is None:
            return None
        out = io.StringIO()
        columns = next(csv.reader(io.StringIO(text)))
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(after.values())
        found = self._exchange(self._draft(path, out.getvalue()), path, inode)
        if found is None:
            return None
        if found != text:
            here, there = self._shown(type, before), self._shown(type, _rows(found))
            for key in here.keys() | there.keys():
                if here.get(key) != there.get(key):
                    met(type, key, here.get(key), there.get(key))
        return after

    def _draft(self, path: Path, text: str) -> Path:
        new = path.with_name(f".{path.name}.swp")
        new.write_text(text, encoding="utf-8", newline="")
        return new

    def _exchange(self, new: Path, path: Path, inode: int) -> str | None:
        """Give ``new`` the name ``path``, unless that changed; the text that was replaced."""
        try:
            if path.stat().st_ino != inode:
                return None  # an editor says now that the file has changed on disk
            done = _libc.renameat2(-100, os.fsencode(new), -100, os.fsencode(path), 2)
            if done != 0:
                return None
            return new.read_bytes().decode()
        except FileNotFoundError:
            return None
        finally:
            new.unlink(missing_ok=True)


def _rows(text: str) -> dict[str, Values]:
    return {row["id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
