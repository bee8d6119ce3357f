"""The errors of kombu and its drivers, translated to eventsync's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kombu.exceptions import BatchPublishError, KombuError
from kombu.exceptions import OperationalError as KombuOperationalError

from eventsync.errors import BusError, BusUnavailableError, ConfigError, EventSyncError
from eventsync.transports.link import Link

__all__ = ["bus_errors", "disconnect"]


@contextmanager
def bus_errors(what: str, link: Callable[[], Link | None]) -> Iterator[None]:
    """Raise the errors of kombu and the driver, within the block, as eventsync's.

    ``what``: the subject of their messages, as in "the broker redis://host/0". ``link``: returns
    the link in use, if any; its driver decides which exceptions mean a lost connection.
    """
    try:
        yield
    except EventSyncError:
        raise
    except (OSError, KombuOperationalError) as error:
        raise BusUnavailableError(f"{what} cannot be reached: {error}") from error
    except BatchPublishError as error:
        raise BusUnavailableError(f"{what} did not take all messages: {error}") from error
    except KeyError as error:
        # kombu raises it for an unknown transport, with the message as its argument.
        raise ConfigError(
            f"{what} cannot be used: {error.args[0] if error.args else error}",
            hint="write a URL like sqlite:///broker.db, redis://host/0 or amqp://user@host//",
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"{what} cannot be used: {error}",
            hint="install the package that this transport of kombu needs",
        ) from error
    except KombuError as error:
        raise BusError(f"{what} failed: {error}") from error
    except Exception as error:
        used = link()
        if used is None or not isinstance(error, used.connection_errors):
            raise
        raise BusUnavailableError(f"{what} cannot be reached: {error}") from error


def disconnect(link: Link) -> None:
    """Close a link; do nothing if its broker is unreachable."""
    with suppress(OSError, KombuError, BusUnavailableError, *link.connection_errors):
        link.close()
