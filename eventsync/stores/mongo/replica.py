"""The replica of records in MongoDB, each of which is written by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eventsync.changes.change import Change
from eventsync.engine.gate import Verdict
from eventsync.engine.replica import NO_MOMENTS, Encode, Replica
from eventsync.index import UndoneError
from eventsync.stores.mongo.index import MongoIndex
from eventsync.stores.mongo.transaction import Envelope

__all__ = ["MongoReplica"]


class MongoReplica(Replica):
    """A replica whose transactions write each record by itself, and leave out those that fail.

    ``apply`` and ``capture`` are repeated with the records that another writer changed meanwhile.
    """

    def apply(self, batch: Mapping[str, Sequence[Change]]) -> dict[str, Sequence[Verdict]]:
        verdicts: dict[str, Sequence[Verdict]] = {}

        def attempt(lenient: Replica, keys: Sequence[str]) -> None:
            verdicts.update(Replica.apply(lenient, {key: batch[key] for key in keys}))

        self._repeat(list(batch), attempt)
        return verdicts

    def capture(
        self,
        keys: Sequence[str],
        encode: Encode | None,
        *,
        deletes: float = 1.0,
        moments: Mapping[str, float | None] = NO_MOMENTS,
    ) -> list[Change]:
        changes: dict[str, Change] = {}

        def attempt(lenient: Replica, keys: Sequence[str]) -> None:
            for key in keys:
                changes.pop(key, None)  # another writer was faster at the last attempt
            captured = Replica.capture(lenient, keys, encode, deletes=deletes, moments=moments)
            changes.update({change.key: change for change in captured})

        self._repeat(list(dict.fromkeys(keys)), attempt)
        return list(changes.values())

    def envelopes(self, changes: Sequence[Change], encode: Encode | None) -> list[bytes]:
        """Return envelopes that name their records: the index keeps each in its record's entry."""
        if encode is None:
            return []
        return [Envelope.of(encode(change), change.key) for change in changes]

    def _repeat(
        self, keys: Sequence[str], attempt: Callable[[Replica, Sequence[str]], None]
    ) -> None:
        """Call ``attempt`` until no record is left that another writer changed meanwhile."""
        index = self.index
        assert isinstance(index, MongoIndex)
        left = list(keys)

        def once() -> None:
            lost: list[str] = []
            attempt(self.with_index(index.lenient(lost)), list(left))
            left[:] = lost
            if left:
                raise UndoneError(
                    f"other writers kept changing {self.type.name} {left[0]!r}",
                    hint="the write is tried again",
                )

        index.until_done(once)
