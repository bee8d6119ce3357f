"""The change source of Redis: keyspace notifications, which are hints.

Redis sends a notification to the clients that are connected at that moment, and keeps none. A
write that nobody heard is found by the capture that reads all records.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Protocol

from eventsync.engine.change_source import Changes, ChangeSource, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.records.record import RecordType
from eventsync.stores.redis.index import RedisIndex
from eventsync.stores.redis.pattern import KeyPattern
from eventsync.stores.redis.rights import lacking
from eventsync.stores.redis.server import Server

__all__ = ["Notified", "RedisNotifications"]

_SETTING: Final = "notify-keyspace-events"
# Keyspace channels, and the events of any key, strings, hashes, expiry and eviction.
_NEEDED: Final = "Kg$hxe"
_ALL: Final = "g$lshztxed"
"""What the flag ``A`` stands for in every version of Redis."""
_FORMER: Final = "follow/redis-flags"
"""The mark that keeps the value of the setting from before ``install``."""
# Events after which a record holds the same values as before.
_IDLE: Final = frozenset({b"expire", b"persist", b"new", b"type_changed"})
_MOST: Final = 200_000
_PROBE_EVERY: Final = 5.0
# A probe that was not heard after so many seconds will not be heard.
_PROBE_LIFE: Final = 5.0


class Notified(Protocol):
    """What the source needs of an accessor."""

    type: RecordType
    pattern: KeyPattern

    @property
    def versions(self) -> RedisIndex:
        """The version index of the store."""


class RedisNotifications(ChangeSource):
    """Tells the keys of records whose Redis keys were written, expired or evicted.

    Every few seconds it writes a key of its own and waits for the notification. So it notices a
    lost connection, a failover and a changed setting, also where the server does not show its
    settings. On Redis Cluster it listens to the node that has the store's hash slot.
    """

    kind = "notifications"
    complete = False
    statement_end: ClassVar[str] = ""

    def __init__(self, accessors: Sequence[Notified]) -> None:
        self._accessors = list(accessors)
        self._pubsub: Any = None
        self._confirmations = 0
        self._heard: dict[str, dict[str, float | None]] = {}
        self._whole: dict[str, str] = {}
        self._probe = b""
        self._probed_at = 0.0
        self._is_probe_heard = True

    @property
    def _index(self) -> RedisIndex:
        return self._accessors[0].versions

    @property
    def _server(self) -> Server:
        return self._index.server

    @property
    def _probe_name(self) -> str:
        return f"{self._index.base}:heard"

    def _channels(self) -> list[str]:
        """Return the patterns of the channels to listen to."""
        globs = [accessor.pattern.glob for accessor in self._accessors]
        probe = self._probe_name.replace("\\", "\\\\").replace("[", "\\[")
        return [f"{self._prefix}{glob}" for glob in dict.fromkeys([*globs, probe])]

    @property
    def _prefix(self) -> str:
        return f"__keyspace@{self._server.database_number}__:"

    # -- listening ---------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        channels = self._channels()
        with self._server.errors():
            self._pubsub = self._server.pubsub(self._probe_name)
            self._pubsub.psubscribe(*channels)
        self._confirmations = len(channels)
        self._heard, self._whole = {}, {}
        self._send_probe()
        # The answers to psubscribe come before any notification.
        deadline = time.monotonic() + _PROBE_LIFE
        while not self._is_probe_heard:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"Redis at {self._server.address} sends no keyspace notifications",
                    hint=f"run: {' or '.join(self.statements()) or self._statement(_NEEDED)}; "
                    "a managed Redis has a parameter of this name",
                )
            self._receive(0.1)
        return mark

    def changes(self, mark: str, *, wait: float) -> Changes:
        if not self._heard and not self._whole:
            self._receive(wait)
        self._check_probe()
        heard, self._heard = self._heard, {}
        whole, self._whole = self._whole, {}
        return Changes(mark, heard, whole)

    def keep_alive(self) -> None:
        # Redis closes the connection of a client that leaves too much unread.
        self._receive(0.0)

    def close(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            pubsub.close()

    def _receive(self, wait: float) -> None:
        """Take in all messages that are there. Wait for the first one for so many seconds."""
        if self._pubsub is None:
            raise StoreUnavailableError("the change source is not open")
        with self._server.errors():
            message = self._pubsub.get_message(timeout=wait)
            while message is not None:
                self._take(message)
                message = self._pubsub.get_message(timeout=0.0)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "psubscribe":
            # redis-py subscribes again by itself after it has lost the connection.
            self._confirmations -= 1
            if self._confirmations < 0:
                raise StoreUnavailableError(
                    f"Redis at {self._server.address} closed the connection of the notifications"
                )
            return
        if message["type"] != "pmessage" or message["data"] in _IDLE:
            return
        try:
            name = message["channel"].decode().removeprefix(self._prefix)
        except UnicodeDecodeError:
            return  # no key of a record has such a name
        if name == self._probe_name:
            self._is_probe_heard = True
            return
        for accessor in self._accessors:
            key = accessor.pattern.key(name)
            if key is not None:
                self._note(accessor.type.name, key)

    def _note(self, type: str, key: str) -> None:
        keys = self._heard.setdefault(type, {})
        keys[key] = None
        if len(keys) > _MOST:
            self._whole[type] = f"more than {_MOST:,} records were written at once"
            del self._heard[type]

    # -- the probe ---------------------------------------------------------------------------------

    def _send_probe(self) -> None:
        self._is_probe_heard, self._probed_at = False, time.monotonic()
        self._server.call("SET", self._probe_name, f"{time.time():.3f}", "EX", 60)

    def _check_probe(self) -> None:
        age = time.monotonic() - self._probed_at
        if self._is_probe_heard:
            if age > _PROBE_EVERY:
                self._send_probe()
        elif age > _PROBE_LIFE:
            self._receive(0.0)
            if not self._is_probe_heard:
                raise StoreUnavailableError(
                    f"Redis at {self._server.address} has stopped to send notifications",
                    hint=f"see its setting {_SETTING}; after a failover this is normal",
                )

    # -- what an operator does ---------------------------------------------------------------------

    def install(self) -> None:
        flags = self._flags()
        if flags is None:
            return  # ``open`` finds out whether there are notifications
        if _missing(flags):
            self._index.save_mark(_FORMER, json.dumps(flags))
            self._server.set_config(_SETTING, flags + _missing(flags))

    def remove(self) -> None:
        former = self._index.load_mark(_FORMER)
        if former and self._flags() is not None:
            self._server.set_config(_SETTING, json.loads(former))
        self._index.save_mark(_FORMER, "")

    def statements(self) -> tuple[str, ...]:
        flags = self._flags()
        if flags is None:
            return ()
        missing = _missing(flags)
        return (self._statement(flags + missing),) if missing else ()

    @staticmethod
    def _statement(flags: str) -> str:
        return f"CONFIG SET {_SETTING} {flags}"

    def findings(self) -> Iterator[Finding]:
        listen = [["PSUBSCRIBE", one] for one in self._channels()]
        lack = lacking(self._server, [*listen, ["SET", self._probe_name, "1", "EX", "60"]])
        if lack:
            names = [command[1] for command in lack]
            rights = [f"{'~' if name == self._probe_name else '&'}{name}" for name in names]
            yield Finding(
                Level.WRONG,
                "capture",
                f"this user may not listen to keyspace notifications, or not set {names[-1]}",
                (f"ACL SETUSER {self._server.user()} +psubscribe +set {' '.join(rights)}",),
            )
        if self._flags() is None:
            yield Finding(
                Level.NOTE,
                "capture",
                f"this Redis does not show its setting {_SETTING}; it must contain the letters "
                f"{_NEEDED} (or KA), and eventsync capture tries whether it does",
            )

    def state(self) -> SourceState:
        flags = self._flags()
        details = {_SETTING: "not shown" if flags is None else flags or "empty"}
        return SourceState(installed=flags is None or not _missing(flags), details=details)

    def _flags(self) -> str | None:
        """Return the server's setting; ``None`` if this user may not see it."""
        try:
            return self._server.config(_SETTING, self._probe_name)
        except StoreUnavailableError:
            raise
        except ConfigError:
            return None


def _missing(flags: str) -> str:
    """Return the flags that are needed beside ``flags``."""
    has = set(flags) | (set(_ALL) if "A" in flags else set())
    return "".join(flag for flag in _NEEDED if flag not in has)
