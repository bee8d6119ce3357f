"""How the demo ended: its numbers, for people and for scripts.

It must not know how they came about.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eventsync.cli.demo.ledger import Account
from eventsync.cli.output import plural

__all__ = ["Result"]


@dataclass(slots=True)
class Result:
    """How it ended. ``published``: how many changes; ``problems``: what should not be so."""

    folder: Path
    published: int = 0
    stores: dict[str, Account] = field(default_factory=dict)
    kills: int = 0
    in_hand: int = 0
    differing: int = 0
    dead_letters: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> int:
        """How many dead letters are no change."""
        return sum(account.foreign for account in self.stores.values())

    def total(self, word: str) -> int:
        """How many changes came to this at all stores together."""
        return sum(account.counts[word] for account in self.stores.values())

    def summary(self) -> list[str]:
        """The numbers in a few lines."""
        again = sum(account.again for account in self.stores.values())
        return [
            f"{self.published:,} changes published to {len(self.stores)} stores: "
            f"{self.total('applied'):,} applied, {self.total('superseded'):,} superseded, "
            f"{self.total('already there'):,} already there, "
            f"{self.dead_letters:,} dead-lettered ({plural(self.foreign, 'message')} of them no "
            f"change at all), {self.total('lost'):,} lost.",
            f"{plural(self.kills, 'worker')} killed, {plural(self.in_hand, 'message')} in hand; "
            f"{plural(again, 'change')} came more than once, which changed nothing.",
            f"{sum(a.fields for a in self.stores.values()):,} fields of "
            f"{sum(a.records for a in self.stores.values()):,} records compared: "
            f"{self.differing:,} differing.",
            f"It took {self.seconds:.1f} seconds.",
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it, for a script."""
        return {
            "folder": str(self.folder),
            "published": self.published,
            **{
                word.replace(" ", "_").replace("-", "_"): self.total(word)
                for word in ("applied", "superseded", "already there", "lost")
            },
            "dead_lettered": self.dead_letters,
            "differing": self.differing,
            "kills": self.kills,
            "messages_in_hand_when_killed": self.in_hand,
            "seconds": round(self.seconds, 1),
            "stores": {name: asdict(account) for name, account in self.stores.items()},
            "problems": self.problems,
        }
