"""A fake time, a fake bus, and the simulation of a process that dies during a write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from eventsync.changes.change import Change
from eventsync.engine.store import Store
from eventsync.envelope import codec
from eventsync.errors import BusUnavailableError
from eventsync.index import IndexTransaction

__all__ = ["Crash", "FakeBus", "FakeTime", "Fuse", "crashing"]


@dataclass
class FakeTime:
    """A time that changes only when ``advance`` is called, in seconds since the epoch.

    Pass an instance to a clock: ``Clock(now=FakeTime())``.
    """

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the time forward, or back if ``seconds`` is negative."""
        self.now += seconds


@dataclass
class FakeBus:
    """A publisher that keeps the published envelopes in a list instead of sending them.

    Pass an instance to a store: ``Store(..., publisher=FakeBus())``. ``away``: let ``publish``
    raise ``BusUnavailableError``, as if the broker were down.
    """

    away: bool = False
    envelopes: list[bytes] = field(default_factory=list)

    def encode(self, change: Change) -> bytes:
        return codec.encode(change)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        if self.away:
            raise BusUnavailableError(
                "this FakeBus simulates a broker that is down",
                hint="set away to False",
            )
        self.envelopes += envelopes

    def changes(self) -> list[Change]:
        """Return all published changes, in order. Each call decodes them anew."""
        return [codec.decode(raw) for raw in self.envelopes]


class Crash(BaseException):
    """Simulates the death of the process. No code under test may catch this exception."""


class Fuse:
    """A counter of steps that raises ``Crash`` at step number ``at``, counted from 1."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        """Count one step. Raises ``Crash`` if it is step number ``at``."""
        self._left -= 1
        if not self._left:
            raise Crash

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts one step, calls ``call``, and counts another step."""

        def stepping(*arguments: Any, **keywords: Any) -> Any:
            self.step()
            answer = call(*arguments, **keywords)
            self.step()
            return answer

        return stepping


_ACCESSOR = ("add", "update", "remove", "read_rows", "write_rows")
_TRANSACTION = ("read", "write", "intend", "settle")


@contextmanager
def crashing(store: Store, fuse: Fuse, others: Iterable[tuple[Any, str]] = ()) -> Iterator[None]:
    """Let ``fuse`` count the steps of writes to ``store`` while the ``with`` block runs.

    A step is counted before and after each of these: a call of an accessor method that reads or
    writes data, a call of an index transaction, the commit, the publication, and a call of a
    function in ``others``. ``others``: pairs of an object and the name of its method or function.
    """
    points: list[tuple[Any, str]] = [
        (a, name) for a in store.accessors.values() for name in _ACCESSOR
    ]
    points += [(store.index, "sent"), *others]
    if store.publisher is not None:
        points.append((store.publisher, "publish"))
    begin = store.index.transaction

    @contextmanager
    def transaction() -> Iterator[IndexTransaction]:
        with begin() as begun, ExitStack() as stack:
            for name in _TRANSACTION:
                around = fuse.around(getattr(begun, name))
                stack.enter_context(patch.object(begun, name, around))
            yield begun
            fuse.step()
        fuse.step()

    with ExitStack() as stack:
        for owner, name in points:
            stack.enter_context(patch.object(owner, name, fuse.around(getattr(owner, name))))
        stack.enter_context(patch.object(store.index, "transaction", transaction))
        yield
