"""What describes one parser of outside input to the fuzz run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Parser:
    """One parser of outside input.

    ``parse``: parses an input; may raise one of eventsync's errors, and nothing else. ``samples``:
    valid inputs. ``form``: ``bytes``, ``json`` or ``msgpack``, that of the samples. ``weight``: the
    share of the inputs; less for a slow one.
    """

    name: str
    parse: Callable[[bytes], object]
    samples: list[bytes]
    form: str = "bytes"
    weight: float = 1.0
