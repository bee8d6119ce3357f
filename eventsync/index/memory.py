"""The version index in memory, for stores in memory and for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from eventsync.index.contract import Entry, Index, IndexTransaction, Intent, Outgoing, Presence

__all__ = ["MemoryIndex"]


class MemoryIndex(Index):
    """A version index in memory, for stores in memory and for tests. Lost when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, dict[str, Entry]] = {}
        self._outbox: dict[int, Outgoing] = {}
        self._number = 0
        self._marks: dict[str, str] = {}
        self._intents: dict[str, dict[str, Intent]] = {}
        self._withheld: list[tuple[str, bytes]] = []

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        with self._lock:
            transaction = _MemoryTransaction(self)
            yield transaction
            transaction.commit()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        with self._lock:
            found = [
                (key, entry)
                for key, entry in sorted(self._entries.get(type, {}).items())
                if key > after and (presence is None or entry.presence is presence)
            ]
            return found[:limit]

    def counts(self, type: str) -> dict[Presence, int]:
        with self._lock:
            counts = dict.fromkeys(Presence, 0)
            for entry in self._entries.get(type, {}).values():
                counts[entry.presence] += 1
            return counts

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        with self._lock:
            return list(self._outbox.values())[:limit]

    def sent(self, numbers: Sequence[int]) -> None:
        with self._lock:
            for number in numbers:
                self._outbox.pop(number, None)

    def load_mark(self, name: str) -> str:
        with self._lock:
            return self._marks.get(name, "")

    def marks(self, prefix: str) -> dict[str, str]:
        with self._lock:
            return {name: text for name, text in self._marks.items() if name.startswith(prefix)}

    def save_marks(self, marks: Mapping[str, str]) -> None:
        with self._lock:
            kept = {**self._marks, **marks}
            self._marks = {name: text for name, text in kept.items() if text}


class _MemoryTransaction(IndexTransaction):
    """A transaction of a ``MemoryIndex``. Collects its effects and applies them when it commits."""

    def __init__(self, index: MemoryIndex) -> None:
        self._index = index
        self._writes: dict[str, dict[str, Entry | None]] = {}
        self._sent: list[tuple[str, bytes]] = []
        self._settled: list[tuple[str, Sequence[str], bool]] = []
        self._intended: list[tuple[str, Sequence[str]]] = []

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        written, entries = self._writes.get(type, {}), self._index._entries.get(type, {})
        for key in keys:
            entry = written[key] if key in written else entries.get(key)
            if entry is not None:
                found[key] = entry
        return found

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self._writes.setdefault(type, {}).update(entries)

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self._writes.setdefault(type, {}).update(dict.fromkeys(keys))

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        # Intents in memory do not survive a crash, but tests that simulate a crash read them.
        self._index._intents.setdefault(type, {}).update(intents)
        self._index._withheld.extend((type, body) for body in bodies)
        self._intended.append((type, list(intents)))

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self._sent.extend((type, body) for body in bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return dict(self._index._intents.get(type, {}))

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        self._settled.append((type, keys, send))

    def keep(self) -> None:
        self._intended.clear()
        self.commit()

    def commit(self) -> None:
        index = self._index
        for type, entries in self._writes.items():
            held = index._entries.setdefault(type, {})
            for key, entry in entries.items():
                if entry is None:
                    held.pop(key, None)
                else:
                    held[key] = entry
        for type, keys, send in [*self._settled, *((t, k, True) for t, k in self._intended)]:
            for key in keys:
                index._intents.get(type, {}).pop(key, None)
            if send:
                self._sent += [withheld for withheld in index._withheld if withheld[0] == type]
            index._withheld = [withheld for withheld in index._withheld if withheld[0] != type]
        for type, body in self._sent:
            index._number += 1
            index._outbox[index._number] = Outgoing(index._number, type, body)
        self._writes, self._sent, self._settled = {}, [], []
