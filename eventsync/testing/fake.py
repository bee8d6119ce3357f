"""Stand-ins for time, the bus and the moment at which a process dies.

It knows nothing of what is tested with them.
"""

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
    """A time that moves only when told to: ``Clock(now=FakeTime())``. Seconds since the epoch."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on, or back."""
        self.now += seconds


@dataclass
class FakeBus:
    """A publisher that keeps the envelopes it is given: ``Store(..., publisher=FakeBus())``.

    ``away``: have it refuse them, as a broker that is down does.
    """

    away: bool = False
    envelopes: list[bytes] = field(default_factory=list)

    def encode(self, change: Change) -> bytes:
        return codec.encode(change)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        if self.away:
            raise BusUnavailableError("the fake broker is away")
        self.envelopes += envelopes

    def changes(self) -> list[Change]:
        """What was published, decoded anew at each call."""
        return [codec.decode(raw) for raw in self.envelopes]


class Crash(BaseException):
    """The process dies here. No handler of errors may catch it."""


class Fuse:
    """Counts steps, and raises ``Crash`` at one of them: the ``at``-th, from 1."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        """One step on."""
        self._left -= 1
        if not self._left:
            raise Crash

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with a step before and one after it."""

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
    """While it lasts, each step of a write to ``store`` is one of ``fuse``.

    The steps are before and after every call of an accessor's methods that read or write data, of
    a method of the index's transactions, before and after their commit, around publishing, and
    around each of ``others``: pairs of an object and the name of its method or function.
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
