"""The two journeys of docs/architecture.md, traced: which modules a change passes through.

Run ``python tests/project/journey.py`` to see them, with ``--write`` to put them into the page.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = f"{ROOT / 'eventsync'}/"


@dataclass
class Journey:
    """The modules that a call visits, in the order of first visits, and how often it returns.

    From the first visit of ``first``, if given, to the first visit of ``last``.
    """

    first: str = ""
    last: str = ""
    modules: list[str] = field(default_factory=list)
    returns: int = 0
    _now: str = ""
    _over: bool = False

    def visit(self, frame: FrameType, event: str, argument: object) -> None:
        """Note the module of a called function. A profile function."""
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(PACKAGE):
            return
        name = name.removeprefix(PACKAGE).removesuffix(".py")
        if name == self._now or self._over or not (self.modules or name == (self.first or name)):
            return
        self._now = name
        self._over = name == self.last
        if name in self.modules:
            self.returns += 1
        else:
            self.modules.append(name)

    def text(self) -> str:
        """Return the journey as a Markdown list item."""
        path = " → ".join(f"`{name}`" for name in self.modules)
        return (
            f"{path}\n\n{len(self.modules)} modules, {self.returns} returns to one visited before."
        )


def traced(call: Callable[[], object], first: str = "", last: str = "") -> Journey:
    """Trace one call."""
    journey = Journey(first, last)
    sys.setprofile(journey.visit)
    try:
        call()
    finally:
        sys.setprofile(None)
    return journey


def journeys(folder: Path) -> dict[str, Journey]:
    """Trace ``Store.add`` until the message is on the queue, and a message until it is a row.

    Both in SQL and through the embedded broker, each after the same was done once before. The
    second begins with the fetched message and ends with its acknowledgement.
    """
    import structlog

    from eventsync import Bus, Field, Record, Store, Worker
    from eventsync.stores.sql import SqlAccessor

    class Product(Record):
        id: int = Field(key=True)
        name: str = Field(length=80)

    def opened(name: str, **options: Any) -> Store:
        accessor = SqlAccessor(Product, f"sqlite:///{folder / name}.db", create=True)
        store = Store(name, accessor, **options).open()
        bus.declare(name, store.accessors)
        return store

    quiet = structlog.wrap_logger(structlog.ReturnLogger(), processors=[lambda *event: ""])
    bus = Bus(f"sqlite:///{folder / 'broker.db'}")
    with bus, opened("shop", publisher=bus) as shop, opened("sheet") as sheet:
        worker = Worker(sheet, bus, log=quiet)
        shop.add(Product(id=1, name="Lamp"))
        worker.drain()
        chair = Product(id=2, name="Chair")
        return {
            "edit": traced(lambda: shop.add(chair)),
            "message": traced(worker.drain, "worker/settlement", "transports/leased/qos"),
        }


def put(page: str, found: dict[str, Journey]) -> str:
    """Return the page with the journeys between its markers."""
    for name, journey in found.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{journey.text()}\n{end}{after}"
    return page


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        found = journeys(Path(name))
    if "--write" in sys.argv:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        for title, journey in found.items():
            print(f"{title}:\n{journey.text()}\n")
