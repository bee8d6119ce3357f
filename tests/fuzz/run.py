"""Fuzz the parsers of outside input: ``python tests/fuzz/run.py --inputs 100000 --seed 1``."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from fuzz.mutation import Mutator  # noqa: E402  # the line above makes it importable
from fuzz.parser import Parser  # noqa: E402
from fuzz.parsers import PARSERS  # noqa: E402

from eventsync.errors import EventSyncError  # noqa: E402

LONGEST = 0.5
"""Seconds of processor time that one input may take."""
GROWTH = 256 * 1024 * 1024
"""Bytes by which the peak of the process's memory may exceed the one before the first input."""
_HANG = 30.0
CORPUS = Path(__file__).parent / "corpus"


class Hang(BaseException):
    """An input that took 30 seconds: the parser waits for something."""


def _hang(*_: Any) -> None:
    raise Hang


def attempt(parser: Parser, raw: bytes) -> tuple[str, float]:
    """Parse an input; return what happened, and the seconds of processor time.

    ``accepted``; ``refused`` with one of eventsync's errors; or what is wrong.
    """
    start = time.thread_time()
    try:
        parser.parse(raw)
        outcome = "accepted"
    except EventSyncError as error:
        str(error)
        outcome = "refused"
    except Hang:
        outcome = "hang"
    except Exception as error:
        outcome = f"{type(error).__name__} in {_place(error)}"
    taken = time.thread_time() - start
    return (f"slow: {outcome}" if taken > LONGEST and outcome != "hang" else outcome), taken


def peak() -> int:
    """Return the peak of this process's resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    parser: Parser, count: int, seed: int, *, keep: Path | None = None, until: float = float("inf")
) -> dict[str, Any]:
    """Fuzz one parser and return the counts. ``keep``: the folder for the inputs that fail."""
    mutator = Mutator(f"{parser.name}/{seed}")
    counts: Counter[str] = Counter()
    slowest, done, before = 0.0, 0, peak()
    previous = signal.signal(signal.SIGALRM, _hang)
    try:
        while done < count and time.monotonic() < until:
            raw = mutator.input(parser.samples, parser.form)
            signal.setitimer(signal.ITIMER_REAL, _HANG)
            outcome, taken = attempt(parser, raw)
            done += 1
            slowest = max(slowest, taken)
            counts[outcome] += 1
            if outcome not in ("accepted", "refused") and keep is not None and counts[outcome] <= 3:
                folder = keep / parser.name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    accepted, refused = counts.pop("accepted", 0), counts.pop("refused", 0)
    growth = peak() - before
    if growth > GROWTH:
        counts[f"memory grew by {growth} bytes"] += 1
    return {
        "inputs": done,
        "accepted": accepted,
        "refused": refused,
        "slowest": round(slowest, 4),
        "growth": growth,
        "wrong": dict(counts),
    }


def _place(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "?"
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_frame.f_code.co_name}"


def main() -> int:
    """Fuzz every parser, or one, and print the counts as JSON; return 1 if anything is wrong."""
    names = [parser.name for parser in PARSERS]
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=100_000, help="over all parsers")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="stop after this")
    arguments.add_argument("--parser", choices=names, help="only this parser")
    arguments.add_argument("--keep", type=Path, help="the folder for the inputs that fail")
    given = arguments.parse_args()
    chosen = [parser for parser in PARSERS if given.parser in (None, parser.name)]
    gc.collect()
    gc.freeze()  # as worker processes do
    weights = sum(parser.weight for parser in chosen)
    begin = time.monotonic()
    results = {}
    for number, parser in enumerate(chosen):
        left = begin + given.seconds - time.monotonic()
        until = time.monotonic() + left / (len(chosen) - number)
        count = max(1, round(given.inputs * parser.weight / weights))
        results[parser.name] = run(parser, count, given.seed, keep=given.keep, until=until)
        print(json.dumps({parser.name: results[parser.name]}), file=sys.stderr, flush=True)
    total = {
        "seed": given.seed,
        "inputs": sum(result["inputs"] for result in results.values()),
        "slowest": max(result["slowest"] for result in results.values()),
        "peak": peak(),
        "seconds": round(time.monotonic() - begin, 1),
        "wrong": sum(sum(result["wrong"].values()) for result in results.values()),
        "parsers": results,
    }
    print(json.dumps(total, indent=2))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
