"""The HTTP endpoint for the webhooks of one store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from eventsync.engine.store import Store
from eventsync.engine.webhook import HintBox, Webhook
from eventsync.errors import EventSyncError, RecordError, SignatureError, StoreUnavailableError
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.http_server import HttpResponse

__all__ = ["WebhookEndpoint"]

_LOG_EVERY: Final = 10.0
# So many requests are taken at once: an index that hangs does not take all connections of the
# server, which health checks need, too.
_MOST: Final = 8


class WebhookEndpoint:
    """Checks each request, keeps its hints in the store's index, and answers. Thread-safe.

    The answer is 202 once the hints are on disk, 401 for a wrong signature, 400 for a body that
    cannot be read, and 503 if the index cannot take them. ``secrets``: those that a sender may
    know; the second one is for the time while the first one is replaced. Neither bodies nor headers
    are logged.
    """

    def __init__(
        self,
        store: Store,
        webhook: Webhook,
        secrets: Sequence[str],
        *,
        counters: Counters,
        log: Any,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._webhook = webhook
        self._secrets = [secret for secret in secrets if secret]
        self._box = HintBox(store.index)
        self._counters = counters
        self._log = log
        self._now = now
        self._guard = threading.Lock()
        self._free = threading.BoundedSemaphore(_MOST)
        self._logged: dict[str, float] = {}

    def __call__(self, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """Return the response to a request. ``headers``: by lower-case name."""
        if not self._free.acquire(blocking=False):
            busy = StoreUnavailableError("too many webhooks at once, or the index does not answer")
            return self._refuse(503, "failed", busy)
        try:
            return self._take(headers, body)
        finally:
            self._free.release()

    def _take(self, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        try:
            self._webhook.check(headers, body, self._secrets, self._now())
            hints = self._webhook.hints(headers, body)
            self._box.put(hints)
        except SignatureError as error:
            return self._refuse(401, "refused", error)
        except RecordError as error:
            return self._refuse(400, "unreadable", error)
        except (EventSyncError, OSError) as error:
            return self._refuse(503, "failed", error)
        self._count("accepted" if hints else "ignored")
        return HttpResponse(b"accepted\n", "text/plain", 202)

    def _refuse(self, status: int, outcome: str, error: Exception) -> HttpResponse:
        self._count(outcome)
        with self._guard:
            now = time.monotonic()
            is_due = now - self._logged.get(outcome, -_LOG_EVERY) >= _LOG_EVERY
            if is_due:
                self._logged[outcome] = now
        if is_due:
            self._log.warning(
                "webhook refused", store=self._store.name, status=status, error=str(error)
            )
        return HttpResponse(f"{outcome}\n".encode(), "text/plain", status)

    def _count(self, outcome: str) -> None:
        self._counters.add(catalogue.WEBHOOKS, 1, self._store.name, outcome)
