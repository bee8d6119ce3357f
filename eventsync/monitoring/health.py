"""The health of a group of workers: whether the workers are alive, ready and make progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from eventsync.monitoring.backlog import BacklogMonitor
from eventsync.monitoring.circuit_breaker import CircuitState
from eventsync.monitoring.following import lateness
from eventsync.monitoring.problem import ProblemKind
from eventsync.monitoring.worker_group import WorkerGroup

__all__ = ["Health", "problem_text"]


class Health:
    """Checks the health of a group of workers by their status and the backlog. Thread-safe.

    ``stores``: the names of the stores that need workers; empty for a relay. ``stall_after``: after
    how many seconds without a settled message, while messages wait, a store counts as stalled.
    """

    def __init__(
        self,
        workers: WorkerGroup,
        backlog: BacklogMonitor,
        *,
        stores: Iterable[str] = (),
        stall_after: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._backlog = backlog
        self._stores = list(stores)
        self._stall_after = stall_after
        self._now = now

    def live(self) -> list[str]:
        """Return the reasons to restart the process: always none, because the process answers."""
        return []

    def ready(self) -> list[str]:
        """Return the reasons why changes cannot be applied now; an empty list if they can."""
        reasons = self._unreachable()
        for store in self._stores:
            states = self._states_of(store)
            if not any(_is_closed(state) and state["doing"] != "starting" for state in states):
                reasons += _circuits(states) or [f"{store}: no worker is ready yet"]
        return reasons

    def progress(self) -> list[str]:
        """Return the reasons why workers or relays make no progress; an empty list if they do.

        The reasons are an unreachable broker or store, open circuits, messages or changes that have
        waited for more than ``stall_after`` seconds, foreign writes that were not captured for so
        long, workers that crash again and again, and the problems of the stores. An overrun of the
        capture is no reason.
        """
        reasons = self._unreachable()
        queues, now = self._backlog.broker.answer or {}, self._now()
        for store in self._stores:
            queue, states = queues.get(store), self._states_of(store)
            # Not every broker reports the messages in hand. The workers' status reports them, too.
            busy = [now - state["silence"] for state in states if state["in_hand"]]
            since = min(busy, default=None) if queue is None or queue.since is None else queue.since
            if since is None:
                continue
            settled_at = self._workers.settled_at(store) or -math.inf
            stalled_for = now - max(settled_at, since)
            if states and not any(map(_is_closed, states)):
                reasons += _circuits(states)
            elif stalled_for > self._stall_after:
                waiting = sum(state["in_hand"] for state in states)
                if queue is not None:
                    waiting = queue.work + (waiting if queue.in_hand is None else queue.in_hand)
                doing = ", ".join(dict.fromkeys(s["doing"] for s in states)) or "none is running"
                reasons.append(
                    f"{store}: {waiting:,} messages wait or are in hand, and none was settled for "
                    f"{stalled_for:.0f} s; state of the workers: {doing}"
                )
        for name, poller in self._backlog.outboxes.items():
            outbox = poller.answer
            if outbox is not None and outbox.since is not None:
                stalled_for = now - outbox.since
                if stalled_for > self._stall_after:
                    reasons.append(
                        f"{name}: {outbox.waiting:,} changes wait to be published, and none was "
                        f"published for {stalled_for:.0f} s"
                    )
            if outbox is not None and outbox.following is not None:
                late = lateness(name, outbox.following, self._stall_after, now=self._now)
                reasons += [f"{name}: {late}"] if late else []
        reasons += [f"{crash.store}: {crash}" for crash in self._workers.crashes()]
        return reasons + list(dict.fromkeys(self._problems()))

    def to_json(self) -> dict[str, Any]:
        """Return the state of broker, queues, outboxes and workers as a dict for ``json.dumps``.

        Ages are in seconds.
        """
        backlog, now = self._backlog, self._now()
        queues = backlog.broker.answer or {}

        def age(moment: float | None) -> float | None:
            return None if moment is None else round(max(0.0, now - moment), 3)

        return {
            "stores": self._stores,
            "broker": {"up": backlog.broker.answer is not None, "error": backlog.broker.error},
            "queues": {
                store: queue
                and {
                    "work": queue.work,
                    "in_hand": queue.in_hand,
                    "held": queue.held,
                    "dead": queue.dead,
                    "oldest": age(queue.oldest),
                }
                for store, queue in queues.items()
            },
            "outboxes": {
                name: {
                    "waiting": outbox.waiting,
                    "oldest": age(outbox.oldest),
                    "following": outbox.following and outbox.following.to_json(now),
                }
                if (outbox := poller.answer)
                else {"error": poller.error}
                for name, poller in backlog.outboxes.items()
            },
            "workers": [
                {"worker": name, **state} for name, state in self._workers.states().items()
            ],
            "crashes": self._workers.to_json()["crashes"],
        }

    def _problems(self) -> Iterator[str]:
        for state in self._workers.states().values():
            for problem in state["problems"]:
                if problem["kind"] != ProblemKind.OVERRUN:
                    yield problem_text(state["store"], problem)

    def _unreachable(self) -> list[str]:
        error = self._backlog.broker.error
        reasons = [error] if error else []
        pollers = self._backlog.outboxes.items()
        return reasons + [f"{name}: {poller.error}" for name, poller in pollers if poller.error]

    def _states_of(self, store: str) -> list[dict[str, Any]]:
        """Return the states of the workers of a store, without the processes that only capture."""
        return [
            state
            for state in self._workers.states().values()
            if state["store"] == store and state["role"] == "worker"
        ]


def problem_text(store: str, problem: Mapping[str, Any]) -> str:
    """Return the text of a problem in a worker's state, with the names of store and type."""
    about = f"{store}: {problem['type']}: " if problem["type"] else f"{store}: "
    return f"{about}{problem['text']}"


def _is_closed(state: dict[str, Any]) -> bool:
    return bool(state["circuit"]["state"] == CircuitState.CLOSED)


def _circuits(states: Sequence[dict[str, Any]]) -> list[str]:
    open = [state for state in states if not _is_closed(state)]
    reasons = (f"{state['store']}: circuit open: {state['circuit']['error']}" for state in open)
    return list(dict.fromkeys(reasons))
