"""The deployment that a command works on: settings, the registry of stores, the bus.

It owns how ``--app`` finds a registry. It must not know any command, nor how anything is shown.
"""

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
    """Settings, stores and bus, each made when it is first asked for. For one thread.

    ``app`` and ``broker`` stand over the environment's. Usable as a context manager, which closes
    what was opened.
    """

    def __init__(self, *, app: str | None = None, broker: str | None = None) -> None:
        given = {"app": app, "broker": broker}
        self.given = {name: held for name, held in given.items() if held is not None}
        """What was given, by the names of settings; for processes that are to work on the same."""

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
        """The bus, which connects at first use. Raises ``ConfigError``."""
        return self.settings.bus(tracing=self.tracing)

    @cached_property
    def tracing(self) -> Tracer | None:
        """What traces changes, if the settings ask for it. Raises ``ConfigError``."""
        if not self.settings.traces:
            return None
        from eventsync.monitoring.exporters.opentelemetry import Tracer

        return Tracer.exporting()

    def spool(self, path: Path) -> Spool:
        """The spool in a file, not opened. Raises ``ConfigError``."""
        return self.settings.spool(path, tracing=self.tracing)

    def store(self, name: str) -> Store:
        """The store of that name, not opened. Raises ``ConfigError``."""
        return self.registry[name]

    def record_type(self, name: str) -> type[Record]:
        """The record type of that name. Raises ``ConfigError``."""
        types = self.registry.record_types
        try:
            return types[name]
        except KeyError:
            raise ConfigError(
                f"no store holds records of type {name!r}", hint=f"there are {', '.join(types)}"
            ) from None

    def declare(self) -> Bus:
        """The bus, with the queues of all stores declared, so that what is published waits there.

        Raises ``BusUnavailableError``.
        """
        for store in self.registry:
            self.bus.declare(store.name, store.accessors)
        return self.bus

    def try_declare(self) -> BusUnavailableError | None:
        """As ``declare``; the error if the broker is away, which an edit of a store outlives."""
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
    """The registry that ``module:attribute`` names, looked for in the working directory first.

    The attribute is a ``StoreRegistry``, or a function without arguments that returns one. Raises
    ``ConfigError``.
    """
    from eventsync.engine.registry import StoreRegistry

    module_name, colon, attribute = app.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(
            f"{app!r} does not name a registry", hint="write module:attribute, as workers:registry"
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
                hint="change into your project's folder, name another --app, "
                "or start a project with eventsync init",
            ) from error
        raise _broken(app, error) from error
    except AttributeError as error:
        module = sys.modules.get(module_name)
        if module is not None and not hasattr(module, attribute.partition(".")[0]):
            names = [name for name, held in vars(module).items() if isinstance(held, StoreRegistry)]
            hint = f"it has {', '.join(names)}" if names else "it makes no StoreRegistry"
            raise ConfigError(f"{module_name!r} has no {attribute!r}", hint=hint) from error
        raise _broken(app, error) from error
    except Exception as error:
        # Whatever the user's own code raises: it is told in one line, and whole with --debug.
        raise _broken(app, error) from error
    if not isinstance(found, StoreRegistry):
        raise ConfigError(
            f"{app} is {type(found).__name__}, not a StoreRegistry",
            hint="make one of your stores: registry = StoreRegistry(crm(), cache())",
        )
    return found


def _broken(app: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{app} cannot be loaded: {type(error).__name__}: {error}",
        hint="run the command again with --debug to see where",
    )
