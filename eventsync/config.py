"""The settings of a deployment: the only reader of the environment.

It knows nothing of stores, nor of what its settings do in the end. Times are in seconds, sizes in
bytes.

What is not in the environment is looked for in the folder that ``EVENTSYNC_SECRETS_DIR`` names, in
a file called as the variable would be (``eventsync_broker``), which is where secrets belong.
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
    """Each is read from the environment variable ``EVENTSYNC_`` and its name in capitals, or from
    a file of that name.
    """

    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")

    app: str = "workers:registry"
    """Where the store registry is: a module and an attribute (or a function that returns it)."""
    broker: SecretStr = SecretStr("sqlite:///eventsync-broker.db")
    """The broker's URL; it may hold a password, so it is never shown."""
    keys: SecretStr | None = None
    """Signing keys, ``id:base64,id:base64``; the first signs, all of them verify."""
    max_clock_drift: _Seconds = 5.0
    """How far in the future a version may lie."""
    hold_for: _Seconds = 300.0
    """How long a change with a version too far in the future is tried again."""
    tombstone_retention: _Seconds = 10 * 86_400.0
    """How long the versions of deleted records are kept."""
    max_hops: _Count = 8
    """How often a change may be passed on."""
    max_envelope: _Count = 256 * 1024
    """The size of the largest envelope."""
    message_envelopes: _Count = 500
    """How many envelopes one broker message carries at most."""
    message_bytes: _Count = 512 * 1024
    """How large a broker message with more than one envelope may become."""
    max_message: _Count = 8 * 1024 * 1024
    """The size of the largest broker message that is read; larger ones become dead letters."""
    prefetch: _Count = 64
    """How many messages a worker takes from the broker at a time."""
    batch: _Count = 5000
    """How many changes a worker applies at a time, beyond the first message."""
    max_deliveries: _Count = 50
    """How often a message may be taken by workers that then die, before it is put aside."""
    lease: _Seconds = 60.0
    """How long a message stays with a worker that shows no sign of life."""
    retry_for: _Seconds = 30.0
    """How long a worker tries again before it lets go of a store that is down."""
    grace: _Seconds = 25.0
    """How long a worker that is told to stop may take to finish what it has in hand."""

    letter_retention: _Seconds = 7 * 86_400.0
    """How long dead letters are kept; shorter than ``tombstone_retention`` by the drift."""
    republish_window: Annotated[float, Field(ge=0)] = 10.0
    """When the broker was lost and is back: from how long before on changes are published again."""
    spool_bytes: _Count = 1 << 30
    """How large a spool may become."""
    recycle_messages: Annotated[int, Field(ge=0)] = 0
    """After how many messages a worker makes place for a new process; 0: never."""
    recycle_growth: Annotated[int, Field(ge=0)] = 0
    """After how many bytes of growth a worker makes place for a new process; 0: never."""
    stall_after: _Seconds = 300.0
    """How long one call of a store may take before the watchdog ends the worker."""
    listen: str = ""
    """Where metrics and health are served, ``HOST:PORT``; empty: nowhere."""
    traces: bool = False
    """Whether changes are traced with OpenTelemetry, which has settings of its own, ``OTEL_``."""
    state_dir: Path | None = None
    """A folder for state files of workers, which tell what each is doing; ``None``: no files."""

    @model_validator(mode="after")
    def _letters_before_tombstones(self) -> Settings:
        if self.letter_retention > self.tombstone_retention - self.max_clock_drift:
            raise ValueError(
                f"letter_retention is {self.letter_retention:g} s; it has to be shorter than "
                f"tombstone_retention ({self.tombstone_retention:g} s) less max_clock_drift, since "
                "an older letter could not be replayed"
            )
        return self

    def secrets(self) -> list[str]:
        """All texts in these settings that nobody may see, as they stand and decoded."""
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
        """The bus that these settings describe, not yet connected. Raises ``ConfigError``."""
        keys = self.keys.get_secret_value() if self.keys else ""
        return Bus(
            self.broker.get_secret_value(),
            keys=Keyring.parse(keys) if keys else None,
            max_envelope=self.max_envelope,
            message_envelopes=self.message_envelopes,
            message_bytes=self.message_bytes,
            max_message=self.max_message,
            lease=self.lease,
            tracing=tracing,
        )

    def spool(self, path: Path, *, tracing: Tracing | None = None) -> Spool:
        """The spool in a file, not yet opened. Raises ``ConfigError``."""
        keys = self.keys.get_secret_value() if self.keys else ""
        return Spool(
            path,
            keys=Keyring.parse(keys) if keys else None,
            max_envelope=self.max_envelope,
            republish_window=self.republish_window,
            max_bytes=self.spool_bytes,
            tracing=tracing,
        )

    def limits(self) -> Limits:
        """What stores refuse to apply."""
        return Limits(
            retention=self.tombstone_retention, drift=self.max_clock_drift, hops=self.max_hops
        )

    def worker_options(self) -> Options:
        """How workers go about their work."""
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
    """The settings from the environment, and over them those given that are not ``None``.

    Raises ``ConfigError`` that names every setting that is wrong.
    """
    return _read(Settings, **{name: held for name, held in overrides.items() if held is not None})


def location(store: str, default: str | None = None) -> str:
    """Where a store of yours is, a URL or a folder: ``EVENTSYNC_STORE_`` and its name in capitals.

    For the functions that make stores, so that the same ones serve on a laptop and in production.
    Raises ``ConfigError`` if it is said nowhere and there is no default.
    """
    name = "store_" + re.sub(r"\W", "_", store).lower()
    field: dict[str, Any] = {name: (str | None, default)}
    model = create_model("Location", __base__=_Location, **field)
    found: str | None = getattr(_read(model), name)
    if not found:
        raise ConfigError(
            f"nothing says where the store {store!r} is",
            hint=f"set EVENTSYNC_{name.upper()}, or put it into a file eventsync_{name} in the "
            "folder that EVENTSYNC_SECRETS_DIR names",
        )
    return found


class _Location(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")


def _read(model: type[S], **given: Any) -> S:
    secrets = os.environ.get("EVENTSYNC_SECRETS_DIR") or None
    if secrets and not Path(secrets).is_dir():
        raise ConfigError(f"EVENTSYNC_SECRETS_DIR: there is no folder {secrets}")
    try:
        return model(_secrets_dir=secrets, **given)
    except ValidationError as error:
        wrong = "; ".join(
            (
                f"EVENTSYNC_{str(part['loc'][0]).upper().removeprefix('EVENTSYNC_')}: {part['msg']}"
                if part["loc"]
                else part["msg"]
            )
            for part in error.errors(include_input=False)
        )
        raise ConfigError(f"wrong settings: {wrong}") from None
