"""Changes that fail by themselves, though their store works: tried one by one, the failing held.

It owns how the failing are found. It knows nothing of transports, nor of when this is called for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled
from eventsync.engine.gate import Outcome
from eventsync.errors import EventSyncError, StoreUnavailableError, is_retryable

__all__ = ["apply_apart"]

_MANY = 50
_REACHED = frozenset(Outcome) - {Outcome.HELD, Outcome.REJECTED}


def apply_apart(
    apply: Callable[[Sequence[Change]], list[Settled]],
    changes: Sequence[Change],
    *,
    works: bool = False,
) -> list[Settled]:
    """As ``apply(changes)``, but a change that fails retryably by itself is ``HELD``.

    That is so only when the store is known to work: another change succeeded in this call, or, for
    a few changes, ``works`` says so. Otherwise the error is raised, since a store that is away
    holds up all of them. Idempotent. Raises retryable errors; then nothing is decided.
    """
    outcomes: dict[int, Settled] = {}
    errors: dict[int, Exception] = {}
    reached = False

    def attempt(numbers: Sequence[int]) -> None:
        nonlocal reached
        try:
            settled = apply([changes[number] for number in numbers])
        except Exception as error:
            if not is_retryable(error):
                raise
            if len(numbers) == 1:
                errors[numbers[0]] = error
                if not reached and (len(errors) == _MANY or not (works or len(changes) > 1)):
                    raise  # more likely the store than so many changes
                return
            middle = len(numbers) // 2
            attempt(numbers[:middle])
            attempt(numbers[middle:])
        else:
            outcomes.update(zip(numbers, settled, strict=True))
            reached = reached or any(item.outcome in _REACHED for item in settled)

    attempt(range(len(changes)))
    if errors and not reached and not works:
        raise next(iter(errors.values()))
    for number, error in errors.items():
        outcomes[number] = Settled(changes[number], Outcome.HELD, _told(error))
    return [outcomes[number] for number in range(len(changes))]


def _told(error: Exception) -> EventSyncError:
    if isinstance(error, EventSyncError):
        return error
    told = StoreUnavailableError(str(error) or type(error).__name__)
    told.__cause__ = error
    return told
