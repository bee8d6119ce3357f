"""A short run of ``captured.py``: foreign writers whose capture is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.server
def test_nothing_is_lost_when_the_capture_is_killed():
    """The copies equal the databases, and eventsync's own writes cause no change."""
    done = subprocess.run(
        [
            *(sys.executable, "tests/chaos/captured.py", "--seconds", "8", "--kills", "6"),
            *("--crashes", "1", "--forgotten", "1", "--second", "1", "--seed", "5"),
            *("--sources", "postgres-log", "sqlite-triggers"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["sources"]
    assert all(one["records"] > 100 for one in found.values())
