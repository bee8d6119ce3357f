"""Waiting for a condition, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(check: Callable[[], object], *, timeout: float = 30.0, what: str = "") -> None:
    """Wait until ``check()`` is true. Raises ``AssertionError`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or check}"
        time.sleep(0.02)
