"""``--listen``: serves metrics and health over HTTP while a command runs."""

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
    from eventsync.monitoring.webhook_endpoint import WebhookEndpoint
    from eventsync.monitoring.worker_group import WorkerGroup

__all__ = ["ListenOption", "listening"]

_UNHEALTHY: Final = 503

ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Serve metrics and health over HTTP (or EVENTSYNC_LISTEN).",
        show_default=False,
    ),
]


@contextmanager
def listening(
    deployment: Deployment,
    listen: str | None,
    group: WorkerGroup,
    stores: Sequence[Store],
    *,
    spools: Sequence[Spool] = (),
    relays: bool = False,
) -> Iterator[None]:
    """Serve the metrics and the health of workers or relays while the ``with`` block runs.

    ``listen``: the address ``HOST:PORT``; by default the setting ``listen``. If both are empty,
    nothing is served. ``group``: collects the status of the workers. ``stores``, ``spools``:
    the stores and spools whose backlogs are reported. ``relays``: whether relays run instead of
    workers; if they do not, a store without a worker counts as unhealthy. Raises ``ConfigError`` if
    the address is wrong or in use. Stores that webhooks capture get a path ``/webhooks/NAME``.
    """
    settings = deployment.settings
    address = listen or settings.listen
    if not address:
        yield
        return
    from itertools import chain

    from eventsync.config import webhook_secrets
    from eventsync.monitoring.backlog import BacklogMonitor
    from eventsync.monitoring.exporters.prometheus import Exporter
    from eventsync.monitoring.health import Health
    from eventsync.monitoring.http_server import HttpServer
    from eventsync.monitoring.log import Redaction

    if not relays:
        for store in stores:
            group.expect(store.name, store.accessors)
    with BacklogMonitor(settings.bus(), stores, spools=spools) as backlog:
        health = Health(group, backlog, stores=group.stores, stall_after=settings.stall_after)
        secrets = {store.name: webhook_secrets(store.name) for store in stores}
        redaction = Redaction([*settings.secrets(), *chain.from_iterable(secrets.values())])

        def answering(check: Callable[[], list[str]]) -> Callable[[str], HttpResponse]:
            return lambda accept: _answer(check(), health.to_json(), redaction)

        routes = {
            "/metrics": Exporter(group, backlog).answer,
            "/live": answering(health.live),
            "/ready": answering(health.ready),
            "/progress": answering(health.progress),
        }
        posts = {
            f"/webhooks/{store.name}": endpoint
            for store in stores
            if (endpoint := _endpoint(store, secrets[store.name], group)) is not None
        }
        with HttpServer(address, routes, posts=posts):
            yield


def _endpoint(store: Store, secrets: Sequence[str], group: WorkerGroup) -> WebhookEndpoint | None:
    """Return what takes the webhooks of a store; ``None`` if it is not captured by them."""
    import structlog

    from eventsync.engine.webhook import WebhookSource
    from eventsync.monitoring.webhook_endpoint import WebhookEndpoint

    webhook = store.webhook() if store.captured_by in ("auto", WebhookSource.kind) else None
    if webhook is None:
        return None
    log = structlog.get_logger("eventsync.webhooks")
    if not secrets:
        log.warning("no secret, so no webhooks are taken", store=store.name)
        return None
    return WebhookEndpoint(store, webhook, secrets, counters=group.counters, log=log)


def _answer(reasons: list[str], state: dict[str, Any], redaction: Redaction) -> HttpResponse:
    """Return the HTTP response of a health check: status 503 if there are ``reasons``, else 200.

    Secrets are removed from the body, because error texts of stores and drivers may contain them.
    """
    import json

    from eventsync.monitoring.http_server import HttpResponse

    answer = redaction(None, "", {"ok": not reasons, "reasons": reasons, **state})
    return HttpResponse(
        f"{json.dumps(answer)}\n".encode(), "application/json", _UNHEALTHY if reasons else 200
    )
