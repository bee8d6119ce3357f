"""The position of an event in the log of its database, and the version made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from eventsync.changes.clock import Version, version_at
from eventsync.errors import ConfigError, malformed

__all__ = ["SNAPSHOT_AGE", "LogOrder", "LogPosition", "is_snapshot", "placed", "version_of"]

SNAPSHOT_AGE: Final = 86_400.0
"""By how many seconds the version of a snapshot row precedes the time of the snapshot."""

_NODE: Final = (1 << 64) - 1
_ZERO: Final = Version(bytes(16))
_COUNTER_LIMIT: Final = 1 << 16
_COMMITTED: Final = re.compile(r'\["([0-9]+)"')


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The position of a change in the log of its database.

    ``order``: later changes of one log have greater tuples. ``node``: ``order`` in 64 bits, for the
    node of a version. ``origin``: where a change with a global transaction id was made; each origin
    numbers its own. ``database``: the database, if each has a log of its own.
    """

    order: tuple[int, ...]
    node: int
    origin: str = ""
    database: str = ""


def version_of(
    source: Mapping[str, Any],
    payload: Mapping[str, Any] | None = None,
    *,
    snapshot_age: float = SNAPSHOT_AGE,
) -> Version:
    """Return the version of a change, made from the ``source`` block of its Debezium event.

    ``payload``: the map that contains the block. The milliseconds and the counter of the version
    are the time of the change in the database, or the time at which the connector read the change
    if the block has no time or a later one. The node is the position in the database's log, so
    changes of the same instant keep the order of the log. The version of a snapshot row is
    ``snapshot_age`` seconds earlier, because the row was written at an unknown time before the
    snapshot.

    Supports PostgreSQL, MySQL, MariaDB, SQL Server, Db2, Informix and Oracle. Raises
    ``EnvelopeError`` if the time or the position is missing.
    """
    return placed(source, payload or {}, snapshot_age=snapshot_age)[0]


def placed(
    source: Mapping[str, Any], payload: Mapping[str, Any], *, snapshot_age: float
) -> tuple[Version, LogPosition]:
    """Return the version of a change, and its position in the log. See ``version_of``."""
    micros = _time(source, payload)
    position = _position_of(source, payload)
    if micros is None or position is None:
        raise malformed(
            "the source block of the Debezium event has no time, or no log position that eventsync "
            "can read",
            hint="pass the argument version, a function that returns the version for such a block",
        )
    if is_snapshot(source, payload):
        # MySQL and MariaDB log whole seconds, so the start of the second is taken.
        micros = max(0, (micros - round(snapshot_age * 1_000_000)) // 1_000_000 * 1_000_000)
    return version_at(micros, position.node), position


def is_snapshot(source: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """Return whether the event is a row that a snapshot has read, not a change in the log."""
    if payload.get("op") == "r":
        return True
    return source.get("snapshot") not in (None, False, "false", "")


class LogOrder:
    """Gives growing versions to the changes of a log, although their times may go back.

    In the logs of MySQL and MariaDB, a change has the time at which its statement began. The
    statement commits later, after changes with later times. So a change gets at least the time of
    the changes before it in the log, which was before its own commit.

    A stream may contain the changes of several logs. ``mark``: the state of an earlier instance,
    from its ``mark``.
    """

    def __init__(self, mark: str = "") -> None:
        self._logs: dict[str, _Log] = {}
        if mark:
            self._load(mark)

    @property
    def mark(self) -> str:
        """The state as a short text; empty before the first change."""
        if not self._logs:
            return ""
        state = {name: [log.greatest.hex(), log.last] for name, log in self._logs.items()}
        return json.dumps(state, separators=(",", ":"))

    def place(self, version: Version, name: str, position: LogPosition) -> Version:
        """Return the version for the next change of a log: ``version``, or a greater one.

        ``name``: the name of the connector. A change that is not after the last one of its log was
        read before. It keeps ``version``, which is not greater than what it got then.
        """
        log = self._logs.setdefault(f"{name}/{position.database}", _Log())
        last = log.last.get(position.origin)
        if last is not None and position.order <= last:
            return version
        if version <= log.greatest:
            version = Version.of(log.greatest.millis, log.greatest.counter, position.node)
            if version <= log.greatest:
                version = _next(log.greatest, position.node)
        log.last[position.origin] = position.order
        log.greatest = version
        return version

    def _load(self, mark: str) -> None:
        try:
            for name, (greatest, last) in json.loads(mark).items():
                orders = {origin: tuple(map(int, order)) for origin, order in last.items()}
                self._logs[name] = _Log(Version.parse(greatest), orders)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the mark {mark[:40]!r} of the Debezium reader is not a mark that a reader made",
                hint="pass the text that DebeziumReader.mark returned, or no mark to start anew",
            ) from error


@dataclass(slots=True)
class _Log:
    """What was read of a log: the greatest version, and the last position of each origin."""

    greatest: Version = _ZERO
    last: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _next(version: Version, node: int) -> Version:
    if version.counter + 1 < _COUNTER_LIMIT:
        return Version.of(version.millis, version.counter + 1, node)
    return Version.of(version.millis + 1, 0, node)


# -- times -----------------------------------------------------------------------------------------


def _time(source: Mapping[str, Any], payload: Mapping[str, Any]) -> int | None:
    """Return the time of the change in microseconds since the epoch; ``None`` if missing."""
    # Oracle's connector gives the time of the statement and, in newer versions, of the commit.
    changed = _micros({"ts_ms": source.get("commit_ts_ms")}) or _micros(source)
    read = _micros(payload)
    if changed is None or read is None:
        return read if changed is None else changed
    return min(changed, read)


def _micros(block: Mapping[str, Any]) -> int | None:
    """Return the time of a block in microseconds since the epoch; ``None`` if missing or 0."""
    for name, up, down in (("ts_ns", 1, 1000), ("ts_us", 1, 1), ("ts_ms", 1000, 1)):
        found = block.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found:
            return found * up // down
    return None


# -- positions -------------------------------------------------------------------------------------


def _position_of(source: Mapping[str, Any], payload: Mapping[str, Any]) -> LogPosition | None:
    """Return the position of a change in its log, or ``None`` if the block has none.

    Raises ``EnvelopeError`` if the position is malformed.
    """
    for names, read in _READERS:
        if any(source.get(name) is not None for name in names):
            try:
                return read(source, payload)
            except (ValueError, TypeError, AttributeError) as error:
                raise malformed("the log position in the Debezium event is malformed") from error
    return None


def _wal(source: Mapping[str, Any], payload: Mapping[str, Any]) -> LogPosition:
    """Return a position in PostgreSQL's log, where a transaction is read when it commits."""
    lsn = _number(source["lsn"])
    # The text of a JSON array: the end of the last committed transaction, and the position.
    committed = _COMMITTED.match(str(source.get("sequence")))
    return LogPosition((int(committed[1]) if committed else 0, lsn), lsn & _NODE)


def _binlog(source: Mapping[str, Any], payload: Mapping[str, Any]) -> LogPosition:
    """Return a position in the log of MySQL or MariaDB: the file, the event and the row in it."""
    file = _number(str(source.get("file") or "").rpartition(".")[2] or 0)
    pos, row = _number(source["pos"]), _number(source.get("row") or 0)
    node = (file & 0xF_FFFF) << 44 | (pos & 0xFFFF_FFFF) << 12 | min(row, 0xFFF)
    gtid = source.get("gtid")
    if not gtid:
        return LogPosition((file, pos, row), node)
    # MySQL: origin:number. MariaDB: domain-server-number; the number grows within the domain.
    if ":" in gtid:
        origin, _, number = gtid.rpartition(":")
    else:
        origin, number = gtid.partition("-")[0], gtid.rpartition("-")[2]
    return LogPosition((_number(number), file, pos, row), node, origin)


def _change_lsn(source: Mapping[str, Any], payload: Mapping[str, Any]) -> LogPosition:
    """Return a position in the log of SQL Server, Db2 or Informix.

    The rows of a snapshot have only the position of the last commit.
    """
    committed = source.get("commit_lsn")
    change = _lsn(committed if source.get("change_lsn") is None else source["change_lsn"])
    serial = _number(source.get("event_serial_no") or 0)
    commit = change if committed is None else _lsn(committed)
    database = str(source.get("db") or "")
    return LogPosition((commit, change, serial), change & _NODE, database=database)


def _redo(source: Mapping[str, Any], payload: Mapping[str, Any]) -> LogPosition:
    """Return a position in Oracle's log. Many changes may share one system change number."""
    scn = _number(source.get("scn") or source.get("commit_scn"))
    # In a cluster, the text lists the numbers of all redo threads.
    commits = str(source.get("commit_scn") or scn).split(",")
    commit = max(_number(part.partition(":")[0]) for part in commits)
    record = source.get("rs_id")
    if record:
        # The record's file, block and offset, and the number of the change in the record.
        file, block, offset = (int(part, 16) for part in str(record).split(".")[-3:])
        ssn = _number(source.get("ssn") or 0)
        detail = (block & 0xF_FFFF) << 20 | (offset & 0xFFF) << 8 | min(ssn, 0xFF)
        order: tuple[int, ...] = (commit, scn, file, block, offset, ssn)
    else:
        # The connector reads the changes in the order of the log.
        detail = (_micros(payload) or 0) & (1 << 40) - 1
        order = (commit, scn)
    return LogPosition(order, (scn & 0xFF_FFFF) << 40 | detail)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _lsn(value: Any) -> int:
    """Return a log sequence number: hexadecimal numbers between colons, or one decimal number."""
    text = str(value)
    return int(text.replace(":", ""), 16) if ":" in text else int(text)


_Read: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], LogPosition]

_READERS: Final[tuple[tuple[tuple[str, ...], _Read], ...]] = (
    (("lsn",), _wal),
    (("pos",), _binlog),
    (("change_lsn", "commit_lsn"), _change_lsn),
    (("scn", "commit_scn"), _redo),
)
