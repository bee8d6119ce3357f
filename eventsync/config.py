"""The settings of a deployment. Only this module reads the environment.

A setting ``broker`` is read from the environment variable ``EVENTSYNC_BROKER``. If that is not set,
it is read from the file ``eventsync_broker`` in the folder that ``EVENTSYNC_SECRETS_DIR`` names,
which is the place for passwords and keys.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationError, create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.broker.tracing import Tracing
from eventsync.engine.apply import Limits
from eventsync.envelope.codec import Keyring
from eventsync.errors import ConfigError
from eventsync.worker.options import Options

__all__ = ["Settings", "load", "location"]

S = TypeVar("S", bound=BaseSettings)
_Seconds = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    """The settings, each with its default. Times are in seconds, sizes in bytes.

    ``repr`` and errors never show ``broker`` and ``keys``, which hold secrets.
    """

    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")

    app: str = "workers:registry"
    """The store registry, as ``module:attribute``; ``workers:registry`` by default."""
    broker: SecretStr = SecretStr("sqlite:///eventsync-broker.db")
    """The URL of the broker, by default an SQLite file in the working directory; it is secret."""
    keys: SecretStr | None = None
    """The signing keys, ``id:base64,id:base64``: the first signs, all verify; none by default."""
    max_clock_drift: _Seconds = 5.0
    """The seconds that a version may lie in the future; 5 by default."""
    hold_for: _Seconds = 300.0
    """The seconds that a held change is retried before it becomes a dead letter; 300 by default."""
    tombstone_retention: _Seconds = 10 * 86_400.0
    """The seconds that the version of a deleted record is kept; 864,000 (10 days) by default."""
    max_hops: _Count = 8
    """The number of times that a change may be passed on from store to store; 8 by default."""
    max_envelope: _Count = 256 * 1024
    """The largest size of an envelope in bytes; 262,144 (256 KiB) by default."""
    message_envelopes: _Count = 500
    """The largest number of envelopes in a message; 500 by default."""
    message_bytes: _Count = 512 * 1024
    """The largest size in bytes of a message of several envelopes; 524,288 by default."""
    max_message: _Count = 8 * 1024 * 1024
    """The size in bytes above which a message becomes a dead letter; 8,388,608 by default."""
    prefetch: _Count = 64
    """The number of messages that a worker takes from the broker at a time; 64 by default."""
    batch: _Count = 5000
    """The number of changes, beyond the first message, that a worker applies at a time; 5,000 by
    default.
    """
    max_deliveries: _Count = 50
    """The number of deliveries to workers that die, after which a message is a dead letter; 50 by
    default.
    """
    lease: _Seconds = 60.0
    """The seconds after which the messages of a silent worker go to others; 60 by default."""
    retry_for: _Seconds = 30.0
    """The seconds that a store may fail before the circuit breaker opens; 30 by default."""
    grace: _Seconds = 25.0
    """The seconds that a worker may take to finish its work after SIGTERM; 25 by default."""
    letter_retention: _Seconds = 7 * 86_400.0
    """The seconds that dead letters are kept; 604,800 (7 days) by default.

    It has to be less than ``tombstone_retention`` minus ``max_clock_drift``.
    """
    republish_window: Annotated[float, Field(ge=0)] = 10.0
    """When a lost broker is back, changes of this many seconds before the loss are published again;
    10 by default, 0 for none.
    """
    spool_bytes: _Count = 1 << 30
    """The largest size of a spool file in bytes; 1,073,741,824 (1 GiB) by default."""
    recycle_messages: Annotated[int, Field(ge=0)] = 0
    """The number of messages after which a worker exits, to be restarted; 0, the default, for no
    limit.
    """
    recycle_growth: Annotated[int, Field(ge=0)] = 0
    """The growth of memory in bytes after which a worker exits, to be restarted; 0, the default,
    for no limit.
    """
    stall_after: _Seconds = 300.0
    """The seconds that one call of a store may take before the watchdog ends the worker; 300 by
    default.
    """
    listen: str = ""
    """The ``HOST:PORT`` that serves metrics and health; empty, the default, for none."""
    traces: bool = False
    """Whether changes are traced with OpenTelemetry, which has its own ``OTEL_`` settings; off by
    default.
    """
    state_dir: Path | None = None
    """The folder for the state files of workers; ``None``, the default, for no files."""

    @model_validator(mode="after")
    def _letters_before_tombstones(self) -> Settings:
        if self.letter_retention > self.tombstone_retention - self.max_clock_drift:
            raise ValueError(
                f"EVENTSYNC_LETTER_RETENTION is {self.letter_retention:g} s, but has to be at most "
                f"EVENTSYNC_TOMBSTONE_RETENTION ({self.tombstone_retention:g} s) minus "
                f"EVENTSYNC_MAX_CLOCK_DRIFT ({self.max_clock_drift:g} s), because an older dead "
                "letter could not be replayed"
            )
        return self

    def secrets(self) -> list[str]:
        """Return the secret texts in these settings, passwords also percent-decoded."""
        found = []
        for url in self.broker.get_secret_value().split(";"):
            _, _, after = url.partition("://")
            user, at, _ = after.partition("/")[0].rpartition("@")
            if at:
                password = user.partition(":")[2]
                found += [password, unquote(password)]
        for key in self.keys.get_secret_value().split(",") if self.keys else []:
            found.append(key.partition(":")[2].strip())
        return [secret for secret in found if secret]

    def bus(self, *, tracing: Tracing | None = None) -> Bus:
        """Return the bus of these settings, not yet connected. Raises ``ConfigError``."""
        return Bus(
            self.broker.get_secret_value(),
            keys=self._keyring(),
            max_envelope=self.max_envelope,
            message_envelopes=self.message_envelopes,
            message_bytes=self.message_bytes,
            max_message=self.max_message,
            lease=self.lease,
            tracing=tracing,
        )

    def spool(self, path: Path, *, tracing: Tracing | None = None) -> Spool:
        """Return the spool in a file, not yet opened. Raises ``ConfigError``."""
        return Spool(
            path,
            keys=self._keyring(),
            max_envelope=self.max_envelope,
            republish_window=self.republish_window,
            max_bytes=self.spool_bytes,
            tracing=tracing,
        )

    def _keyring(self) -> Keyring | None:
        keys = self.keys.get_secret_value() if self.keys else ""
        return Keyring.parse(keys) if keys else None

    def limits(self) -> Limits:
        """Return the limits beyond which stores refuse changes."""
        return Limits(
            retention=self.tombstone_retention, drift=self.max_clock_drift, hops=self.max_hops
        )

    def worker_options(self) -> Options:
        """Return the options of workers."""
        return Options(
            prefetch=self.prefetch,
            batch=self.batch,
            retry_for=self.retry_for,
            hold_for=self.hold_for,
            max_deliveries=self.max_deliveries,
            limits=self.limits(),
            recycle_messages=self.recycle_messages,
            recycle_growth=self.recycle_growth,
            letter_retention=self.letter_retention,
            republish_window=self.republish_window,
        )


def load(**overrides: Any) -> Settings:
    """Return the settings of the environment, with ``overrides`` that are not ``None``.

    Raises ``ConfigError``, which names every wrong setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    return _read(Settings, **given)


def location(store: str, default: str | None = None) -> str:
    """Return the location of a store, a URL or a folder, from ``EVENTSYNC_STORE_<NAME>``.

    For functions that make stores, so that the same code runs on a laptop and in production. Raises
    ``ConfigError`` if the location is not set and there is no ``default``.
    """
    name = "store_" + re.sub(r"\W", "_", store).lower()
    field: dict[str, Any] = {name: (str | None, default)}
    model = create_model("Location", __base__=_Location, **field)
    found: str | None = getattr(_read(model), name)
    if not found:
        raise ConfigError(
            f"the location of the store {store!r} is not set",
            hint=f"set EVENTSYNC_{name.upper()} to its URL or folder, or write it to the file "
            f"eventsync_{name} in the folder that EVENTSYNC_SECRETS_DIR names",
        )
    return found


class _Location(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")


def _read(model: type[S], **given: Any) -> S:
    secrets = os.environ.get("EVENTSYNC_SECRETS_DIR") or None
    if secrets and not Path(secrets).is_dir():
        raise ConfigError(
            f"EVENTSYNC_SECRETS_DIR: there is no folder {secrets}",
            hint="create it, or unset the variable",
        )
    try:
        return model(_secrets_dir=secrets, **given)
    except ValidationError as error:
        wrong = "; ".join(
            (
                f"EVENTSYNC_{str(part['loc'][0]).upper().removeprefix('EVENTSYNC_')}: {part['msg']}"
                if part["loc"]
                else part["msg"].removeprefix("Value error, ")
            )
            for part in error.errors(include_input=False)
        )
        raise ConfigError(f"wrong settings: {wrong}") from None
