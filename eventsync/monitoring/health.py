"""The health of a crew: whether it lives, is ready, and gets on with the work that waits.

It owns what counts as well, and the words that tell an operator why not. It must not know how facts
are found, nor how they are served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eventsync.monitoring.backlog import Survey
from eventsync.monitoring.circuit_breaker import CircuitState
from eventsync.monitoring.worker_group import WorkerGroup

__all__ = ["Health"]


class Health:
    """Judges a crew by what it tells and what a survey sees. Thread-safe.

    ``stores``: those that have to have workers; none for a relay. ``stall_after``: for how many
    seconds work may wait while none of it moves.
    """

    def __init__(
        self,
        crew: WorkerGroup,
        survey: Survey,
        *,
        stores: Iterable[str] = (),
        stall_after: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._crew = crew
        self._survey = survey
        self._stores = list(stores)
        self._stall_after = stall_after
        self._now = now

    def live(self) -> list[str]:
        """Why the process should be started anew: for no reason, since it answers."""
        return []

    def ready(self) -> list[str]:
        """Why no work could be done now, a reason each; none when it can."""
        reasons = self._away()
        for store in self._stores:
            states = self._of(store)
            if not any(_is_closed(state) and state["doing"] != "starting" for state in states):
                reasons += _circuits(states) or [f"{store}: no worker is ready yet"]
        return reasons

    def progress(self) -> list[str]:
        """Why work that waits does not get done, a reason each; none when all is well."""
        reasons = self._away()
        queues, now = self._survey.broker.answer or {}, self._now()
        for store in self._stores:
            found, states = queues.get(store), self._of(store)
            # Not every broker tells what it has handed out; who holds it does.
            held = [now - state["silence"] for state in states if state["in_hand"]]
            since = min(held, default=None) if found is None or found.since is None else found.since
            if since is None:
                continue
            moved = self._crew.moved(store) or -math.inf
            still = now - max(moved, since)
            if states and not any(map(_is_closed, states)):
                reasons += _circuits(states)
            elif still > self._stall_after:
                waiting = sum(state["in_hand"] for state in states)
                if found is not None:
                    waiting = found.work + (waiting if found.in_hand is None else found.in_hand)
                doing = ", ".join(dict.fromkeys(s["doing"] for s in states)) or "none lives"
                reasons.append(
                    f"{store}: {waiting:,} messages wait or are in hand, and none was settled for "
                    f"{still:.0f} s; its workers: {doing}"
                )
        for name, look in self._survey.outboxes.items():
            outbox = look.answer
            if outbox is not None and outbox.since is not None:
                still = now - outbox.since
                if still > self._stall_after:
                    reasons.append(
                        f"{name}: {outbox.waiting:,} changes wait to be published, and none was "
                        f"for {still:.0f} s"
                    )
        return reasons

    def to_json(self) -> dict[str, Any]:
        """All that is known, ready for ``json.dumps``; ages in seconds."""
        survey, now = self._survey, self._now()
        queues = survey.broker.answer or {}

        def age(moment: float | None) -> float | None:
            return None if moment is None else round(max(0.0, now - moment), 3)

        return {
            "stores": self._stores,
            "broker": {"up": survey.broker.answer is not None, "error": survey.broker.error},
            "queues": {
                store: found
                and {
                    "work": found.work,
                    "in_hand": found.in_hand,
                    "held": found.held,
                    "dead": found.dead,
                    "oldest": age(found.oldest),
                }
                for store, found in queues.items()
            },
            "outboxes": {
                name: {"waiting": outbox.waiting, "oldest": age(outbox.oldest)}
                if (outbox := look.answer)
                else {"error": look.error}
                for name, look in survey.outboxes.items()
            },
            "workers": [{"worker": name, **state} for name, state in self._crew.states().items()],
        }

    def _away(self) -> list[str]:
        error = self._survey.broker.error
        found = [error] if error else []
        looks = self._survey.outboxes.items()
        return found + [f"{name}: {look.error}" for name, look in looks if look.error]

    def _of(self, store: str) -> list[dict[str, Any]]:
        return [state for state in self._crew.states().values() if state["store"] == store]


def _is_closed(state: dict[str, Any]) -> bool:
    return bool(state["circuit"]["state"] == CircuitState.CLOSED)


def _circuits(states: Sequence[dict[str, Any]]) -> list[str]:
    open = [state for state in states if not _is_closed(state)]
    told = (f"{state['store']}: circuit open: {state['circuit']['error']}" for state in open)
    return list(dict.fromkeys(told))
