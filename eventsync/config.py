"""The settings of a deployment. Only this module reads the environment.

The setting ``broker`` is read from the environment variable ``EVENTSYNC_BROKER``. If the variable
is not set, the setting is read from the file ``eventsync_broker`` in the folder that
``EVENTSYNC_SECRETS_DIR`` names. Passwords and keys belong in such files.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, SecretStr, ValidationError, create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.broker.tracing import Tracing
from eventsync.engine.apply import Limits
from eventsync.envelope.codec import Keyring
from eventsync.envelope.key_file import KeyFile
from eventsync.errors import ConfigError
from eventsync.transports.credential import passwords
from eventsync.worker.options import Options

__all__ = [
    "Settings",
    "key_path",
    "known_secrets",
    "load",
    "location",
    "unread",
    "webhook_secrets",
]

S = TypeVar("S", bound=BaseSettings)
_PREFIX = "EVENTSYNC_"
_SECRETS_DIR = "EVENTSYNC_SECRETS_DIR"
# The settings that ``location`` has looked for, in lower case.
_located: set[str] = set()
# The passwords in the locations that it has returned, and the secrets of webhooks.
_passwords: set[str] = set()
_Seconds = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    """The settings of a deployment, each with its default. Times are in seconds, sizes in bytes.

    ``broker`` and ``keys`` hold secrets. ``repr`` and errors never show their values.
    """

    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")

    app: str = "workers:registry"
    """Where the store registry is, as ``module:attribute``; ``workers:registry`` by default."""
    broker: SecretStr = SecretStr("sqlite:///eventsync-broker.db")
    """The URL of the broker. The default is an SQLite file in the working directory."""
    keys: SecretStr | None = None
    """The signing keys: one a line, ``id:base64`` and the limits of the key, or several without
    limits in one line, ``id:base64,id:base64``. The first key signs changes, and a signature may be
    from any of the keys. Without keys, the default, changes are not signed. If the keys are in a
    file of the secrets folder, a running program reads the file again when it changes.
    """
    max_clock_drift: _Seconds = 5.0
    """The seconds that the version of a change may be ahead of the local clock. A change further
    ahead is held. 5 by default. A program that edits records through a store gives the same number
    to the store: ``Store(..., clock=Clock(max_drift=60))``.
    """
    hold_for: _Seconds = 300.0
    """The seconds during which a held change is retried. Then it becomes a dead letter. 300 by
    default.
    """
    tombstone_retention: _Seconds = 10 * 86_400.0
    """The seconds for which the tombstone of a deleted record is kept; 864,000 (10 days) by
    default.
    """
    max_hops: _Count = 8
    """How many times a change may be passed on from one store to another; 8 by default."""
    max_envelope: _Count = 256 * 1024
    """The largest size of an envelope in bytes; 262,144 (256 KiB) by default."""
    message_envelopes: _Count = 500
    """The largest number of envelopes in a message; 500 by default."""
    message_bytes: _Count = 512 * 1024
    """The largest size of a message with several envelopes, in bytes; 524,288 (512 KiB) by default.
    A larger envelope becomes a message of its own.
    """
    max_message: _Count = 8 * 1024 * 1024
    """The largest size of a message in bytes; 8,388,608 (8 MiB) by default. A larger message
    becomes a dead letter.
    """
    prefetch: _Count = 64
    """How many messages a worker takes from the broker at a time; 64 by default."""
    batch: _Count = 5000
    """About how many changes a worker applies at a time; 5,000 by default. A worker always applies
    whole messages, and at least one.
    """
    max_deliveries: _Count = 50
    """How many times a message may be delivered to workers that end without settling it. Then the
    message becomes a dead letter. 50 by default.
    """
    lease: _Seconds = 60.0
    """The seconds after which other workers take over the messages of a worker that gives no sign
    of life; 60 by default.
    """
    retry_for: _Seconds = 30.0
    """The seconds for which a worker retries a store that fails. Then its circuit breaker opens. 30
    by default.
    """
    grace: _Seconds = 25.0
    """The seconds that a worker has after SIGTERM to finish its work; 25 by default."""
    letter_retention: _Seconds = 7 * 86_400.0
    """The seconds for which dead letters are kept; 604,800 (7 days) by default.

    The value must not be greater than ``tombstone_retention`` minus ``max_clock_drift``.
    """
    republish_window: Annotated[float, Field(ge=0)] = 10.0
    """The seconds before a restart of the broker whose changes are published again, because the
    broker may have lost them; 10 by default. 0: publish nothing again.
    """
    spool_bytes: _Count = 1 << 30
    """The largest size of a spool file in bytes; 1,073,741,824 (1 GiB) by default."""
    recycle_messages: Annotated[int, Field(ge=0)] = 0
    """The number of messages after which a worker exits so that its supervisor starts a new one; 0,
    the default: no limit.
    """
    recycle_growth: Annotated[int, Field(ge=0)] = 0
    """The growth of its memory, in bytes, after which a worker exits so that its supervisor starts
    a new one; 0, the default: no limit.
    """
    stall_after: _Seconds = 300.0
    """The seconds that one call to a store may take. If a call takes longer, the watchdog ends the
    worker. 300 by default.
    """
    listen: str = ""
    """The address ``HOST:PORT`` at which a command serves metrics and health over HTTP. Empty, the
    default: no HTTP server.
    """
    traces: bool = False
    """Whether changes are traced with OpenTelemetry; false by default. The ``OTEL_`` variables of
    OpenTelemetry configure the traces.
    """
    state_dir: Path | None = None
    """The folder in which each worker keeps a file with its state. ``None``, the default: workers
    write no such files.
    """

    @model_validator(mode="after")
    def _letters_before_tombstones(self) -> Settings:
        if self.letter_retention > self.tombstone_retention - self.max_clock_drift:
            raise ValueError(
                f"EVENTSYNC_LETTER_RETENTION is {self.letter_retention:g} s, but must be at most "
                f"EVENTSYNC_TOMBSTONE_RETENTION ({self.tombstone_retention:g} s) minus "
                f"EVENTSYNC_MAX_CLOCK_DRIFT ({self.max_clock_drift:g} s), because an older dead "
                "letter could not be replayed; lower the first setting or raise the second"
            )
        return self

    def secrets(self) -> list[str]:
        """Return the secrets in these settings: passwords in the URLs of brokers, and signing keys.

        Each password is in the list twice: as it is in the URL, and percent-decoded.
        """
        found = []
        for url in self.broker.get_secret_value().split(";"):
            found += passwords(url)
        for word in re.split(r"[,\s]+", self.keys.get_secret_value()) if self.keys else []:
            found.append(word.partition(":")[2])
        return [secret for secret in found if secret]

    def bus(self, *, tracing: Tracing | None = None) -> Bus:
        """Return a new bus with these settings, not yet connected.

        ``tracing``: traces the changes that the bus carries. Raises ``ConfigError`` if ``broker``
        or ``keys`` is wrong.
        """
        return Bus(
            self.broker.get_secret_value(),
            keys=self.keyring(),
            max_envelope=self.max_envelope,
            message_envelopes=self.message_envelopes,
            message_bytes=self.message_bytes,
            max_message=self.max_message,
            lease=self.lease,
            tracing=tracing,
        )

    def spool(self, path: Path, *, tracing: Tracing | None = None) -> Spool:
        """Return the spool in the file ``path``, not yet opened.

        ``tracing``: traces the changes that the spool carries. Raises ``ConfigError`` if ``keys``
        is wrong.
        """
        return Spool(
            path,
            keys=self.keyring(),
            max_envelope=self.max_envelope,
            republish_window=self.republish_window,
            max_bytes=self.spool_bytes,
            tracing=tracing,
        )

    @property
    def key_file(self) -> Path | None:
        """The file that the setting ``keys`` comes from; ``None`` if it comes from elsewhere."""
        file = key_path()
        return file if file is not None and file.is_file() else None

    def keyring(self) -> Keyring | KeyFile | None:
        """Return the signing keys; ``None`` if there are none.

        Raises ``ConfigError`` if they are malformed.
        """
        keys = self.keys.get_secret_value().strip() if self.keys else ""
        if not keys:
            return None
        return Keyring.parse(keys) if self.key_file is None else KeyFile(self.key_file)

    def limits(self) -> Limits:
        """Return the limits of age, clock and hops beyond which a store does not apply a change."""
        return Limits(
            retention=self.tombstone_retention, drift=self.max_clock_drift, hops=self.max_hops
        )

    def worker_options(self) -> Options:
        """Return the options of a worker with these settings, without a limit on its rate."""
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
    """Return the settings from the environment and the secrets folder.

    ``overrides``: values by name that take precedence; ``None`` overrides nothing. Raises
    ``ConfigError`` if a setting is wrong; the error names every wrong setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    return _read(Settings, **given)


def key_path() -> Path | None:
    """Return the path of the file with the signing keys, whether it exists or not.

    Returns ``None`` if the keys are in the environment, or if there is no secrets folder.
    """
    folder = os.environ.get("EVENTSYNC_SECRETS_DIR")
    if not folder or os.environ.get("EVENTSYNC_KEYS"):
        return None
    return Path(folder) / "eventsync_keys"


def location(store: str, default: str | None = None) -> str:
    """Return the location of a store, which is a URL or a folder, from ``EVENTSYNC_STORE_<NAME>``.

    Call this where you construct a store: then the same code runs on a laptop and in production.
    ``default``: the location to return if the variable is not set. Raises ``ConfigError`` if there
    is neither a variable nor a default.
    """
    name = "store_" + re.sub(r"\W", "_", store).lower()
    _located.add(name)
    field: dict[str, Any] = {name: (str | None, default)}
    model = create_model("Location", __base__=_Location, **field)
    found: str | None = getattr(_read(model), name)
    _passwords.update(passwords(found or ""))
    if not found:
        raise ConfigError(
            f"the location of the store {store!r} is not set",
            hint=f"set EVENTSYNC_{name.upper()} to the URL or folder of the store, or write the "
            f"location to the file eventsync_{name} in the folder that EVENTSYNC_SECRETS_DIR names",
        )
    return found


def webhook_secrets(store: str) -> list[str]:
    """Return the secrets of the webhooks of a store, from ``EVENTSYNC_WEBHOOK_<NAME>``.

    Blanks separate several secrets, of which a sender must know one. The secrets may be in the file
    ``eventsync_webhook_<name>`` of the secrets folder instead. Returns an empty list if there is
    neither.
    """
    name = _webhook_setting(store)
    field: dict[str, Any] = {name: (SecretStr | None, None)}
    model = create_model("Webhook", __base__=_Location, **field)
    found: SecretStr | None = getattr(_read(model), name)
    secrets = [] if found is None else found.get_secret_value().split()
    _passwords.update(secrets)
    return secrets


def _webhook_setting(store: str) -> str:
    return "webhook_" + re.sub(r"\W", "_", store).lower()


def known_secrets() -> list[str]:
    """Return the secrets in the settings that this process has read, so that texts can hide them.

    These are passwords of the broker and of the locations of stores, and the signing keys. Never
    raises: settings that are wrong have no known secrets.
    """
    found = list(_passwords)
    try:
        found += load().secrets()
    except ConfigError:
        # The wrong value itself is never shown.
        return found
    return found


def unread(webhooks: Iterable[str] = ()) -> list[str]:
    """Return a sentence for each variable and secret file whose name is no setting.

    Call this after the stores are made, so that the settings of their locations are known. A
    sentence names the nearest setting, but no value. ``webhooks``: the names of the stores that may
    have secrets of webhooks.
    """
    known = {*Settings.model_fields, *_located, "secrets_dir"}
    known |= {_webhook_setting(store) for store in webhooks}
    found = []
    folder = os.environ.get(_SECRETS_DIR)
    files = sorted(os.listdir(folder)) if folder and os.path.isdir(folder) else []
    variables = [name for name in sorted(os.environ) if name.upper().startswith(_PREFIX)]
    for names, what in ((variables, "variable"), (files, "file")):
        for name in names:
            setting = name.lower().removeprefix(_PREFIX.lower())
            if setting in known or not name.lower().startswith(_PREFIX.lower()):
                continue
            near = difflib.get_close_matches(setting, known, n=1)
            nearest = [f"{_PREFIX}{one}" for one in near]
            shown = [n.upper() if what == "variable" else n.lower() for n in nearest]
            hint = f"; do you mean {shown[0]}?" if shown else ""
            found.append(f"nothing reads the {what} {name}{hint}")
    return found


class _Location(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVENTSYNC_", frozen=True, extra="ignore")


def _read(model: type[S], **given: Any) -> S:
    secrets = os.environ.get("EVENTSYNC_SECRETS_DIR") or None
    if secrets and not Path(secrets).is_dir():
        raise ConfigError(
            f"EVENTSYNC_SECRETS_DIR names the folder {secrets}, which does not exist",
            hint="create the folder, or unset the variable",
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
        raise ConfigError(
            f"wrong settings: {wrong}",
            hint="correct the environment variables, or the files in EVENTSYNC_SECRETS_DIR",
        ) from None
