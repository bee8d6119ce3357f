"""How long it takes to import eventsync and to start its command line, and what that loads.

Run it from the project's root: ``python tests/benchmarks/start.py``. Each is started several times
in a process of its own; the least processor time counts, which other programs disturb least. That
of the bare interpreter is not in it: it stands beside what is imported. Beside the command line
stands the help of a program of one command that does nothing, by the same libraries.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("way", "what"),
    Column("cpu_ms", "processor time, ms", 1),
    Column("modules", "modules loaded"),
    Column("raw", "raw"),
    Column("raw_ms", "raw, ms", 1),
    Column("ratio", "ratio", 2),
)
_HELP = """
import sys
sys.argv[1:] = {arguments!r}
from eventsync.cli import main
try:
    main()
except SystemExit:
    pass
"""
_TYPER = """
import sys
sys.argv[1:] = ["--help"]
import typer
def nothing(name: str = "") -> None: "Does nothing."
try:
    typer.run(nothing)
except SystemExit:
    pass
"""
_WAYS = {
    "import eventsync": "import eventsync",
    "from eventsync import Record, Store, View": "from eventsync import Record, Store, View",
    "from eventsync import Bus, Worker": "from eventsync import Bus, Worker",
    "eventsync --help": _HELP.format(arguments=["--help"]),
    "eventsync find --help": _HELP.format(arguments=["find", "--help"]),
}
_SCRIPT = """
import sys, time
modules, began = len(sys.modules), time.process_time()
{code}
print(began, time.process_time() - began, len(sys.modules) - modules, file=sys.stderr)
"""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How often each is started."""

    repeat: int = 10


QUICK = Scale(repeat=2)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each way to begin; tells each when it is known."""
    interpreter, _, _ = _started("", scale.repeat)
    _, bare_help, _ = _started(_TYPER, scale.repeat)
    found = []
    for way, code in _WAYS.items():
        _, spent, modules = _started(code, scale.repeat)
        helps = way.endswith("--help")
        raw = bare_help if helps else interpreter
        found.append(
            {
                "way": way,
                "cpu_ms": round(spent * 1000, 1),
                "modules": modules,
                "raw": "Typer's own help" if helps else "the interpreter's own start",
                "raw_ms": round(raw * 1000, 1),
                "ratio": round(spent / raw, 2),
            }
        )
        tell(found[-1])
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    groups = {row["way"]: {"eventsync": row["cpu_ms"], "raw": row["raw_ms"]} for row in rows}
    return [Bars("milliseconds of processor time", groups)]


def _started(code: str, repeat: int) -> tuple[float, float, int]:
    """The least processor time of the interpreter before the code, and of the code, in seconds;
    how many modules that loads."""
    runs = []
    for _ in range(repeat):
        script = _SCRIPT.format(code=code)
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        before, spent, modules = ran.stderr.split()[-3:]
        runs.append((float(before), float(spent), int(modules)))
    before, spent, modules = (min(column) for column in zip(*runs, strict=True))
    return before, spent, int(modules)


if __name__ == "__main__":
    print(table.text(COLUMNS, measure(lambda row: None)))
