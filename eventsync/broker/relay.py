"""The relay: publishes the outbox of a store while it holds the lease of the outbox."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

import structlog

from eventsync.broker.isolated_publish import publish_isolated
from eventsync.engine.isolation import Failed
from eventsync.engine.publisher import Publisher
from eventsync.engine.store import Store
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
    UnroutableError,
)
from eventsync.index import Outgoing
from eventsync.index.lease import Lease
from eventsync.retry import Backoff

__all__ = ["Outlet", "Relay", "serve"]

# How many envelopes are read from the outbox at a time.
_CHUNK: Final = 1000
# About how many envelopes one call of `run_once` publishes at most.
_MAX_PER_CALL: Final = 10_000
# Published envelopes are removed from the outbox together: when there are _MAX_KEPT of them, or
# after _KEPT_FOR seconds.
_MAX_KEPT: Final = 200
_KEPT_FOR: Final = 1.0
_BACKOFF: Final = Backoff(0.5, 30.0)
# The pause of `serve` between two checks of the outbox: this share of the time since the last
# published envelope, but at least _SHORTEST_PAUSE seconds.
_PAUSE_SHARE: Final = 0.1
_SHORTEST_PAUSE: Final = 0.01
_LOG_INTERVAL: Final = 1.0


class Outlet(Protocol):
    """Publishes the waiting envelopes of an outbox or of a spool."""

    name: str

    def run_once(self) -> int:
        """Publish waiting envelopes and return how many were published.

        Publishes nothing while another process publishes them. Raises ``BusUnavailableError`` if
        the broker cannot be reached, ``StoreUnavailableError`` if the store cannot be reached, and
        ``UnroutableError`` if no queue receives a record type.
        """


class Relay:
    """Publishes the outbox of one store while it holds the lease of the outbox. Not thread-safe.

    Any number of relays and workers may serve one store. One of them publishes the envelopes, in
    the order in which they were stored, until it is closed, dies, or loses the broker. If it dies,
    another one continues ``lifetime`` seconds later. It may publish up to about a thousand
    envelopes for the second time, which does no harm. Usable as a context manager.

    An envelope that the broker refuses stays in the outbox, and the later envelopes are published.
    Only when a thousand refused envelopes wait, later envelopes wait, too.

    Published envelopes stay in the outbox for up to a second and are then removed together, because
    a separate write for each envelope would slow down the edits of the store.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        *,
        lifetime: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = store.name
        self._store = store
        self._publisher = publisher
        self._lease = Lease(store.index, "relay", lifetime=lifetime, monotonic=monotonic)
        self._monotonic = monotonic
        self._has_lease = False
        # The numbers of envelopes that are published but still in the outbox, and when the first of
        # these was published.
        self._published: set[int] = set()
        self._published_at = 0.0

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove published envelopes from the outbox and give up the lease. Idempotent."""
        self._has_lease = False
        # If the store is unreachable or refuses this, the lease expires by itself.
        with suppress(StoreUnavailableError, ConfigError):
            self._remove_published()
            self._lease.release()

    def run_once(self) -> int:
        """Publish waiting envelopes and return how many were published.

        Returns 0 if another relay holds the lease. One call publishes about ten thousand envelopes
        at most. The relay keeps the lease afterwards.

        Raises ``BusUnavailableError`` if the broker cannot be reached, and
        ``StoreUnavailableError`` if the store cannot be reached. If the broker refuses envelopes,
        publishes the others and then raises the first error: ``UnroutableError`` if no queue
        receives the record type. Unpublished envelopes stay in the outbox.
        """
        if not self._has_lease:
            # Read only one envelope, to see whether the outbox is empty.
            self._has_lease = bool(self._store.index.outgoing(1)) and self._lease.take()
        try:
            return self._publish()
        except BusUnavailableError:
            self.close()
            raise

    def _publish(self) -> int:
        refused: dict[int, Exception] = {}  # by the number of the envelope
        published = 0
        more = self._has_lease
        while more and published < _MAX_PER_CALL and len(refused) < _CHUNK:
            limit = _CHUNK + len(refused)
            waiting = self._store.index.outgoing(limit)
            fresh = [
                outgoing
                for outgoing in waiting
                if outgoing.number not in self._published and outgoing.number not in refused
            ]
            # If there is nothing to publish, check the lease only when its renewal is due.
            if fresh or self._lease.is_due:
                self._has_lease = self._lease.keep()
            if self._has_lease and fresh:
                published += self._send(fresh, refused)
            more = self._has_lease and len(waiting) == limit
            expired = self._monotonic() - self._published_at >= _KEPT_FOR
            if expired or len(self._published) >= _MAX_KEPT or not self._has_lease:
                self._remove_published()
        if refused:
            raise next(iter(refused.values()))
        return published

    def _send(self, waiting: Sequence[Outgoing], refused: dict[int, Exception]) -> int:
        """Publish envelopes and return how many were published.

        Adds the number and the error of each refused envelope to ``refused``.
        """
        by_type: dict[str, list[Outgoing]] = {}
        for outgoing in waiting:
            by_type.setdefault(outgoing.type, []).append(outgoing)
        published = 0
        for type, envelopes in by_type.items():
            try:
                for part in publish_isolated(envelopes, partial(self._publish_type, type)):
                    if isinstance(part, Failed):
                        refused[part.item.number] = part.error
                    else:
                        self._note_published(part.items)
                        published += len(part.items)
            except UnroutableError as error:
                refused.update((outgoing.number, error) for outgoing in envelopes)
        return published

    def _publish_type(self, type: str, envelopes: Sequence[Outgoing]) -> None:
        self._publisher.publish(type, [outgoing.body for outgoing in envelopes])

    def _note_published(self, envelopes: Sequence[Outgoing]) -> None:
        if not self._published:
            self._published_at = self._monotonic()
        self._published.update(outgoing.number for outgoing in envelopes)

    def _remove_published(self) -> None:
        """Remove the envelopes that are published from the outbox."""
        if self._published:
            self._store.index.sent(sorted(self._published))
            self._published.clear()


def serve(
    outlet: Outlet,
    stopping: threading.Event,
    *,
    connect: Callable[[], object] = lambda: None,
    describe: Callable[[], Mapping[str, Any]] = dict,
    poll: float = 0.2,
    log: Any = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Publish the envelopes of an outlet until ``stopping`` is set. Blocks.

    The pause between two checks for envelopes is a tenth of the time since the last published
    envelope, but at least 10 ms and at most ``poll`` seconds. So a busy outlet publishes quickly,
    and an idle store is rarely queried.

    ``connect``: called at the start, and before the next attempt after each failure. ``describe``:
    returns further fields for each log line. A failure is logged and retried after a pause of up to
    30 seconds. The number of published envelopes is logged once a second. Raises ``ConfigError`` if
    the store or the broker refuses the first connection; a later refusal is retried.
    """
    log = log or structlog.get_logger("eventsync.relay").bind(outbox=outlet.name)
    failures = 0
    connected = has_connected = False
    found_at = logged_at = -math.inf
    unlogged = 0
    while not stopping.is_set():
        try:
            if not connected:
                connect()
                connected = has_connected = True
            published = outlet.run_once()
        except (EventSyncError, OSError) as error:
            if isinstance(error, ConfigError) and not has_connected:
                raise
            failures += 1
            wait = _BACKOFF.pause(failures)
            connected = False
            unreachable = isinstance(error, BusUnavailableError)
            event = "broker unreachable, retrying" if unreachable else "relay failed, retrying"
            fields = {"attempt": failures, "wait": wait, **describe()}
            log.warning(event, error=str(error), **fields)
            stopping.wait(wait)
            continue
        failures = 0
        now = monotonic()
        if published:
            found_at = now
            unlogged += published
        if unlogged and now - logged_at >= _LOG_INTERVAL:
            log.info("published", count=unlogged, **describe())
            unlogged, logged_at = 0, now
        stopping.wait(min(poll, max(_SHORTEST_PAUSE, _PAUSE_SHARE * (now - found_at))))
    if unlogged:
        log.info("published", count=unlogged, **describe())
