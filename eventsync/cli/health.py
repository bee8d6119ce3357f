"""``eventsync health``: asks a worker or relay for its health, over HTTP."""

from __future__ import annotations

from contextlib import suppress
from socket import SHUT_RDWR
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

import typer

from eventsync.cli.command import FOUND_WRONG, OK, UNAVAILABLE, JsonOption, command
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import print_json, warn
from eventsync.errors import ConfigError, shown

__all__ = ["ask", "health", "parse_url"]

# A longer answer is not that of a health check.
_LONGEST: Final = 1024 * 1024
# A process may listen on one of these addresses, which stand for all addresses of its host. Connect
# to the loopback address instead.
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@command
def health(
    deployment: Deployment,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The endpoint, for example http://host:9464. Default path: /progress. "
            "Default URL: that of EVENTSYNC_LISTEN, on this host.",
            # Typer reads the variable. To import the settings takes longer than the health check.
            envvar="EVENTSYNC_LISTEN",
            show_envvar=False,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 5.0,
    as_json: JsonOption = False,
) -> int:
    """Check the health of a worker or relay that runs with --listen.

    The path of the URL names the check. /progress fails if work waits and nothing is done. /ready
    fails if the store or the broker is unreachable. /live fails only if the process does not
    answer. The reasons for a failure go to standard error. The exit code is 0 if the process is
    healthy, 1 if it is not, and 69 if it does not answer.

    In a container that sets EVENTSYNC_LISTEN, use "eventsync health" as its health check.

    Examples:
      eventsync health
      eventsync health http://localhost:9464/ready
      eventsync health http://localhost:9464 --json | jq .workers
    """
    if not url:
        raise ConfigError(
            "no endpoint is given",
            hint="pass the URL of the endpoint, or set EVENTSYNC_LISTEN to HOST:PORT",
        )
    try:
        status, answer = ask(url, timeout=timeout)
    except (OSError, ValueError) as error:
        warn(f"the endpoint {url} does not answer: {error}")
        return UNAVAILABLE
    if as_json:
        print_json(answer)
    for reason in answer["reasons"]:
        warn(reason)
    return OK if status == 200 else FOUND_WRONG


def parse_url(url: str) -> SplitResult:
    """Return the parts of the URL of an endpoint, given with or without ``http://``.

    Raises ``ConfigError`` if the scheme is another one, the host or port is missing, or the URL has
    a user or password.
    """
    if "@" in url:
        # The URL is not shown, because it may hold a password.
        raise ConfigError(
            "the URL of an endpoint must not have a user or password",
            hint="leave out the part before @",
        )
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and parts.port:
            return parts
    except ValueError:
        pass  # not a port number
    raise ConfigError(
        f"{url!r} is not the URL of an endpoint", hint="write for example http://localhost:9464"
    )


def ask(url: str, *, timeout: float, address: str = "") -> tuple[int, dict[str, Any]]:
    """Send a health check to an endpoint, and return the HTTP status code and the JSON body.

    ``timeout``: how long to wait for the whole answer, in seconds. ``address``: the IP address to
    connect to; by default, that of the host in ``url``. Raises ``OSError`` if the endpoint does not
    answer, ``ValueError`` if the answer is not the JSON of a health check, and ``ConfigError`` if
    ``url`` is not the URL of an endpoint.
    """
    import json
    import threading
    from http.client import HTTPConnection, HTTPException  # slow to import

    parts = parse_url(url)
    host = address or parts.hostname or ""
    connection = HTTPConnection(_ANYWHERE.get(host, host), parts.port, timeout=timeout)
    # The timeout of a connection begins anew with each byte, so something else has to end it.
    late = threading.Event()

    opened: list[Any] = []  # the connection itself forgets its socket before the body is read

    def end() -> None:
        late.set()
        for one in opened:
            with suppress(OSError):
                one.shutdown(SHUT_RDWR)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        path = parts.path.rstrip("/") or "/progress"
        connection.connect()
        opened.append(connection.sock)
        connection.request("GET", path, headers={"Host": parts.netloc})
        response = connection.getresponse()
        body = response.read(_LONGEST + 1)
        if late.is_set():
            raise TimeoutError(f"no whole answer came within {timeout:g} s")
        if len(body) > _LONGEST:
            raise ValueError(f"the answer is longer than {_LONGEST:,} bytes")
        answer = json.loads(body)
    except (HTTPException, OSError) as error:
        if late.is_set():
            raise TimeoutError(f"no whole answer came within {timeout:g} s") from error
        if isinstance(error, OSError):
            raise
        raise ValueError(f"the answer is not HTTP: {shown(str(error))}") from error
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    finally:
        timer.cancel()
        connection.close()
    reasons = answer.get("reasons") if isinstance(answer, dict) else None
    if not isinstance(reasons, list) or not all(isinstance(one, str) for one in reasons):
        raise ValueError("the answer is not the JSON of an eventsync health check")
    return response.status, answer
