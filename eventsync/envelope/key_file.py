"""A file with signing keys that is read again when it changes, so that keys turn over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from eventsync.envelope.signing import Keyring
from eventsync.errors import ConfigError

__all__ = ["KeyFile"]

_EVERY: Final = 1.0
_LARGEST: Final = 1 << 20


class KeyFile:
    """The signing keys in a file, which may be replaced while the program runs. Thread-safe.

    ``Keyring.parse`` describes the content. The constructor reads the file and raises
    ``ConfigError`` if that fails. ``monotonic``: the clock, for tests.
    """

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at = monotonic()
        self._state = _state(path)
        self._keyring = self._read()
        self._log = structlog.get_logger("eventsync.keys").bind(file=str(path))

    @property
    def keyring(self) -> Keyring:
        """The keys in the file. Looks for a new content at most once a second.

        If the new content cannot be read, the former keys stay in use, and the log says why.
        """
        with self._lock:
            now = self._monotonic()
            if now - self._looked_at >= _EVERY:
                self._looked_at = now
                self._look()
            return self._keyring

    def _look(self) -> None:
        try:
            state = _state(self.path)
            if state == self._state:
                return
            self._state = state
            self._keyring = self._read()
        except ConfigError as error:
            self._log.error("signing keys not read, the former keys stay in use", error=str(error))
        else:
            self._log.info(
                "signing keys read again", signing=self._keyring.signing, ids=[*self._keyring.keys]
            )

    def _read(self) -> Keyring:
        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read(_LARGEST)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from error
        return Keyring.parse(text)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when somebody replaces or alters the file; ``None`` if it is missing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def _unreadable(path: Path, error: Exception) -> ConfigError:
    # The text of a UnicodeDecodeError contains bytes of the file.
    why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return ConfigError(
        f"the file {path} with the signing keys cannot be read: {why}",
        hint="make the file readable for the user that runs eventsync",
    )
