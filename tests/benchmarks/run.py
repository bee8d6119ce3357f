"""All benchmarks of eventsync by one command, each figure beside its raw limit.

    python tests/benchmarks/run.py                       all but soak and peers
    python tests/benchmarks/run.py --only latency --quick
    python tests/benchmarks/run.py --only soak --minutes 20 --json soak.json
    python tests/benchmarks/run.py --only backlog --sizes 100000 1000000 5000000
    python tests/benchmarks/run.py --read all.json soak.json --docs

Servers are the run's own. Use the ratios: the rest depends on the machine. --quick does as little
as shows that it works; its figures say nothing. What each measures and how it is to be read is in
docs/benchmarks.md, and at the head of each module beside this one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import plot, table
from benchmarks.measurement import MEASUREMENTS, USUAL, measurement

__all__ = ["main", "put", "rendered"]

_DOCS = Path(__file__).parents[2] / "docs"

Measured = dict[str, dict[str, Any]]
"""By the name of a measurement: its rows, on which machine they were found, and how long it took.
"""


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Do one measurement."""
    module = measurement(name)
    scale = module.QUICK if options.quick else module.Scale()
    if name == "soak" and options.minutes:
        scale = replace(scale, minutes=options.minutes)
    if name == "backlog" and options.sizes:
        scale = replace(scale, sizes=options.sizes)

    def tell(row: dict[str, Any]) -> None:
        parts = (f"{one.title}: {one.shown(row)}" for one in module.COLUMNS)
        print(f"{name}  {'; '.join(parts)}", file=sys.stderr, flush=True)

    began = time.monotonic()
    rows = module.measure(tell, scale)
    return {
        "rows": rows,
        "quick": options.quick,
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
    }


def machine() -> str:
    """What it was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{dt.date.today():%Y-%m-%d}, {os.cpu_count()} cores, {memory:.0f} GiB of memory,"
        f" {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def shown(found: Measured) -> str:
    """The tables for a terminal."""
    parts = []
    for name, one in found.items():
        columns = measurement(name).COLUMNS
        parts.append(f"{name} ({one['machine']}; {one['seconds']} s)")
        parts.append(table.text(columns, one["rows"]) + "\n")
    return "\n".join(parts)


def rendered(name: str, one: dict[str, Any]) -> str:
    """A table for the documentation, what it was measured on, and the picture."""
    module = measurement(name)
    quick = " With --quick: these figures say nothing." if one["quick"] else ""
    told = f"Measured {one['machine']}; it took {one['seconds']:,} s.{quick}"
    parts = [table.markdown(module.COLUMNS, one["rows"]), told]
    titles = [panel.title for panel in module.panels(one["rows"])]
    if titles:
        parts.append(f"![{'; '.join(titles)}](benchmarks/{name}.svg)")
    return "\n\n".join(parts)


def put(page: str, name: str, text: str) -> str:
    """A page with ``text`` between its marks of that name. Raises ``ValueError`` without them."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no marks of {name!r}")
    return f"{before}{begin}{text}\n{end}{after}"


def draw(found: Measured, folder: Path) -> None:
    """Write a picture of each measurement that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in found.items():
        panels = measurement(name).panels(one["rows"])
        if panels:
            (folder / f"{name}.svg").write_text(plot.svg(panels), encoding="utf-8")


def write_docs(found: Measured) -> None:
    """Put tables and pictures into the documentation; those of other measurements stay."""
    path = _DOCS / "benchmarks.md"
    page = path.read_text(encoding="utf-8")
    for name, one in found.items():
        page = put(page, name, rendered(name, one))
    path.write_text(page, encoding="utf-8")
    draw(found, _DOCS / "benchmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read what was measured, and show it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=USUAL)
    parser.add_argument("--quick", action="store_true", help="little, to see whether it works")
    parser.add_argument("--minutes", type=float, help="of soak; 20 if not said")
    parser.add_argument("--sizes", type=int, nargs="+", help="of backlog, in events")
    parser.add_argument("--read", type=Path, nargs="+", help="results, instead of measuring")
    parser.add_argument("--json", type=Path, help="a file for the results")
    parser.add_argument("--plots", type=Path, help="a folder for pictures")
    parser.add_argument("--docs", action="store_true", help="put them into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    found: Measured = {}
    for path in options.read or ():
        try:
            found |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--read {path}: {error}; it takes what --json has written")
    for name in () if options.read else options.only:
        found[name] = measured(name, options)
        if options.json:  # after each, so that what ends in the middle leaves what it has found
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(shown(found))
    if options.plots:
        draw(found, options.plots)
    if options.docs:
        write_docs(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
