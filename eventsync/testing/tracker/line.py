"""The line between a store and its REST service: what goes over it, and how it fails on demand.

It owns the failures, at the very requests that write. It knows nothing of what is asked.
"""

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
"""How a write may fail: it is not done, or done and not answered, and the process may be gone. The
store cannot tell which of the first three it was."""

_SAFE: Final = frozenset({"GET", "HEAD"})


class Line:
    """Notes the requests of the stores that are put ``over`` it, and fails them. For one thread."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        """The method and the path of each, with its query, in their order."""
        self.meanwhile: Callable[[], object] | None = None
        """Called once, before the next write is sent: what somebody else does at that moment."""
        self.answers: list[Answer] = []
        """What the next requests are answered instead of being sent, one each."""
        self._failure: Failure | None = None
        self._skip = 0

    def over(self, store: Store) -> Store:
        """The store, whose services it now stands before."""
        for accessor in store.accessors.values():
            if isinstance(accessor, RestAccessor) and "request" not in vars(accessor.service):
                self._tap(accessor.service)
        return store

    def fail(self, failure: Failure, *, skip: int = 0) -> None:
        """Fail the next write but ``skip``, in one of the ways of ``FAILURES``."""
        self._failure, self._skip = failure, skip

    def clear(self) -> None:
        """Forget the requests, and a failure that was not needed."""
        self.requests.clear()
        self._failure = None

    def writes(self) -> list[tuple[str, str]]:
        """The requests that were no reads."""
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
        raise StoreUnavailableError(f"{method}: no answer, for the test", uncertain=True)
