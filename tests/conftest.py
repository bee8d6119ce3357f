"""How many examples property tests try: ``--hypothesis-profile=long`` for the long run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile(
    "long", deadline=None, max_examples=100_000, suppress_health_check=list(HealthCheck)
)
