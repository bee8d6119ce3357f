"""The decoder of PostgreSQL's ``pgoutput``: which rows a transaction has changed.

It reads the messages of logical replication (PostgreSQL documentation, chapters 55.5 and 55.9) and
keeps only the values of key columns, since eventsync reads the rows themselves later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from eventsync.errors import StoreUnavailableError, shown

__all__ = ["OWN_PREFIX", "Decoder", "Relation", "Transaction"]

OWN_PREFIX: Final = b"eventsync"
"""The prefix of the message by which eventsync marks its own transactions."""

MOST_KEYS: Final = 1_000_000
"""Of a transaction that changes more rows of one table, no keys are kept: all rows are read."""

_MOST_PARTS: Final = 10_000
"""So many subtransactions of a transaction are kept apart. The keys of others are kept together,
and told even if their subtransaction is undone, which does no harm."""

_EPOCH: Final = 946_684_800.0  # 2000-01-01, in seconds since 1970
_BEGIN = struct.Struct("!qqI")
_COMMIT = struct.Struct("!Bqqq")
_STREAM_COMMIT = struct.Struct("!IBqqq")
_U32 = struct.Struct("!I")
_U16 = struct.Struct("!H")
_COLUMN_END = struct.Struct("!II")

Parts = tuple[bytes | None, ...]
"""The values of the key columns of one row, as texts."""


@dataclass(slots=True)
class Relation:
    """A table as the log describes it.

    ``keys``: the places of the wanted key columns in a row, in the order in which they are wanted;
    ``None`` if the table is not wanted, or lacks one of them. ``types``: their type ids. ``last``:
    the greatest place.
    """

    id: int
    schema: str
    name: str
    keys: tuple[int, ...] | None
    types: tuple[int, ...] = ()
    last: int = -1


@dataclass(slots=True)
class Transaction:
    """What one transaction has changed.

    ``keys``: by the id of the table, the key values of the changed rows. ``whole``: by the id of
    the table, why its keys are not known. ``own``: whether eventsync made it. ``moment``: when it
    was committed, in seconds since the epoch. ``end``: the position in the log after it.
    """

    xid: int
    keys: dict[int, dict[Parts, None]] = field(default_factory=dict)
    whole: dict[int, str] = field(default_factory=dict)
    own: bool = False
    moment: float = 0.0
    end: int = 0

    def add(self, relation: int, parts: Parts) -> None:
        """Note a changed row."""
        keys = self.keys.get(relation)
        if keys is None:
            keys = self.keys[relation] = {}
        keys[parts] = None
        if len(keys) >= MOST_KEYS:
            self.note_many(relation)

    def note_many(self, relation: int) -> None:
        """Forget the keys of a table of which too many rows are changed."""
        self.whole[relation] = f"one transaction changed {MOST_KEYS:,} rows or more"
        self.keys.pop(relation, None)

    def merge(self, other: Transaction) -> None:
        """Take in what a subtransaction has changed."""
        for relation, keys in other.keys.items():
            self.keys.setdefault(relation, {}).update(keys)
        self.whole |= other.whole
        self.own |= other.own


class _Streamed:
    """A large transaction that is sent before it is committed. ``xid``: its id.

    Its subtransactions are kept apart, since each may be undone. How many keys it keeps of a table
    is limited for all of them together.
    """

    __slots__ = ("_counts", "_parts", "top")

    def __init__(self, xid: int) -> None:
        self.top = Transaction(xid)
        self._parts: dict[int, Transaction] = {}
        # The number of rows, by table, that were noted in any part.
        self._counts: dict[int, int] = {}

    def part(self, xid: int) -> Transaction:
        """Return the subtransaction ``xid``, or the transaction itself."""
        if xid == self.top.xid:
            return self.top
        known = self._parts.get(xid)
        if known is None:
            if len(self._parts) >= _MOST_PARTS:
                return self.top
            known = self._parts[xid] = Transaction(xid)
        return known

    def add(self, part: Transaction, relation: int, parts: Parts) -> None:
        """Note a changed row of a part."""
        count = self._counts[relation] = self._counts.get(relation, 0) + 1
        if relation in self.top.whole:
            return  # all rows will be read
        part.add(relation, parts)
        # Rows may be changed twice, so the keys are counted only where they could be too many.
        if count % MOST_KEYS == 0:
            known = [self.top, *self._parts.values()]
            if sum(len(each.keys.get(relation, ())) for each in known) >= MOST_KEYS // 2:
                for each in known:
                    each.keys.pop(relation, None)
                self.top.note_many(relation)

    def undo(self, xid: int) -> None:
        """Forget a subtransaction."""
        self._parts.pop(xid, None)

    def committed(self) -> Transaction:
        """Return the whole transaction."""
        for part in self._parts.values():
            self.top.merge(part)
        self._parts.clear()
        return self.top


class Decoder:
    """Decodes the messages of one replication connection. Not thread-safe.

    ``wanted``: returns the names of the key columns of a table, given its id, or ``None`` if its
    changes are not wanted.
    """

    def __init__(self, wanted: Callable[[int], tuple[str, ...] | None]) -> None:
        self._wanted = wanted
        self.relations: dict[int, Relation] = {}
        """The tables that the log has described, by id."""
        self._open: Transaction | None = None
        # The streamed transactions that are not committed yet, and the one that is being sent.
        self._streamed: dict[int, _Streamed] = {}
        self._top: _Streamed | None = None

    @property
    def is_between(self) -> bool:
        """Whether the last message ended a transaction, so that none is half read."""
        return self._open is None and self._top is None

    def feed(self, message: bytes) -> Transaction | None:
        """Decode one message. Return the transaction that it commits, if it does.

        Raises ``StoreUnavailableError`` if the message is not one of ``pgoutput``.
        """
        try:
            return self._feed(message)
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise StoreUnavailableError(
                f"the log contains what is no message of pgoutput: {shown(message[:40])}",
                hint="check that the URL leads to a PostgreSQL server, and its version",
            ) from error

    def _feed(self, message: bytes) -> Transaction | None:
        kind = message[0]
        # The frequent ones first.
        if kind == 73:  # I
            self._row(message)
        elif kind == 85:  # U
            self._update(message)
        elif kind == 68:  # D
            self._row(message)
        elif kind == 66:  # B
            _, micros, xid = _BEGIN.unpack_from(message, 1)
            self._open = Transaction(xid, moment=_EPOCH + micros / 1e6)
        elif kind == 67:  # C
            return self._commit(message)
        elif kind == 77:  # M
            self._message(message)
        elif kind == 82:  # R
            self._relation(message)
        elif kind == 84:  # T
            self._truncate(message)
        elif kind == 83:  # S
            (xid,) = _U32.unpack_from(message, 1)
            self._top = self._streamed.setdefault(xid, _Streamed(xid))
        elif kind == 69:  # E
            self._top = None
        elif kind == 99:  # c
            return self._commit_streamed(message)
        elif kind == 65:  # A
            self._abort(message)
        # Origin and Type say nothing about keys.
        return None

    # -- transactions ------------------------------------------------------------------------------

    def _at(self, message: bytes) -> tuple[Transaction | None, int]:
        """Return the transaction that a message belongs to, and where its content begins."""
        if self._top is None:
            return self._open, 1
        (xid,) = _U32.unpack_from(message, 1)
        return self._top.part(xid), 5

    def _add(self, at: Transaction, relation: int, parts: Parts) -> None:
        if self._top is None:
            at.add(relation, parts)
        else:
            self._top.add(at, relation, parts)

    def _commit(self, message: bytes) -> Transaction | None:
        done, self._open = self._open, None
        if done is not None:
            _, _, done.end, _ = _COMMIT.unpack_from(message, 1)
        return done

    def _commit_streamed(self, message: bytes) -> Transaction:
        xid, _, _, end, micros = _STREAM_COMMIT.unpack_from(message, 1)
        streamed = self._streamed.pop(xid, None)
        done = Transaction(xid) if streamed is None else streamed.committed()
        done.moment, done.end = _EPOCH + micros / 1e6, end
        return done

    def _abort(self, message: bytes) -> None:
        (xid,), (sub,) = _U32.unpack_from(message, 1), _U32.unpack_from(message, 5)
        if xid == sub:
            self._streamed.pop(xid, None)
        elif xid in self._streamed:
            self._streamed[xid].undo(sub)

    # -- what they contain -------------------------------------------------------------------------

    def _row(self, message: bytes) -> None:
        """Note the row of an insert or a delete."""
        at, start = self._at(message)
        (relation,) = _U32.unpack_from(message, start)
        known = self.relations.get(relation)
        if at is None or known is None:
            return
        if known.keys is None:
            self._note_unknown(at, known)
            return
        parts, _ = _parts(message, start + 5, known)
        self._add(at, relation, parts)

    def _update(self, message: bytes) -> None:
        """Note the row of an update, and its old key if it was changed."""
        at, start = self._at(message)
        (relation,) = _U32.unpack_from(message, start)
        known = self.relations.get(relation)
        if at is None or known is None:
            return
        if known.keys is None:
            self._note_unknown(at, known)
            return
        place = start + 4
        old: Parts | None = None
        if message[place] in (75, 79):  # K, O
            old, _ = _parts(message, place + 1, known)
            place = _after(message, place + 1)
        new, unchanged = _parts(message, place + 1, known)
        if unchanged and old is not None:
            # A long key that did not change is left out of the new row.
            pairs = enumerate(zip(old, new, strict=True))
            new = tuple(o if place in unchanged else n for place, (o, n) in pairs)
        elif unchanged:
            at.whole[relation] = "the log does not contain the key of an updated row"
            return
        self._add(at, relation, new)
        if old is not None and old != new:
            self._add(at, relation, old)

    def _note_unknown(self, at: Transaction, relation: Relation) -> None:
        """Note a change of a wanted table whose key columns the log does not name."""
        if self._wanted(relation.id) is not None:
            at.whole[relation.id] = "a key column was renamed or dropped"

    def _truncate(self, message: bytes) -> None:
        at, start = self._at(message)
        if at is None:
            return
        (count,) = _U32.unpack_from(message, start)
        for number in range(count):
            (relation,) = _U32.unpack_from(message, start + 5 + 4 * number)
            at.whole[relation] = "the table was truncated"
            at.keys.pop(relation, None)

    def _message(self, message: bytes) -> None:
        streamed = self._top is not None
        start = 5 if streamed else 1
        if not message[start] & 1:
            return  # not part of a transaction: a heartbeat
        at, start = self._at(message)
        prefix_end = message.index(b"\0", start + 9)
        if at is None or message[start + 9 : prefix_end] != OWN_PREFIX:
            return
        if self._top is not None and at is self._top.top:
            # The mark of a subtransaction that is not kept apart might be undone.
            (xid,) = _U32.unpack_from(message, 1)
            at.own |= xid == at.xid
        else:
            at.own = True

    def _relation(self, message: bytes) -> None:
        start = 1 if self._top is None else 5
        (id,) = _U32.unpack_from(message, start)
        schema, place = _text(message, start + 4)
        name, place = _text(message, place)
        (count,) = _U16.unpack_from(message, place + 1)
        place += 3
        columns: dict[str, tuple[int, int]] = {}
        for number in range(count):
            column, place = _text(message, place + 1)
            type, _ = _COLUMN_END.unpack_from(message, place)
            columns[column] = (number, type)
            place += 8
        schema = schema or "pg_catalog"
        wanted = self._wanted(id)
        relation = Relation(id, schema, name, None)
        if wanted is not None and all(key in columns for key in wanted):
            relation.keys = tuple(columns[key][0] for key in wanted)
            relation.types = tuple(columns[key][1] for key in wanted)
            relation.last = max(relation.keys)
        self.relations[id] = relation


def _text(message: bytes, place: int) -> tuple[str, int]:
    end = message.index(b"\0", place)
    return message[place:end].decode(), end + 1


def _parts(message: bytes, place: int, relation: Relation) -> tuple[Parts, Iterable[int]]:
    """Return the values of the key columns in a row, and the places of those that are left out.

    ``place``: where the row begins. Reads only up to the last key column.
    """
    keys = relation.keys
    assert keys is not None
    place += 2
    if len(keys) == 1 and relation.last == 0 and message[place] == 116:  # t
        (length,) = _U32.unpack_from(message, place + 1)
        return (message[place + 5 : place + 5 + length],), ()
    found: dict[int, bytes | None] = {}
    missing: list[int] = []
    for number in range(relation.last + 1):
        kind = message[place]
        place += 1
        value: bytes | None = None
        if kind == 116:  # t
            (length,) = _U32.unpack_from(message, place)
            place += 4
            if number in keys:
                value = message[place : place + length]
            place += length
        elif kind == 117 and number in keys:  # u
            missing.append(keys.index(number))
        found[number] = value
    return tuple(found[key] for key in keys), missing


def _after(message: bytes, place: int) -> int:
    """Return where the content after a row begins. ``place``: where the row begins."""
    (count,) = _U16.unpack_from(message, place)
    place += 2
    for _ in range(count):
        kind = message[place]
        place += 1
        if kind == 116:  # t
            (length,) = _U32.unpack_from(message, place)
            place += 4 + length
    return place
