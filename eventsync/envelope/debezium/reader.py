"""The reader: makes changes of records from the events of one Debezium connector."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, RANK, Op, Stamp
from eventsync.envelope.codec import encode
from eventsync.envelope.debezium.column import UnsupportedValueError, convert, declared, fields_of
from eventsync.envelope.debezium.event import Event, read_event, unwrapped
from eventsync.envelope.debezium.log_position import (
    SNAPSHOT_AGE,
    LogOrder,
    is_snapshot,
    placed,
)
from eventsync.envelope.debezium.placeholder import PLACEHOLDER, Placeholder, may_lack_placeholder
from eventsync.envelope.debezium.row import Row, complete, doubtful, unchanged
from eventsync.errors import (
    ChangeRefusedError,
    EventSyncError,
    ValueRefusedError,
    malformed,
    shown,
)

__all__ = ["DebeziumReader", "from_debezium"]

_OPS: Final[Mapping[str, Op]] = {"c": PUT, "u": PUT, "r": PUT, "d": DELETE}
UNCHANGED: Final = "unchanged"
_IDENTITY_HINT: Final = "make the database log whole rows (in PostgreSQL: REPLICA IDENTITY FULL)"
# The stamp of a record whose versions are unknown.
_UNVERSIONED: Final = Stamp(bytes(16) + RANK[PUT] + bytes(32))


class DebeziumReader:
    """Makes changes from the events of one connector, read in the order of the database's log.

    Use one reader for each stream that keeps this order, such as a partition of a Kafka topic. Not
    thread-safe.

    - ``key_text``: a function that returns the record's key; its argument is the columns of the
      Kafka key, or the columns of the row if there is no key.
    - ``type``: the record type; by default the name of the table.
    - ``version``: a function that returns the version for the ``source`` block of an event; by
      default ``version_of`` and the order of the log.
    - ``rule``: the merge rule of the record type. Under the rule ``field``, an update is a patch:
      of what changed if the event has the row before the update, else of the columns that it has.
    - ``columns``: for columns whose type the events do not say: the name of a semantic type such as
      ``io.debezium.time.Date``; ``base64``, ``base64-url-safe`` or ``hex`` for bytes in a text;
      ``uint64`` for unsigned integers; or a schema of Kafka Connect. Needed for events without
      schema.
    - ``placeholder``: the connector's setting ``unavailable.value.placeholder``.
    - ``snapshot_age``: see ``version_of``.
    - ``trust_nulls``: whether null always means null. By default, null is refused where
      PostgreSQL's connector also sends it for a large value that did not change.
    - ``mark``: the ``mark`` that an earlier reader had at this place of the stream.

    ``skipped`` counts the events that describe no change of a record, by kind: ``tombstone``,
    ``heartbeat``, ``transaction``, ``schema-change``, ``message`` and ``unchanged``.

    Raises ``ConfigError`` if ``columns`` or ``mark`` is invalid.
    """

    def __init__(
        self,
        *,
        key_text: Callable[[Mapping[str, Any]], str],
        type: str | None = None,
        version: Callable[[Mapping[str, Any]], Version] | None = None,
        rule: Literal["record", "field"] = "record",
        columns: Mapping[str, str | Mapping[str, Any]] | None = None,
        placeholder: str | bytes = PLACEHOLDER,
        snapshot_age: float = SNAPSHOT_AGE,
        trust_nulls: bool = False,
        mark: str = "",
    ) -> None:
        self._key_text = key_text
        self._type = type
        self._version = version
        self._rule = rule
        self._columns = {name: declared(name, c) for name, c in (columns or {}).items()}
        self._placeholder = Placeholder(placeholder)
        self._snapshot_age = snapshot_age
        self._trust_nulls = trust_nulls
        self._order = LogOrder(mark)
        self.skipped: Counter[str] = Counter()

    @property
    def mark(self) -> str:
        """The place in the log as a short text.

        Store it together with your position in the stream, after the changes are published. A
        reader that is made with it gives the following events the versions that this reader gives.
        """
        return self._order.mark

    def read(
        self,
        event: Mapping[str, Any] | str | bytes | None,
        key: Mapping[str, Any] | str | bytes | None = None,
    ) -> Change | None:
        """Return the change that an event describes; ``None`` if it describes none.

        ``event`` and ``key``: the value and the key of the Kafka message, as JSON, with or without
        schema; ``event`` may be wrapped in a CloudEvent. With a schema, the change contains Python
        dates, times, decimals, UUIDs and bytes.

        Raises ``EnvelopeError`` if the event is malformed. Raises ``ChangeRefusedError`` if the
        event cannot become a change: a truncated table, missing values, values that no record can
        hold. Does not catch the eventsync errors that ``key_text`` or ``version`` raise. After an
        error the reader can read the next event.
        """
        found = read_event(event)
        if isinstance(found, str):
            self.skipped[found] += 1
            return None
        op, source = _op(found.payload), found.payload.get("source")
        if not isinstance(source, Mapping):
            raise malformed("the Debezium event has no source block")
        before, after = self._row(found, "before"), self._row(found, "after")
        keys = self._key_columns(key)
        type = self._type if self._type is not None else source.get("table")
        text = self._key(keys, before if op == DELETE else after, type)
        body = _Body(op)
        if op != DELETE:
            label = f"{type} {text!r}"
            body = self._body(found.payload, source, before, after, keys, label)
            if not body.data:
                self.skipped[UNCHANGED] += 1
                return None
        change = Change(
            type=type if isinstance(type, str) else "",
            key=text,
            op=body.op,
            version=self._version_of(source, found.payload),
            data=body.data,
            source=_name(source),
            known=body.known,
        )
        seed = f"{change.source}\n{change.version.hex()}\n{change.type}\n{change.key}"
        change.id = hashlib.sha256(seed.encode(errors="replace")).digest()[:16]
        try:
            encode(change)  # raises if the change breaks a rule of envelopes
        except ValueRefusedError as error:
            raise malformed(
                f"malformed Debezium event of {shown(type)} {shown(text)}: {error.message}",
                hint=error.hint,
            ) from error
        return change

    def _version_of(self, source: Mapping[str, Any], payload: Mapping[str, Any]) -> Version:
        if self._version is not None:
            return self._version(source)
        version, position = placed(source, payload, snapshot_age=self._snapshot_age)
        if is_snapshot(source, payload):
            return version
        return self._order.place(version, _name(source), position)

    # -- rows --------------------------------------------------------------------------------------

    def _row(self, event: Event, side: str) -> Row | None:
        row = event.payload.get(side)
        if row is None:
            return None
        if not isinstance(row, Mapping):
            raise malformed(
                f"the row of the Debezium event is {shown(row)}, not a JSON object",
                hint="only the connectors for relational databases are supported",
            )
        return self._converted(row, fields_of(fields_of(event.schema).get(side)))

    def _converted(self, raw: Mapping[str, Any], schemas: Mapping[str, Any]) -> Row:
        row = Row(raw)
        for name, value in raw.items():
            schema = self._columns.get(name, schemas.get(name))
            if self._placeholder.matches(value, schemas.get(name)):
                row.lacking.append(name)
                continue
            if value is None and may_lack_placeholder(schema):
                row.doubtful.append(name)
            try:
                row.values[name] = convert(value, schema)
            except UnsupportedValueError as error:
                row.unsupported[name] = str(error)
            except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
                raise malformed(
                    f"the value of column {name[:60]!r} does not match the schema of the column"
                ) from error
        return row

    def _key_columns(self, key: Mapping[str, Any] | str | bytes | None) -> dict[str, Any] | None:
        payload, schema = unwrapped(key)
        if payload is None:
            return None
        row = self._converted(payload, fields_of(schema))
        for name, problem in row.unsupported.items():
            raise _unsupported("a record", name, problem)
        return row.values

    def _key(self, keys: Mapping[str, Any] | None, row: Row | None, type: Any) -> str:
        columns = keys or (row and row.values)
        if not columns:
            raise malformed(
                "the Debezium event has neither a key nor a row, so the record's key is unknown",
                hint=f"pass the argument key, or {_IDENTITY_HINT}",
            )
        try:
            return self._key_text(columns)
        except EventSyncError:
            raise
        except (LookupError, ValueError, TypeError) as error:
            raise malformed(
                f"the columns of the Debezium event do not make a key of record type "
                f"{shown(type)}: {error!r}"
            ) from error

    def _body(
        self,
        payload: Mapping[str, Any],
        source: Mapping[str, Any],
        before: Row | None,
        after: Row | None,
        keys: Mapping[str, Any] | None,
        label: str,
    ) -> _Body:
        """Return operation and values of a row that was created or updated."""
        if after is None:
            raise malformed(
                f"the Debezium event creates or updates {label}, but its entry after is null"
            )
        is_update = payload["op"] == "u"
        is_postgres = source.get("connector") == "postgresql"
        if not is_update:
            before = None
        elif is_postgres and not self._trust_nulls:
            for name in doubtful(before, after, keys or {}):
                raise ChangeRefusedError(
                    f"the Debezium event of {label} has null for column {name!r}, which is also "
                    "what PostgreSQL's connector sends for a large value that did not change",
                    reason="incomplete-row",
                    hint=f"{_IDENTITY_HINT}; for numbers, set decimal.handling.mode to string; if "
                    "the column never holds large values, pass trust_nulls=True",
                )
        if before is not None:
            complete(after, before)
        if self._rule == "field" and (is_update or after.lacking):
            return self._patch(before, after, keys, is_postgres, label)
        if after.lacking:
            raise ChangeRefusedError(
                f"the Debezium event of {label} has no values for the columns "
                f"{', '.join(after.lacking)}",
                reason="incomplete-row",
                hint=f'{_IDENTITY_HINT}, or declare the record type with rule="field" and pass '
                'rule="field"',
            )
        for name, problem in after.unsupported.items():
            raise _unsupported(label, name, problem)
        return _Body(PUT, after.values)

    def _patch(
        self,
        before: Row | None,
        after: Row,
        keys: Mapping[str, Any] | None,
        is_postgres: bool,
        label: str,
    ) -> _Body:
        """Return the changed columns as a patch, and the others as its base state.

        Without the row before the update, all columns count as changed. A row that lacks values has
        no base state, because a store without the record must not take it for whole.
        """
        if keys is None:
            raise ChangeRefusedError(
                f"the Debezium event of {label} has no key, so the columns of a patch are unknown",
                reason="incomplete-row",
                hint="pass the argument key, the key of the Kafka message",
            )
        same = set() if before is None else unchanged(before, after, nulls=not is_postgres)
        for name, problem in after.unsupported.items():
            if name not in same:
                raise _unsupported(label, name, problem)
        rest = {name: value for name, value in after.values.items() if name not in keys}
        changed = {name: value for name, value in rest.items() if name not in same}
        known = None
        if not after.lacking:
            others = {name: value for name, value in rest.items() if name in same}
            known = BaseState(_UNVERSIONED, others, {})
        return _Body(PATCH, changed, known)


@dataclass(slots=True)
class _Body:
    """Operation and field values of a change. ``known``: the base state of a patch."""

    op: Op
    data: Mapping[str, Any] | None = None
    known: BaseState | None = None


def _name(source: Mapping[str, Any]) -> str:
    """Return the name of the connector."""
    return str(source.get("name") or source.get("connector") or "debezium")


def _unsupported(label: str, name: str, problem: str) -> ChangeRefusedError:
    return ChangeRefusedError(
        f"the column {name[:60]!r} of {label} {problem}, which no record can hold",
        reason="unsupported-value",
        hint="correct the value in the database; its next change is read",
    )


def _op(payload: Mapping[str, Any]) -> Op:
    code = payload.get("op")
    if isinstance(code, str) and code in _OPS:
        return _OPS[code]
    if code == "t":
        raise ChangeRefusedError(
            "the Debezium event is a truncated table, not a change of one record",
            reason="unsupported-operation",
            hint="exclude such events with the connector's setting skipped.operations, or compare "
            "the stores with eventsync sync",
        )
    raise malformed(
        f"the Debezium event has the operation {shown(code)}, not c, u, r or d",
        reason="envelope",
        hint="if the connector flattens events with ExtractNewRecordState, remove this "
        "transformation",
    )


def from_debezium(
    event: Mapping[str, Any] | str | bytes | None,
    key: Mapping[str, Any] | str | bytes | None = None,
    *,
    key_text: Callable[[Mapping[str, Any]], str],
    type: str | None = None,
    version: Callable[[Mapping[str, Any]], Version] | None = None,
    rule: Literal["record", "field"] = "record",
    columns: Mapping[str, str | Mapping[str, Any]] | None = None,
    placeholder: str | bytes = PLACEHOLDER,
    snapshot_age: float = SNAPSHOT_AGE,
    trust_nulls: bool = False,
) -> Change | None:
    """Return the change that a single Debezium event describes; ``None`` if it describes none.

    The same event always gives an equal change. The arguments and the errors: as in
    ``DebeziumReader``. Read a whole stream with a ``DebeziumReader``, which also keeps the order of
    changes whose times go back, as in the logs of MySQL and MariaDB.
    """
    reader = DebeziumReader(
        key_text=key_text,
        type=type,
        version=version,
        rule=rule,
        columns=columns,
        placeholder=placeholder,
        snapshot_age=snapshot_age,
        trust_nulls=trust_nulls,
    )
    return reader.read(event, key)
