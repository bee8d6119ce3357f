"""All parsers of outside input."""

from __future__ import annotations

from fuzz import broker_parsers, database_parsers, record_parsers, store_parsers
from fuzz.parser import Parser

__all__ = ["PARSERS", "Parser"]

PARSERS = [
    *record_parsers.PARSERS,
    *broker_parsers.PARSERS,
    *store_parsers.PARSERS,
    *database_parsers.PARSERS,
]
