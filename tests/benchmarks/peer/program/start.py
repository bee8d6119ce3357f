"""How a program says that it is ready, and one that publishes is told when to begin."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["ready", "rows"]


def ready() -> None:
    """Say it, wherever a framework has taken the output."""
    print("ready", file=sys.__stdout__, flush=True)


def rows() -> Iterator[dict[str, Any]]:
    """The rows of the file that the program was given, once it is told to go on."""
    with open(sys.argv[-1], "rb") as file:
        loaded = pickle.load(file)
    ready()
    sys.stdin.readline()
    yield from loaded
