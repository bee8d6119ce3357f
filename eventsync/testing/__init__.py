"""What authors of accessors test theirs with: the conformance suite, a fake bus and a fake time.

It knows no store of its own. ``StoreContract`` needs the extra ``eventsync[testing]``.
"""

from __future__ import annotations

from eventsync.errors import ConfigError
from eventsync.testing.fake import Crash, FakeBus, FakeTime, crashing
from eventsync.testing.model import expected

try:
    import pytest

    # Its assertions explain themselves as those of a test module do.
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
                "tracker.contract",
                "tracker.harness",
            )
        )
    )
    from eventsync.testing.contract import StoreContract
except ModuleNotFoundError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError(
        f"eventsync.testing needs {error.name}", hint="pip install 'eventsync[testing]'"
    ) from error

__all__ = ["Crash", "FakeBus", "FakeTime", "StoreContract", "crashing", "expected"]
