"""How long it takes to import eventsync and to start its command line, and what that loads.

Run it from the project's root: ``python tests/benchmarks/start.py``. Each is started several times
in a process of its own; the least processor time counts, which other programs disturb least. That
of the bare interpreter is not in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

HELP = """
import sys
sys.argv[1:] = {arguments!r}
from eventsync.cli import main
try:
    main()
except SystemExit:
    pass
"""
WAYS = {
    "import eventsync": "import eventsync",
    "from eventsync import Record, Store, View": "from eventsync import Record, Store, View",
    "from eventsync import Bus, Worker": "from eventsync import Bus, Worker",
    "eventsync --help": HELP.format(arguments=["--help"]),
    "eventsync find --help": HELP.format(arguments=["find", "--help"]),
}
SCRIPT = """
import sys, time
modules, began = len(sys.modules), time.process_time()
{code}
print(time.process_time() - began, len(sys.modules) - modules, file=sys.stderr)
"""


def measured(code: str, repeat: int) -> tuple[float, int]:
    """The least processor time in seconds, and how many modules are loaded."""
    runs = []
    for _ in range(repeat):
        script = SCRIPT.format(code=code)
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        spent, modules = ran.stderr.split()[-2:]
        runs.append((float(spent), int(modules)))
    return min(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    for name, code in WAYS.items():
        seconds, modules = measured(code, repeat)
        print(f"{name:45} {seconds * 1000:5.0f} ms  {modules:4} modules")


if __name__ == "__main__":
    main()
