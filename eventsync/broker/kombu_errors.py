"""Translates the errors of kombu and its drivers to eventsync's errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kombu.exceptions import BatchPublishError, KombuError
from kombu.exceptions import OperationalError as KombuOperationalError

from eventsync.errors import (
    BusConfigError,
    BusError,
    BusUnavailableError,
    ConfigError,
    EventSyncError,
)
from eventsync.transports.link import Link

__all__ = ["bus_errors", "disconnect"]


@contextmanager
def bus_errors(what: str, link: Callable[[], Link | None]) -> Iterator[None]:
    """Raise the errors of kombu and of the driver in the block as eventsync's errors.

    ``what``: the subject of the error texts, such as "the broker redis://host/0". ``link``: returns
    the link in use, or ``None``; the link knows which exceptions of its driver mean a lost
    connection.
    """
    try:
        yield
    except BusUnavailableError as error:
        error.hint = error.hint or "check that the broker runs and that the broker URL is correct"
        raise
    except BusError:
        raise
    except ConfigError as error:
        raise BusConfigError(error.message, hint=error.hint) from error
    except EventSyncError:
        raise
    except (OSError, KombuOperationalError) as error:
        if isinstance(error.__cause__, BusUnavailableError):
            raise error.__cause__ from None  # kombu has wrapped it
        raise BusUnavailableError(
            f"{what} cannot be reached: {error}",
            hint="check that the broker runs and that the broker URL is correct",
        ) from error
    except BatchPublishError as error:
        raise BusUnavailableError(f"{what} did not store all messages: {error}") from error
    except KeyError as error:
        # kombu raises a KeyError for an unknown transport. Its argument is a readable text.
        raise BusConfigError(
            f"{what} cannot be used: its scheme is unknown",
            hint="write a URL like sqlite:///broker.db, redis://host/0 or amqp://user@host//",
        ) from error
    except ImportError as error:
        raise BusConfigError(
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
    """Close a link; ignore the error if the broker is unreachable."""
    with suppress(OSError, KombuError, BusUnavailableError, *link.connection_errors):
        link.close()
