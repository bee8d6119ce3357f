"""The topic exchange of the leased transports: kombu's, with patterns matched in linear time.

kombu makes a regular expression of the routing key of a binding, and ``#.#.#.#`` then takes time
that grows with a power of the length of a routing key. Anybody who may declare a binding could stop
all publishers.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import virtual

__all__ = ["TopicExchange"]

_kombu: Any = virtual.exchange


class TopicExchange(_kombu.TopicExchange):  # type: ignore[misc]  # kombu ships no types
    """Routes by words separated by dots: ``*`` stands for one word, ``#`` for one or more."""

    def key_to_pattern(self, rkey: str) -> str:
        return rkey

    def _match(self, pattern: str, string: str) -> bool:
        words = string.split(".")
        # How many words the parts of the pattern so far may stand for.
        ends = {0}
        for part in pattern.split("."):
            if part == "#":
                ends = set(range(min(ends) + 1, len(words) + 1))
            else:
                ends = {
                    end + 1
                    for end in ends
                    if end < len(words) and (words[end] == part or (part == "*" and words[end]))
                }
            if not ends:
                return False
        return len(words) in ends
