"""The replica of records in Redis that are merged per record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eventsync.changes.change import Change
from eventsync.engine.gate import Verdict, decide_put_or_delete, lacks_fields
from eventsync.engine.replica import Replica
from eventsync.engine.unit_of_work import UnitOfWork
from eventsync.index import Entry
from eventsync.stores.redis.index import RedisTransaction

__all__ = ["NewestWinsReplica"]


class NewestWinsReplica(Replica):
    """A replica whose script compares the stamps, so that nothing is read before a write."""

    def apply(self, batch: Mapping[str, Sequence[Change]]) -> dict[str, Sequence[Verdict]]:
        view = self.accessor.view
        # A put that lacks fields leaves these fields as they are, so its record is read.
        lacking = {k: changes for k, changes in batch.items() if lacks_fields(changes[0], view)}
        if lacking:
            verdicts = super().apply(lacking)
            rest = {key: changes for key, changes in batch.items() if key not in lacking}
            return verdicts | (self.apply(rest) if rest else {})
        # Decide as if Redis held none of the records. The script writes a record only if Redis
        # holds no later change of it, and returns the entries of those that it did not write.
        decisions = {
            key: decide_put_or_delete(None, changes[0], view) for key, changes in batch.items()
        }

        def attempt() -> Mapping[str, Entry]:
            with self.index.transaction() as transaction:
                assert isinstance(transaction, RedisTransaction)
                transaction.newest_wins = True
                UnitOfWork(self.accessor, transaction).perform(decisions)
            return transaction.met

        met = self.index.until_done(attempt)
        verdicts = {key: decision.verdicts for key, decision in decisions.items()}
        for key, entry in met.items():
            verdicts[key] = decide_put_or_delete(entry.stamp, batch[key][0], view).verdicts
        return verdicts
