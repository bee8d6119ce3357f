"""The deployment that a command works on: settings, store registry and bus."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from eventsync.errors import BusUnavailableError, ConfigError, EventSyncError

if TYPE_CHECKING:
    from eventsync.broker.bus import Bus
    from eventsync.broker.spool import Spool
    from eventsync.config import Settings
    from eventsync.engine.registry import StoreRegistry
    from eventsync.engine.store import Store
    from eventsync.monitoring.exporters.opentelemetry import Tracer
    from eventsync.records.record import Record

__all__ = ["Deployment", "find_registry"]


class Deployment:
    """Settings, stores and bus, each made at its first use. Not thread-safe.

    ``app`` and ``broker`` override the environment. As a context manager it closes what was opened.
    """

    def __init__(self, *, app: str | None = None, broker: str | None = None) -> None:
        given = {"app": app, "broker": broker}
        self.given = {name: value for name, value in given.items() if value is not None}
        """The overridden settings by name, to pass on to child processes."""

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises ``ConfigError``."""
        from eventsync.config import load

        return load(**self.given)

    @cached_property
    def registry(self) -> StoreRegistry:
        """The stores, none of them opened. Raises ``ConfigError``."""
        return find_registry(self.settings.app)

    @cached_property
    def bus(self) -> Bus:
        """The bus, which connects at its first use. Raises ``ConfigError``."""
        return self.settings.bus(tracing=self.tracing)

    @cached_property
    def tracing(self) -> Tracer | None:
        """The tracer of changes, if traces are switched on. Raises ``ConfigError``."""
        if not self.settings.traces:
            return None
        from eventsync.monitoring.exporters.opentelemetry import Tracer

        return Tracer.exporting()

    def spool(self, path: Path) -> Spool:
        """Return the spool in a file, not opened. Raises ``ConfigError``."""
        return self.settings.spool(path, tracing=self.tracing)

    def store(self, name: str) -> Store:
        """Return the store with this name, not opened. Raises ``ConfigError``."""
        return self.registry[name]

    def record_type(self, name: str) -> type[Record]:
        """Return the record class of the type with this name. Raises ``ConfigError``."""
        types = self.registry.record_types
        try:
            return types[name]
        except KeyError:
            raise ConfigError(
                f"no store holds records of type {name!r}", hint=f"known types: {', '.join(types)}"
            ) from None

    def declare(self) -> Bus:
        """Return the bus, with the queues of all stores declared, so that changes can wait in them.

        Raises ``BusUnavailableError``.
        """
        for store in self.registry:
            self.bus.declare(store.name, store.accessors)
        return self.bus

    def try_declare(self) -> BusUnavailableError | None:
        """Declare all queues; return the error if the broker is unreachable.

        For edits through a store, which do not need the broker: their changes wait in the outbox.
        """
        try:
            self.declare()
        except BusUnavailableError as error:
            return error
        return None

    def close(self) -> None:
        """Close what was opened. Idempotent."""
        if "registry" in self.__dict__:
            self.registry.close()
        if "bus" in self.__dict__:
            self.bus.close()
        if (tracing := self.__dict__.get("tracing")) is not None:
            tracing.close()


def find_registry(app: str) -> StoreRegistry:
    """Import and return the registry that ``module:attribute`` names.

    The working directory is searched first. The attribute is a ``StoreRegistry``, or a function
    without arguments that returns one. Raises ``ConfigError``.
    """
    from eventsync.engine.registry import StoreRegistry

    module_name, colon, attribute = app.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(
            f"--app: {app!r} does not name a store registry",
            hint="write module:attribute, for example workers:registry",
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
        if callable(found) and not isinstance(found, StoreRegistry):
            found = found()
    except EventSyncError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {error.name!r} in {here}",
                hint="change to the folder of your project, name your module with --app, "
                "or start a project with eventsync init",
            ) from error
        raise _broken(app, error) from error
    except AttributeError as error:
        module = sys.modules.get(module_name)
        if module is not None and not hasattr(module, attribute.partition(".")[0]):
            names = [name for name, held in vars(module).items() if isinstance(held, StoreRegistry)]
            hint = "define one: registry = StoreRegistry(...)"
            if names:
                hint = f"it has {', '.join(names)}; write --app {module_name}:{names[0]}"
            raise ConfigError(
                f"the module {module_name!r} has no attribute {attribute!r}", hint=hint
            ) from error
        raise _broken(app, error) from error
    except Exception as error:
        # The user's own code may raise anything. --debug shows the traceback.
        raise _broken(app, error) from error
    if not isinstance(found, StoreRegistry):
        raise ConfigError(
            f"{app} is of type {type(found).__name__}, not a StoreRegistry",
            hint="define registry = StoreRegistry(...) with your stores, and name it with --app",
        )
    return found


def _broken(app: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{app} cannot be imported: {type(error).__name__}: {error}",
        hint="run the command again with --debug to see where it failed",
    )
