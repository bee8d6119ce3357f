"""Tools to test an accessor: the conformance suites, a fake bus, a fake time, simulated crashes.

Extend ``StoreContract`` to test an accessor of your own, ``SourceContract`` for a change source.
This package needs the extra ``testing``.
"""

from __future__ import annotations

from eventsync.errors import ConfigError
from eventsync.testing.fake import Crash, FakeBus, FakeTime, crashing
from eventsync.testing.model import expected

try:
    import pytest

    # Let pytest show the values in failed assertions of these modules, as in test modules.
    pytest.register_assert_rewrite(
        *(
            f"eventsync.testing.{name}"
            for name in (
                "harness",
                "crud",
                "views",
                "convergence",
                "capture",
                "crashes",
                "sources",
                "tracker.contract",
                "tracker.harness",
            )
        )
    )
    from eventsync.testing.contract import StoreContract
    from eventsync.testing.sources import SourceContract
except ModuleNotFoundError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError(
        f"eventsync.testing needs the package {error.name}", hint="pip install 'eventsync[testing]'"
    ) from error

__all__ = [
    "Crash",
    "FakeBus",
    "FakeTime",
    "SourceContract",
    "StoreContract",
    "crashing",
    "expected",
]
