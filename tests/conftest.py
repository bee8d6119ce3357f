"""How many examples property tests try (``--hypothesis-profile=long`` for the long run), and which
tests need a server."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile(
    "long", deadline=None, max_examples=100_000, suppress_health_check=list(HealthCheck)
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of modules that start servers, so that a quick run can leave them out.

    The long run takes its time: a timeout would look like a failing example, to be made smaller.
    """
    takes_its_time = settings.get_current_profile_name() == "long"
    for item in items:
        if takes_its_time:
            item.add_marker(pytest.mark.timeout(0))
        module = getattr(item, "module", None)
        names = {getattr(held, "__module__", None) for held in vars(module).values()}
        if any(isinstance(name, str) and name.startswith("servers") for name in names):
            item.add_marker("server")
