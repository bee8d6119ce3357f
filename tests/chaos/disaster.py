"""What owners do to their own stores as a whole: lock, alter, truncate, move, empty, flush.

Each disaster is a function of the scene. It says which side it strikes, does it with that side's
own tools, and has the owner put right later what an owner has to put right. It knows nothing of
eventsync but what an operator is told to do after it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql
from writers import Writers

from eventsync.index import Presence

__all__ = ["DISASTERS", "Scene", "strike"]


class Scene(Protocol):
    """What a disaster may touch."""

    rng: random.Random
    writers: Writers
    busy: set[str]
    """Sides on which a disaster is going on."""
    may_end: set[str]
    """Stores whose workers may end with 78 just now, since their configuration is wrong."""
    report: Any
    places: Any
    """Where the stores are: a ``foreign_scenario.Places``."""

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""

    def refill(self, side: str) -> None:
        """Have an operator fill a store again from the others, and unblock it then."""

    def accept(self, side: str) -> None:
        """Have an operator accept the deletes in a store that was restored, and unblock it."""


def _ending(scene: Scene, side: str, seconds: float, action: Callable[[], None]) -> bool:
    """Do ``action`` after a while, and have the side ready for the next disaster then."""
    scene.busy.add(side)

    def end() -> None:
        action()
        scene.busy.discard(side)

    scene.later(seconds, end)
    return True


def lock_rows(scene: Scene) -> bool:
    """A transaction locks rows for a while, some longer than any lock timeout, and edits them."""
    type = scene.rng.choice(sorted(scene.writers.models))
    model = scene.writers.models[type]
    free = [key for key in model.present() if model.is_free(key, "sql")]
    keys = scene.rng.sample(free, min(3, len(free)))
    session = scene.writers.rows.connect(autocommit=False)
    names = sorted(scene.rng.sample(model.fields, 1))
    edits = {key: scene.writers.values(type, names) for key in keys}
    try:
        for key in keys:
            session.execute(
                sql.SQL("SELECT 1 FROM {} WHERE id = %s FOR UPDATE").format(sql.Identifier(type)),
                [int(key)],
            )
    except psycopg.errors.LockNotAvailable:
        session.close()
        return False
    model.reserved.update(keys)

    def commit() -> None:
        for key, values in edits.items():
            assign = sql.SQL("UPDATE {} SET {} = %s WHERE id = %s RETURNING *")
            statement = assign.format(
                sql.Identifier(type), scene.writers.rows.column(type, names[0])
            )
            found = session.execute(statement, [values[names[0]], int(key)]).fetchone()
            model.reserved.discard(key)
            if found is not None:
                scene.writers.committed("sql", "edit in a transaction", type, key, found, names)
        session.commit()
        session.close()

    return _ending(scene, "sql", scene.rng.choice([0.5, 2.0, 7.0]), commit)


def lock_table(scene: Scene) -> bool:
    """A maintenance task locks a whole table for a while."""
    type = scene.rng.choice(sorted(scene.writers.models))
    session = scene.writers.rows.connect(autocommit=False)
    try:
        session.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(type)))
    except psycopg.errors.LockNotAvailable:
        session.close()
        return False
    scene.writers.blocked.add(("sql", type))

    def end() -> None:
        session.close()
        scene.writers.blocked.discard(("sql", type))

    return _ending(scene, "sql", scene.rng.uniform(0.5, 3.0), end)


def truncate(scene: Scene) -> bool:
    """Somebody truncates a table; an operator fills it again from the other stores."""
    type = scene.rng.choice(sorted(scene.writers.models))
    if not _is_large(scene, type):
        return False
    if scene.writers.rows.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(type))) is None:
        return False
    scene.writers.models[type].loosen("sql", "truncated before it was captured")
    for at in [at for at in scene.writers.rows.remarks if at[0] == type]:
        del scene.writers.rows.remarks[at]
    return _refilled(scene, "sql", [type])


def _is_large(scene: Scene, type: str) -> bool:
    """Whether so many records are there that their absence is no delete."""
    return len(scene.writers.models[type].present()) > 40


def _refilled(scene: Scene, side: str, types: list[str]) -> bool:
    scene.busy.add(side)
    scene.writers.blocked.update((side, type) for type in types)
    scene.later(scene.rng.uniform(1.0, 4.0), lambda: scene.refill(side))
    return True


def _alter(scene: Scene, statement: str, type: str, *names: str) -> bool:
    identifiers = map(sql.Identifier, (type, *names))
    return scene.writers.rows.execute(sql.SQL(statement).format(*identifiers)) is not None


def alter_column(scene: Scene) -> bool:
    """Somebody adds a column that eventsync does not know, renames it or drops it."""
    type = scene.rng.choice(sorted(scene.writers.models))
    column = scene.writers.rows.remark_columns.get(type)
    if column is None:
        if done := _alter(scene, "ALTER TABLE {} ADD COLUMN {} text", type, "remark"):
            scene.writers.rows.remark_columns[type] = "remark"
    elif scene.rng.random() < 0.6:
        other = "remark 2" if column == "remark" else "remark"
        if done := _alter(scene, "ALTER TABLE {} RENAME {} TO {}", type, column, other):
            scene.writers.rows.remark_columns[type] = other
    elif done := _alter(scene, "ALTER TABLE {} DROP COLUMN {}", type, column):
        del scene.writers.rows.remark_columns[type]
        for at in [at for at in scene.writers.rows.remarks if at[0] == type]:
            del scene.writers.rows.remarks[at]
    return done


def rename_mapped(scene: Scene) -> bool:
    """Somebody renames a column that eventsync writes, and names it back after a while."""
    type = scene.rng.choice(sorted(scene.writers.models))
    name = scene.writers.models[type].fields[-1]
    if not _alter(scene, "ALTER TABLE {} RENAME {} TO {}", type, name, "other"):
        return False
    scene.writers.rows.renamed[type][name] = "other"
    scene.may_end.add("sql")

    def back() -> None:
        if not _alter(scene, "ALTER TABLE {} RENAME {} TO {}", type, "other", name):
            scene.later(0.5, back)
            return
        del scene.writers.rows.renamed[type][name]
        # Workers read the old description a moment longer.
        scene.later(3.0, lambda: scene.may_end.discard("sql"))

    return _ending(scene, "sql", scene.rng.uniform(0.5, 3.0), back)


def widen(scene: Scene) -> bool:
    """Somebody widens the columns of a name, and long names are written from then on."""
    if scene.writers.rows.widened:
        return False
    done = [
        _alter(scene, "ALTER TABLE {} ALTER {} TYPE varchar(400)", type, model.fields[0])
        for type, model in scene.writers.models.items()
    ]
    scene.writers.rows.widened = all(done)
    return True


def unique_index(scene: Scene) -> bool:
    """Somebody adds a unique index that all records keep to, or drops it."""
    type = scene.rng.choice(sorted(scene.writers.models))
    name = f"{type} unique"
    if type in scene.writers.rows.indexed:
        done = _alter(scene, "DROP INDEX {}", name)
        scene.writers.rows.indexed -= {type} if done else set()
    else:
        first = scene.writers.models[type].fields[0]
        unique = "email" if type == "Person" else first
        done = _alter(scene, "CREATE UNIQUE INDEX {1} ON {0} ({2})", type, name, unique)
        scene.writers.rows.indexed |= {type} if done else set()
    return done


def move_email(scene: Scene) -> bool:
    """Somebody has one person release an address and another one take it, in the documents.

    A unique index of the database may see the second edit before the first.
    """
    model = scene.writers.models.get("Person")
    if model is None:
        return False
    free = [key for key in model.present() if model.is_free(key, "docs") and int(key) % 10]
    giving = [key for key in free if (model.row(key) or {})["email"]]
    if not giving or len(free) < 2:
        return False
    giver = scene.rng.choice(giving)
    taker = scene.rng.choice([key for key in free if key != giver])
    address = (model.row(giver) or {})["email"]
    released = scene.writers.values("Person", ["email"])
    return scene.writers.edit("docs", "Person", giver, released) and scene.writers.edit(
        "docs", "Person", taker, {"email": address}
    )


def damage_document(scene: Scene) -> bool:
    """An editor leaves a document empty or half written, and somebody restores it later."""
    if "Person" not in scene.writers.models:
        return False
    model = scene.writers.models["Person"]
    free = [key for key in model.present() if model.is_free(key, "docs")]
    if not free:
        return False
    key = scene.rng.choice(free)
    path = scene.writers.files.path("Person", key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    scene.writers.closed.add(("Person", key))
    path.write_text(scene.rng.choice(["", "{", text[: len(text) // 2]]), encoding="utf-8")

    def restore() -> None:
        path.write_text(text, encoding="utf-8")
        scene.writers.closed.discard(("Person", key))

    return _ending(scene, "docs", scene.rng.uniform(0.5, 4.0), restore)


def move_folder(scene: Scene) -> bool:
    """The folder of the documents is not mounted for a while.

    Not before the store knows records of each type: until then it makes a folder that is missing.
    """
    store = scene.places.store("docs")
    with contextlib.closing(store):
        if not all(store.index.counts(type)[Presence.PRESENT] for type in scene.writers.models):
            return False
    scene.writers.blocked.update(("docs", type) for type in scene.writers.models)
    away = scene.writers.files.folder.with_name("docs.away")
    scene.writers.files.folder.rename(away)

    def back() -> None:
        with contextlib.suppress(OSError):
            scene.writers.files.folder.rmdir()
        away.rename(scene.writers.files.folder)
        scene.accept("docs")

    scene.busy.add("docs")
    scene.later(scene.rng.uniform(0.5, 3.0), back)
    return True


def empty_table(scene: Scene) -> bool:
    """The CSV file is emptied, and restored after a while."""
    if "Note" not in scene.writers.models:
        return False
    path = scene.writers.files.path("Note")
    scene.writers.blocked.add(("docs", "Note"))
    away = path.with_name("Note.bak")
    path.rename(away)
    if scene.rng.random() < 0.5:
        path.touch()

    def back() -> None:
        away.rename(path)
        scene.accept("docs")

    scene.busy.add("docs")
    scene.later(scene.rng.uniform(0.5, 3.0), back)
    return True


def flush(scene: Scene) -> bool:
    """Somebody flushes Redis, versions included; an operator fills it again."""
    for model in scene.writers.models.values():
        model.loosen("cache", "flushed before it was captured")
    scene.writers.cache.client.flushall()
    return _refilled(scene, "cache", list(scene.writers.models))


def delete_all(scene: Scene) -> bool:
    """Somebody deletes all keys of a type in Redis; an operator fills it again."""
    type = scene.rng.choice(sorted(scene.writers.models))
    if not _is_large(scene, type):
        return False
    scene.writers.models[type].loosen("cache", "flushed before it was captured")
    if names := scene.writers.cache.names(type):
        scene.writers.cache.client.delete(*names)
    return _refilled(scene, "cache", [type])


@dataclass(frozen=True)
class Disaster:
    """``side``: whose store it strikes. ``share``: how often, beside the others."""

    strike: Callable[[Scene], bool]
    side: str
    share: float


DISASTERS = {
    "lock-rows": Disaster(lock_rows, "sql", 3),
    "lock-table": Disaster(lock_table, "sql", 1),
    "truncate": Disaster(truncate, "sql", 1),
    "alter-column": Disaster(alter_column, "sql", 4),
    "rename-mapped": Disaster(rename_mapped, "sql", 1),
    "widen": Disaster(widen, "sql", 1),
    "unique-index": Disaster(unique_index, "sql", 1),
    "move-email": Disaster(move_email, "docs", 3),
    "damage-document": Disaster(damage_document, "docs", 4),
    "move-folder": Disaster(move_folder, "docs", 1),
    "empty-table": Disaster(empty_table, "docs", 1),
    "flush": Disaster(flush, "cache", 1),
    "delete-all": Disaster(delete_all, "cache", 1),
}


def strike(scene: Scene, without: list[str]) -> None:
    """One disaster, on a side where none is going on."""
    names = [n for n in DISASTERS if n not in without and DISASTERS[n].side not in scene.busy]
    if names:
        (name,) = scene.rng.choices(names, [DISASTERS[n].share for n in names])
        if DISASTERS[name].strike(scene):
            scene.report.disasters[name] += 1
            scene.writers.note(f"disaster: {name}")
