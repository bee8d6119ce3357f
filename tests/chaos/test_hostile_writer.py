"""A short run of the hostile writer on each broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "broker",
    ["embedded", pytest.param("redis", marks=pytest.mark.server),
     pytest.param("rabbitmq", marks=pytest.mark.server)],
)  # fmt: skip
def test_a_hostile_writer_harms_nothing(broker):
    """All good changes are applied, every hostile message is accounted for, no worker ends."""
    done = subprocess.run(
        [
            *(sys.executable, "tests/chaos/hostile_writer.py", "--broker", broker),
            *("--good", "2000", "--hostile", "100", "--seed", "15"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["good"] == 2000
    assert sum(report["sent"].values()) >= 100
