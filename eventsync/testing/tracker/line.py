"""A stand-in for the network between a store and its REST service, which simulates failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import urlencode

from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.stores.rest import Answer, RestAccessor, Service
from eventsync.testing.fake import Crash

__all__ = ["FAILURES", "Failure", "Line"]

Failure = Literal["unsent", "unanswered", "failed", "killed before", "killed after"]

FAILURES: Final[tuple[Failure, ...]] = (
    "unsent",
    "unanswered",
    "failed",
    "killed before",
    "killed after",
)
"""The simulated failures of a write request.

``unsent``: the request is lost. ``unanswered``: the service executes the request, but its answer is
lost. ``failed``: the service does not execute the request, and answers with the status 502.
``killed before``, ``killed after``: the process dies before or after the request. A store cannot
tell the first three apart."""

_SAFE: Final = frozenset({"GET", "HEAD"})


class Line:
    """Records the requests of a store to its service, and can make write requests fail.

    Attach the line to a store with ``over``. Not thread-safe.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        """The method and the path (with the query) of each request, in order."""
        self.meanwhile: Callable[[], object] | None = None
        """A function that is called once, before the next write request is sent.

        It simulates an edit that somebody makes at that moment.
        """
        self.answers: list[Answer] = []
        """Answers for the next requests. A request that gets such an answer is not sent."""
        self._failure: Failure | None = None
        self._skip = 0

    def over(self, store: Store) -> Store:
        """Send the requests of ``store`` to its services through this line; return the store."""
        for accessor in store.accessors.values():
            if isinstance(accessor, RestAccessor) and "request" not in vars(accessor.service):
                self._tap(accessor.service)
        return store

    def fail(self, failure: Failure, *, skip: int = 0) -> None:
        """Make one write request fail, after ``skip`` write requests that succeed."""
        self._failure, self._skip = failure, skip

    def clear(self) -> None:
        """Remove all recorded requests, and cancel a failure that has not happened yet."""
        self.requests.clear()
        self._failure = None

    def writes(self) -> list[tuple[str, str]]:
        """Return the recorded write requests, which are all but GET and HEAD."""
        return [request for request in self.requests if request[0] not in _SAFE]

    def _tap(self, service: Service) -> None:
        send = service.request

        def request(method: str, path: str, **more: Any) -> Answer:
            self._note(method, path, more.get("query"))
            if self.answers:
                raise service.meaning(method, self.answers.pop(0))
            if method in _SAFE:
                return send(method, path, **more)
            act, self.meanwhile = self.meanwhile, None
            if act is not None:
                act()
            return self._written(service, method, lambda: send(method, path, **more))

        vars(service)["request"] = request

    def _note(self, method: str, path: str, query: Mapping[str, str] | None) -> None:
        self.requests.append((method, f"{path}?{urlencode(query)}" if query else path))

    def _written(self, service: Service, method: str, send: Callable[[], Answer]) -> Answer:
        failure = self._failure
        if failure is None or self._skip:
            self._skip = max(0, self._skip - 1)
            return send()
        self._failure = None
        if failure == "killed before":
            raise Crash
        if failure == "failed":
            raise service.meaning(method, Answer(502, {}, b"", service.url))
        if failure != "unsent":
            send()
        if failure == "killed after":
            raise Crash
        raise StoreUnavailableError(
            f"{method}: no answer, because the test simulates a failure", uncertain=True
        )
