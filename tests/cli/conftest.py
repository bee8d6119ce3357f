"""Fixtures that run the command line in a project of three stores, or in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.project import RECORDS, STORES, Cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder and clear the settings in the environment; return the folder."""
    for name in list(os.environ):
        if name.startswith("EVENTSYNC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(folder: Path) -> Cli:
    """Return the command line in a project of three stores."""
    (folder / "records.py").write_text(RECORDS, encoding="utf-8")
    (folder / "workers.py").write_text(STORES, encoding="utf-8")
    return Cli(folder)


@pytest.fixture
def bare(folder: Path) -> Cli:
    """Return the command line in an empty folder."""
    return Cli(folder)
