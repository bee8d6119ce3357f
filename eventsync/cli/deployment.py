"""The deployment that a command works on: its settings, store registry and bus."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
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
    """The settings, stores and bus of a command, each made at its first use. Not thread-safe.

    ``app``, ``broker``: override the settings of these names. Usable as a context manager, which
    calls ``close`` at the end.
    """

    def __init__(self, *, app: str | None = None, broker: str | None = None) -> None:
        given = {"app": app, "broker": broker}
        self.given = {name: value for name, value in given.items() if value is not None}
        """The overridden settings: values by name. They are passed on to worker processes."""
        self._is_told = False

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @cached_property
    def settings(self) -> Settings:
        """The settings of the deployment. Raises ``ConfigError`` if a setting is wrong."""
        from eventsync.config import load

        return load(**self.given)

    @cached_property
    def registry(self) -> StoreRegistry:
        """The registry of all stores, not opened. Raises ``ConfigError`` if there is none.

        The clocks of the stores allow the drift that the settings allow.
        """
        registry = find_registry(self.settings.app)
        for store in registry:
            store.clock.max_drift = self.settings.max_clock_drift
        return registry

    @cached_property
    def bus(self) -> Bus:
        """The bus. Connects at its first use. Raises ``ConfigError`` if a setting is wrong."""
        return self.settings.bus(tracing=self.tracing)

    @cached_property
    def tracing(self) -> Tracer | None:
        """The tracer of changes, or ``None`` if the setting ``traces`` is off.

        Raises ``ConfigError`` if OpenTelemetry is not installed.
        """
        if not self.settings.traces:
            return None
        from eventsync.monitoring.exporters.opentelemetry import Tracer

        return Tracer.exporting()

    def spool(self, path: Path) -> Spool:
        """Return the spool in the file ``path``, not opened.

        Raises ``ConfigError`` if a setting is wrong.
        """
        return self.settings.spool(path, tracing=self.tracing)

    def store(self, name: str) -> Store:
        """Return the store with this name, not opened.

        Raises ``ConfigError`` if the registry has no such store.
        """
        return self.registry[name]

    def record_type(self, name: str) -> type[Record]:
        """Return the record class of the type with this name.

        Raises ``ConfigError`` if no store holds the type.
        """
        types = self.registry.record_types
        try:
            return types[name]
        except KeyError:
            raise ConfigError(
                f"no store holds records of type {name!r}", hint=f"known types: {', '.join(types)}"
            ) from None

    def declare(self) -> Bus:
        """Declare the queues of all stores at the broker, and return the bus.

        Afterwards a published change waits for a store even if its worker has never run.
        Idempotent. Raises ``BusUnavailableError`` if the broker does not answer.
        """
        for store in self.registry:
            self.bus.declare(store.name, store.accessors)
        return self.bus

    def try_declare(self) -> BusUnavailableError | None:
        """Declare the queues of all stores, or return the error if the broker is unreachable.

        Use it before edits through a store: without the broker, their changes wait in the outbox.
        Returns ``None`` if the queues are declared.
        """
        try:
            self.declare()
        except BusUnavailableError as error:
            return error
        return None

    def unread_settings(self) -> list[str]:
        """Return a sentence for each setting that nothing reads, each once.

        Returns none before the settings and the registry were used: until then nobody can know.
        """
        if self._is_told or not {"settings", "registry"} <= self.__dict__.keys():
            return []
        from eventsync.config import unread

        self._is_told = True
        return unread(store.name for store in self.registry if store.webhook() is not None)

    def close(self) -> None:
        """Close the stores, the bus and the tracer, if they were used. Idempotent."""
        if "registry" in self.__dict__:
            self.registry.close()
        if "bus" in self.__dict__:
            self.bus.close()
        if (tracing := self.__dict__.get("tracing")) is not None:
            tracing.close()


def find_registry(app: str) -> StoreRegistry:
    """Import and return the store registry that ``app`` names, as ``module:attribute``.

    The module is looked up in the working directory first. The attribute is a ``StoreRegistry``, or
    a function without arguments that returns one. Raises ``ConfigError`` if the module cannot be
    imported, or has no such attribute.
    """
    from eventsync.engine.registry import StoreRegistry

    module_name, colon, attribute = app.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(
            f"--app is {app!r}, which does not have the form module:attribute",
            hint="write module:attribute, for example --app workers:registry",
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
    except EventSyncError as error:
        place = _place(error, here)
        if place:
            error.message = f"{place}: {error.message}"
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
            hint = "define the registry in this module: registry = StoreRegistry(...)"
            if names:
                hint = (
                    f"the module defines {', '.join(names)}; write --app {module_name}:{names[0]}"
                )
            raise ConfigError(
                f"the module {module_name!r} has no attribute {attribute!r}", hint=hint
            ) from error
        raise _broken(app, error) from error
    except Exception as error:
        # The module is the user's code and may raise any exception.
        raise _broken(app, error) from error
    if not isinstance(found, StoreRegistry):
        raise ConfigError(
            f"{app} is of type {type(found).__name__}, not a StoreRegistry",
            hint="define registry = StoreRegistry(...) with your stores, and name it with --app",
        )
    return found


def _place(error: BaseException, folder: str) -> str:
    """Return the file and line in ``folder`` whose execution raised ``error``; empty if none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(folder):
            return f"{path.relative_to(folder)}, line {frame.lineno}"
    return ""


def _broken(app: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{app} cannot be imported: {type(error).__name__}: {error}",
        hint="run the command again with --debug to see the traceback",
    )
