"""The change source: tells a store which of its records foreign writers have changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, RecordError, StoreError

__all__ = ["ChangeSource", "Changes", "MarkLostError", "SourceState", "choose"]


class MarkLostError(StoreError):
    """A change source no longer knows what was changed since a mark. Read all records instead."""

    reason = "mark-lost"


@dataclass(slots=True)
class Changes:
    """What a change source tells in one call.

    - ``mark``: the mark after these changes.
    - ``keys``: by record type, the canonical keys of the changed records. Each key has the moment
      of its last commit, in seconds since the epoch by the clock of the store, or ``None`` if that
      is unknown. A key that is told although its record has not changed does no harm.
    - ``whole``: by record type, the reason why all its records must be read.
    - ``recent``: the record types of which some records changed that the source does not know. The
      store is asked for them: see ``Accessor.changed_since``.
    - ``unreadable``: the record types and errors of changed rows that have no valid key.
    - ``behind``: whether more changes wait already.
    - ``own``: how many writes of eventsync itself were left out.
    - ``receipt``: what ``ChangeSource.settle`` needs to know, if anything.
    """

    mark: str
    keys: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    unreadable: Sequence[tuple[str, RecordError]] = ()
    behind: bool = False
    own: int = 0
    receipt: Any = None
    recent: Collection[str] = ()

    @property
    def count(self) -> int:
        """The number of keys."""
        return sum(len(keys) for keys in self.keys.values())


@dataclass(slots=True, frozen=True)
class SourceState:
    """The state of a change source, for ``eventsync capture status`` and for metrics.

    - ``installed``: whether everything that the source needs in the store is there.
    - ``waiting``: how many changes wait; ``None`` if that is unknown.
    - ``lag_bytes``: how many bytes of the store's log are not yet read; ``None`` without a log.
    - ``retained_bytes``: how many bytes of its log the store keeps for this source.
    - ``details``: what else an operator may want to see, by name.
    """

    installed: bool
    waiting: int | None = None
    lag_bytes: int | None = None
    retained_bytes: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)


class ChangeSource(ABC):
    """Tells which records of a store foreign writers have changed, from a mark on.

    A source tells keys; eventsync then reads the records, compares them with what it wrote itself,
    and gives each foreign write a version at the moment of its commit. So a source may tell a
    change twice, or a change of eventsync itself; but it must not leave out a change and tell a
    later mark. Nobody else is told: for one store, one process at a time uses a source.

    The caller first calls ``open``, then ``changes`` again and again. When it has captured what one
    call told, and saved the mark, it calls ``settle``. Only then the source may forget these
    changes. Methods raise ``StoreUnavailableError`` or an ``OSError`` if the store is away; the
    caller then closes the source and opens it again with its last saved mark. They raise
    ``ConfigError`` if the store refuses what the source needs. Not thread-safe.
    """

    kind: ClassVar[str]
    """The name of this way of capturing, as in ``Store(capture=...)`` and in logs."""

    complete: ClassVar[bool] = True
    """Whether the source tells all changes, deletes included, that were made since a mark.

    Otherwise it gives hints, which only shorten the wait until the next capture. It needs no mark:
    what was written before ``open`` is found by the store's ``capture_every``, or, without that, by
    a read of all records after each ``open``. If hints may have been lost, the source raises
    ``StoreUnavailableError``, so that it is opened again, or tells the types in ``whole``.
    """

    settle_every: ClassVar[float] = 1.0
    """How many seconds may pass until told changes are settled. They are then told once more after
    a crash, at most; a source that tells unsettled changes again at each call sets 0."""

    statement_end: ClassVar[str] = ";"
    """What ends each of the ``statements`` where they are printed."""

    @abstractmethod
    def open(self, mark: str) -> str:
        """Connect, and return the mark after which ``changes`` will continue.

        ``mark``: the mark that was saved last; empty to begin with the changes from now on. Raises
        ``MarkLostError`` if changes since ``mark`` may no longer be known. The caller then opens
        the source with an empty mark, and reads all records.
        """

    @abstractmethod
    def changes(self, mark: str, *, wait: float) -> Changes:
        """Return the changes after ``mark``, the mark of the last call or of ``open``.

        ``wait``: if there are none, for how many seconds to wait for one.
        """

    def settle(self, changes: Changes) -> None:
        """Note that everything up to ``changes`` is captured, and that its mark is saved."""

    def keep_alive(self) -> None:
        """Answer the store if it asks for a sign of life. Called while changes are captured."""

    def close(self) -> None:
        """Close connections. Idempotent."""

    # -- what an operator does with a source -------------------------------------------------------

    def install(self) -> None:
        """Create what the source needs in the store, for example triggers. Idempotent."""

    def remove(self) -> None:
        """Remove from the store what ``install`` created. Idempotent."""

    def statements(self) -> tuple[str, ...]:
        """Return the statements that ``install`` runs, for an administrator to run instead."""
        return ()

    def script(self) -> str:
        """Return ``statements`` as the command-line client of the store reads them."""
        return "".join(f"{statement}{self.statement_end}\n" for statement in self.statements())

    def findings(self) -> Iterable[Finding]:
        """Return what a check should say: what is missing, and the statements that provide it.

        Creates nothing.
        """
        return ()

    def state(self) -> SourceState:
        """Return the state of the source in the store. Changes nothing."""
        return SourceState(installed=True)


def choose(sources: Iterable[ChangeSource], capture: str, store: str) -> ChangeSource:
    """Return the source that ``Store(capture=...)`` asks for.

    ``sources``: the sources of the store, the best first. ``capture``: the kind of the source, or
    ``auto`` for the first whose findings say nothing against it. Raises ``ConfigError`` if the
    store has no source of this kind.
    """
    known = list(sources)
    able = [source for source in known if capture in ("auto", source.kind)]
    if not able:
        raise ConfigError(
            f"store {store!r} cannot capture by {capture!r}",
            hint=f"use one of: {', '.join(['auto', *(s.kind for s in known)])}"
            if known
            else "leave out the argument capture; capture_every= finds the foreign writes",
        )
    for source in able[:-1]:
        if not any(finding.level is Level.WRONG for finding in source.findings()):
            return source
    return able[-1]
