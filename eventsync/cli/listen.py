"""``--listen``: metrics and health over HTTP, beside what a command does.

It owns which path answers what. It must not know how anything is found or judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from eventsync.cli.deployment import Deployment

if TYPE_CHECKING:
    from eventsync.broker.spool import Spool
    from eventsync.engine.store import Store
    from eventsync.monitoring.http_server import HttpResponse
    from eventsync.monitoring.log import Redaction
    from eventsync.monitoring.worker_group import WorkerGroup

__all__ = ["ListenOption", "listening"]

_UNWELL: Final = 503

ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Serve metrics and health there (or EVENTSYNC_LISTEN).",
        show_default=False,
    ),
]


@contextmanager
def listening(
    deployment: Deployment,
    listen: str | None,
    crew: WorkerGroup,
    stores: Sequence[Store],
    *,
    spools: Sequence[Spool] = (),
    relays: bool = False,
) -> Iterator[None]:
    """Serve what ``crew`` tells while the block runs, if that is asked for.

    ``relays``: the stores are relayed for, and need no workers. Raises ``ConfigError``.
    """
    settings = deployment.settings
    address = listen or settings.listen
    if not address:
        yield
        return
    from eventsync.monitoring.backlog import BacklogMonitor
    from eventsync.monitoring.exporters.prometheus import Exporter
    from eventsync.monitoring.health import Health
    from eventsync.monitoring.http_server import HttpServer
    from eventsync.monitoring.log import Redaction

    if not relays:
        for store in stores:
            crew.expect(store.name, store.accessors)
    with BacklogMonitor(settings.bus(), stores, spools=spools) as backlog:
        health = Health(crew, backlog, stores=crew.stores, stall_after=settings.stall_after)
        redaction = Redaction(settings.secrets())

        def answering(judge: Callable[[], list[str]]) -> Callable[[str], HttpResponse]:
            return lambda accept: _judged(judge(), health.to_json(), redaction)

        routes = {
            "/metrics": Exporter(crew, backlog).answer,
            "/live": answering(health.live),
            "/ready": answering(health.ready),
            "/progress": answering(health.progress),
        }
        with HttpServer(address, routes):
            yield


def _judged(reasons: list[str], known: dict[str, Any], redaction: Redaction) -> HttpResponse:
    """What an operator is told; errors of stores and drivers may name what nobody may see."""
    import json

    from eventsync.monitoring.http_server import HttpResponse

    told = redaction(None, "", {"ok": not reasons, "reasons": reasons, **known})
    return HttpResponse(
        f"{json.dumps(told)}\n".encode(), "application/json", _UNWELL if reasons else 200
    )
