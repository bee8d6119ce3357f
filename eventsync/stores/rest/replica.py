"""The replica of records that are objects of a REST service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from eventsync.engine.edit import Edit
from eventsync.engine.replica import Encode, Replica
from eventsync.engine.unit_of_work import UnitOfWork
from eventsync.errors import StoreUnavailableError
from eventsync.stores.rest.ids import OvertakenError

__all__ = ["RestReplica"]

_ATTEMPTS: Final = 5


class RestReplica(Replica):
    """A replica that repeats an edit after a foreign write, and checks one whose answer is lost."""

    def edit(self, edits: Sequence[Edit], encode: Encode | None) -> None:
        if len(edits) > 1:
            super().edit(edits, encode)  # calls this method for each of them
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                super().edit(edits, encode)
            except OvertakenError:
                if attempt == _ATTEMPTS:
                    raise
            except StoreUnavailableError as error:
                if not error.uncertain or not self._was_made(edits[0].key):
                    raise
                return
            else:
                return

    def _was_made(self, key: str) -> bool:
        """Return whether an edit was made although its answer is lost, and close its intent."""
        name = self.type.name
        with self.index.transaction() as transaction:
            intents = transaction.open_intents(name)
            if key not in intents:
                return True  # another process has recovered it
            row = self.accessor.read_rows([key], transaction).get(key)
            made = UnitOfWork(self.accessor, transaction).matches(intents[key], row)
            if made:
                transaction.write(name, {key: intents[key].entry})
            transaction.settle(name, list(intents), send=made)
        return made
