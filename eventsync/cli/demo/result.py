"""The result of the demo, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eventsync.cli.demo.ledger import StoreTotals
from eventsync.cli.output import plural

__all__ = ["Result"]


@dataclass(slots=True)
class Result:
    """The result of the demo: what was published, what became of it, and what went wrong.

    ``published``: the number of published changes. ``stores``: the totals of each store, by name.
    ``kills``: how many workers were killed. ``in_hand``: how many messages the killed workers had
    taken and not settled. ``differing``: the number of differences between the stores. ``seconds``:
    how long the demo took. ``problems``: a text for each expectation that was not met.
    """

    folder: Path
    published: int = 0
    stores: dict[str, StoreTotals] = field(default_factory=dict)
    kills: int = 0
    in_hand: int = 0
    differing: int = 0
    dead_letters: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> int:
        """The number of dead letters that hold no change."""
        return sum(totals.foreign for totals in self.stores.values())

    def total(self, outcome: str) -> int:
        """Return how many changes had this outcome, summed over all stores."""
        return sum(totals.counts[outcome] for totals in self.stores.values())

    def summary(self) -> list[str]:
        """Return the result as sentences, each for one paragraph of output."""
        again = sum(totals.again for totals in self.stores.values())
        return [
            f"{self.published:,} changes published to {len(self.stores)} stores: "
            f"{self.total('applied'):,} applied, {self.total('superseded'):,} superseded, "
            f"{self.total('already there'):,} already there, "
            f"{self.dead_letters:,} dead-lettered (of these, {plural(self.foreign, 'message')} "
            f"held no change), {self.total('lost'):,} lost.",
            f"{plural(self.kills, 'worker')} killed with {plural(self.in_hand, 'message')} "
            f"in hand; {plural(again, 'change')} delivered more than once, without effect.",
            f"{sum(a.fields for a in self.stores.values()):,} fields of "
            f"{sum(a.records for a in self.stores.values()):,} records compared: "
            f"{self.differing:,} differing.",
            f"It took {self.seconds:.1f} seconds.",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the result as a dict for ``json.dumps``."""
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
            "stores": {name: asdict(totals) for name, totals in self.stores.items()},
            "problems": self.problems,
        }
