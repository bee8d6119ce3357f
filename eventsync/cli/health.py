"""``eventsync health``: whether a worker or relay gets on, as its endpoint says.

It owns how the endpoint is asked. It must not know what counts as well.
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

import typer

from eventsync.cli.command import FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import print_json, warn
from eventsync.errors import ConfigError

__all__ = ["ask", "health", "parse_url"]

# Who listens at every address of a host is reached at this one.
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@command
def health(
    deployment: Deployment,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="An endpoint, as http://host:9464; the path is /progress, if none is named. "
            "Default: where EVENTSYNC_LISTEN says that one on this host listens.",
            # Without the settings, which would cost a check that is made often most of its time.
            envvar="EVENTSYNC_LISTEN",
            show_envvar=False,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for it.")] = 5.0,
    as_json: JsonOption = False,
) -> int:
    """Ask the endpoint of a worker or relay (--listen) whether it gets on with its work.

    /progress is well unless work waits and nothing moves, /ready when store and broker can be used,
    /live while the process answers. What is wrong is told on standard error. The exit code is 0
    when it is well, 1 when it is not, and 69 when nobody answers. For the health check of a
    container, where EVENTSYNC_LISTEN says where to ask.

    Examples:
      eventsync health
      eventsync health http://localhost:9464/ready
      eventsync health http://localhost:9464 --json | jq .workers
    """
    if not url:
        raise ConfigError("which endpoint?", hint="name its URL, or set EVENTSYNC_LISTEN")
    try:
        status, told = ask(url, timeout=timeout)
    except (OSError, ValueError) as error:
        warn(f"the endpoint {url} does not answer: {error}")
        return UNAVAILABLE
    if as_json:
        print_json(told)
    for reason in told["reasons"]:
        warn(reason)
    return OK if status == 200 else FOUND_WRONG


def parse_url(url: str) -> SplitResult:
    """The parts of an endpoint's URL, or of ``HOST:PORT``. Raises ``ConfigError``."""
    if "@" in url:
        # It is not shown: somebody put a password there.
        raise ConfigError("the URL of an endpoint has no user and password", hint="leave them out")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and parts.port:
            return parts
    except ValueError:
        pass  # a port that is none
    raise ConfigError(f"{url!r} is no endpoint", hint="as in http://localhost:9464")


def ask(url: str, *, timeout: float, address: str = "") -> tuple[int, dict[str, Any]]:
    """The status code and the JSON that an endpoint answers.

    ``address``: where to connect, if the name in ``url`` stands for several. Raises ``OSError``,
    ``ValueError`` (it is no endpoint of eventsync), ``ConfigError``.
    """
    import json
    from http.client import HTTPConnection, HTTPException  # what the help of all commands spares

    parts = parse_url(url)
    host = address or parts.hostname or ""
    connection = HTTPConnection(_ANYWHERE.get(host, host), parts.port, timeout=timeout)
    try:
        path = parts.path.rstrip("/") or "/progress"
        connection.request("GET", path, headers={"Host": parts.netloc})
        response = connection.getresponse()
        told = json.loads(response.read(16 * 1024 * 1024))
    except HTTPException as error:
        raise ValueError(f"what answers there speaks no HTTP: {error!r}") from error
    finally:
        connection.close()
    if not isinstance(told, dict) or not isinstance(told.get("reasons"), list):
        raise ValueError("what answers there is no endpoint of eventsync")
    return response.status, told
