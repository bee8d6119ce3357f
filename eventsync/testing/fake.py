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
    """A time that moves only with ``advance``, in seconds since the epoch.

    Use it as ``Clock(now=FakeTime())``.
    """

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the time forward, or back if ``seconds`` is negative."""
        self.now += seconds


@dataclass
class FakeBus:
    """A publisher that keeps the published envelopes: ``Store(..., publisher=FakeBus())``.

    ``away``: raise ``BusUnavailableError``, as if the broker were down.
    """

    away: bool = False
    envelopes: list[bytes] = field(default_factory=list)

    def encode(self, change: Change) -> bytes:
        return codec.encode(change)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        if self.away:
            raise BusUnavailableError("the fake bus is set to be away", hint="set away = False")
        self.envelopes += envelopes

    def changes(self) -> list[Change]:
        """Return the published changes, decoded anew at each call."""
        return [codec.decode(raw) for raw in self.envelopes]


class Crash(BaseException):
    """The simulated death of the process. No code under test may catch it."""


class Fuse:
    """A counter of steps that raises ``Crash`` at the step number ``at``, counted from 1."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self) -> None:
        """Count one step. Raises ``Crash`` at the chosen one."""
        self._left -= 1
        if not self._left:
            raise Crash

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call`` with one step before it and one after it."""

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
    """Make each step of a write to ``store`` a step of ``fuse``, inside the ``with`` block.

    There is a step before and after each of these: a call of an accessor that reads or writes data,
    a call of a transaction of the index, the commit, the publication, and a call of each function
    in ``others``, which are pairs of an object and the name of its method or function.
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
