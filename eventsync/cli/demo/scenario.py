"""The scenario of the demo: its steps in order, and the expectations that it checks."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from eventsync.cli.demo.ledger import captured_in, totals_of, versions_in
from eventsync.cli.demo.process import HOLD_FOR, WorkerProcess, read_log
from eventsync.cli.demo.result import Result
from eventsync.cli.demo.stage import Stage
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import plural
from eventsync.cli.project import write_files
from eventsync.cli.record_files import Format, read_lines
from eventsync.engine.store import Store
from eventsync.errors import EventSyncError
from eventsync.records.record import Record
from eventsync.verify import compare

__all__ = ["Narrator", "Result", "play"]

_KINDS = {
    "SqlAccessor": "SQLite database",
    "CsvAccessor": "CSV file",
    "JsonFolderAccessor": "JSON documents",
}
_SHELF_ROUNDS = 12
_BOTH_EDIT = range(21, 51)  # scandium to tin


class Narrator(Protocol):
    """The interface to which the scenario reports its steps while it runs."""

    def chapter(self, title: str) -> None:
        """Print the title of the next part."""

    def line(self, text: str, *, colour: str | None = None) -> None:
        """Print one step."""


def play(folder: Path, narrator: Narrator) -> Result:
    """Play the whole scenario in the empty folder ``folder``, and return the result. Blocks.

    Changes the working directory to the folder until the end. ``narrator``: gets a text for each
    step. Raises ``EventSyncError`` if the stores do not reach an expected state in time.
    """
    started = time.monotonic()
    write_files(files("eventsync.cli.demo").joinpath("folder"), folder)
    broker = f"sqlite:///{folder / 'eventsync-broker.db'}"
    with (
        contextlib.chdir(folder),
        Deployment(app="workers:registry", broker=broker) as deployment,
    ):
        stage = Stage(deployment, folder, broker)
        scenario = _Scenario(stage, narrator, Result(folder))
        try:
            scenario.play()
        finally:
            stage.stop_workers()
        scenario.result.seconds = time.monotonic() - started
        return scenario.result


class _Scenario:
    """The scenario: one method for each step, and methods for the edits in these steps."""

    def __init__(self, stage: Stage, narrator: Narrator, result: Result) -> None:
        self.stage = stage
        self.registry = stage.registry
        self.tell = narrator
        self.result = result
        self.element: type[Record] = stage.registry.record_types["Element"]
        self.edited: list[str] = []
        self.moves = 0

    def play(self) -> None:
        self.begin()
        self.load()
        self.edit_everywhere()
        self.kill_a_worker()
        self.edit_dead_letter()
        self.foreign_write()
        self.compare()

    # -- steps -------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.tell.chapter("Three stores, each with a queue and a worker")
        self.stage.start_workers()
        for store in self.registry:
            view = store.accessor("Element").view
            kind = _KINDS[type(store.accessor("Element")).__name__]
            fields = f"{len(view.fields)} of {len(self.element.__record__.fields)} fields"
            where = ", stable elements only" if view.where is not None else ""
            pid = self.stage.workers[store.name].pid
            self.tell.line(f"{store.name:10} {kind:15} {fields}{where}; worker is process {pid}")

    def load(self) -> None:
        self.tell.chapter("The chemical elements are written to one store; the others follow")
        with open("elements.csv", "rb") as stream:
            lines = list(read_lines(stream, Format.CSV, self.element, partial=True))
        elements = [line.record for line in lines if line.record is not None]
        wrong = [line.error for line in lines if line.record is None]
        if wrong:
            raise EventSyncError(f"elements.csv: {wrong[0]}")
        elements.append(
            self.made(number=1000, symbol="Di", name="Didymium", remark="an element until 1885")
        )
        lab = self.registry["lab"]
        for start in range(0, len(elements), 40):
            lab.update(elements[start : start + 40], upsert=True)
        self.tell.line(f"lab: {plural(len(elements), 'record')} written and published")
        self.stage.await_quiet()
        counts = [f"{s.name} {s.count(self.element)}" for s in self.registry]
        self.tell.line(f"all queues are empty; records: {', '.join(counts)}", colour="green")

    def edit_everywhere(self) -> None:
        self.tell.chapter("All workers are stopped, and all three stores are edited at once")
        self.stage.stop_workers()
        lab, stockroom, site = (self.registry[name] for name in ("lab", "stockroom", "site"))
        elements = list(lab.find(self.element))
        for _ in range(_SHELF_ROUNDS):
            self.move_shelves()
        self.tell.line(
            f"lab: moves all {len(elements)} elements to another shelf, {_SHELF_ROUNDS} times"
        )
        both = [element for element in elements if element["number"] in _BOTH_EDIT]
        half = len(both) // 2
        self.weigh(lab, both[:half], Decimal("100"))
        self.weigh(stockroom, both, Decimal("12.5"))
        self.weigh(lab, both[half:], Decimal("200"))
        self.tell.line(
            f"lab and stockroom: both weigh {len(both)} elements at the same time; "
            "the later weight has to win in all stores"
        )
        stable = [element for element in site.find(self.element) if element["number"] <= 50]
        for element in stable:
            element["remark"] = f"shown since {2000 + element['number']}"
        site.update(stable)
        self.tell.line(
            f"site: writes a remark on {len(stable)} elements; the remarks have to survive the "
            "edits of other fields"
        )
        self.edit_one(lab, 83, radioactive=True)
        self.tell.line(
            "lab: bismuth is radioactive after all (found in 2003); it has to disappear from the "
            "site"
        )
        self.edit_one(stockroom, 1000, grams=Decimal(3))
        lab.remove(lab[self.element, 1000])
        self.tell.line("stockroom: weighs didymium, which is not an element; lab: deletes it")
        old = list(self.stage.publisher.envelopes.values())[:40]
        self.stage.bus.publish("Element", old)
        self.tell.line(f"broker: delivers {len(old)} old changes again, out of order")
        stockroom.add(self.made(number=119, symbol="U", name="Ununennium", mass=Decimal(315)))
        self.tell.line(
            "stockroom: adds element 119 with the symbol of uranium, which lab holds and, after "
            f"{HOLD_FOR:g} s, refuses"
        )
        self.stage.bus.send_to("lab", [b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n"])
        self.tell.line("a stranger: sends bytes to lab that are not a change")
        self.tell.line(f"waiting now: {self.stage.waiting()}")

    def kill_a_worker(self) -> None:
        self.tell.chapter("The workers start again, and one is killed while it is busy")
        # This worker takes one message at a time, so that many messages wait when it is killed.
        self.stage.start_workers(site={"prefetch": "1", "batch": "1"})
        victim = self.stage.workers["site"]
        self.stage.await_that(
            lambda: self.caught_busy(victim), "the worker of site is busy", every=0.005
        )
        state = self.stage.bus.states("site")["queue"]
        victim.kill()
        self.result.kills += 1
        self.result.in_hand += state.leased or 0
        self.tell.line(
            f"site: SIGKILL for process {victim.pid}, {plural(state.leased or 0, 'message')} "
            f"in hand and {state.ready} more waiting",
            colour="red",
        )
        self.stage.start_workers("site")
        self.tell.line(f"site: process {self.stage.workers['site'].pid} takes over")
        self.stage.await_quiet()
        self.tell.line("all queues are empty", colour="green")

    def caught_busy(self, victim: WorkerProcess) -> bool:
        """Freeze the worker if it is half-way through its work, and return whether it is.

        If the queue of the worker is empty, make edits that give it more work.
        """
        if self.stage.frozen_half_way(victim, _SHELF_ROUNDS):
            return True
        if not self.stage.bus.states(victim.store)["queue"].ready:
            self.move_shelves()
        return False

    def edit_dead_letter(self) -> None:
        self.tell.chapter("What could not be applied is explained and corrected")
        letters = self.stage.run_json("dlq", "list", "lab")
        for letter in letters:
            about = f"{letter['type']} {letter['key']}" if letter["type"] else "not a change"
            self.tell.line(
                f"dead letter {letter['id'][-8:]}: {about}: {letter['message']}", colour="yellow"
            )
        refused = [letter for letter in letters if letter["key"] == "119"]
        for letter in refused:
            arguments = ["dlq", "edit", "lab", "--id", letter["id"][-8:], "--set", "symbol=Uue"]
            self.tell.line(f"$ eventsync {' '.join(arguments)}")
            self.edited.append(self.stage.run_json(*arguments)["version"])
        self.stage.await_quiet()
        found = {s.name: s.get(self.element, 119) for s in self.registry}
        symbols = [f"{name} {held['symbol']}" for name, held in found.items() if held is not None]
        self.tell.line(f"element 119 is now: {', '.join(symbols)}", colour="green")

    def foreign_write(self) -> None:
        self.tell.chapter("Somebody edits a file by hand")
        document = self.document(79)
        content = json.loads(document.read_text(encoding="utf-8"))
        content["remark"] = "Au, from aurum"
        document.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        self.tell.line(f"{document}: a new remark on gold, written with an editor")
        lab = self.registry["lab"]
        self.stage.await_that(
            lambda: lab[self.element, 79]["remark"] == content["remark"], "the edit is in lab"
        )
        self.stage.await_quiet()
        self.tell.line("lab: the remark is there", colour="green")

    def compare(self) -> None:
        self.tell.chapter("All stores are compared, field by field")
        self.stage.stop_workers()
        comparison = compare(self.registry)
        result = self.result
        logs = {store.name: list(read_log(self.workers_log(store.name))) for store in self.registry}
        published = {*self.stage.publisher.envelopes, *self.edited}
        captured = sum(captured_in(events) for events in logs.values())
        unknown = set().union(*(versions_in(events) for events in logs.values())) - published
        if len(unknown) != captured:
            result.problems.append(
                f"{len(unknown)} changes applied that the demo did not publish, {captured} captured"
            )
        # The changes that a worker captured are published too.
        published |= unknown
        result.published = len(published)
        for name, events in logs.items():
            totals = totals_of(events, published)
            for counts in comparison.stores[name].values():
                totals.records += counts.records
                totals.fields += counts.fields
                totals.differing += counts.differing + counts.missing + counts.extra
            result.stores[name] = totals
        result.differing = comparison.total
        result.dead_letters = result.total("dead-lettered") + result.foreign
        result.problems += self.stage.failed
        self.check(captured)
        for difference in comparison.differences[:5]:
            self.tell.line(f"{difference}", colour="red")

    def check(self, captured: int) -> None:
        """Add a problem to the result for each expectation that is not met.

        ``captured``: how many foreign writes the workers have captured.
        """
        result = self.result
        expectations = [
            (not result.differing, f"{result.differing} differences between the stores"),
            (not result.total("lost"), f"{result.total('lost')} changes lost"),
            (captured == 1, f"{captured} foreign writes captured, not 1"),
            (result.dead_letters == 2, f"{result.dead_letters} dead letters, not 2"),
            (len(self.edited) == 1, f"{len(self.edited)} dead letters edited, not 1"),
            (result.total("superseded") > 0, "no change was superseded"),
            (result.in_hand > 0, "the worker that was killed had nothing in hand"),
        ]
        result.problems += [problem for met, problem in expectations if not met]

    # -- edits -------------------------------------------------------------------------------------

    def made(self, **values: Any) -> Record:
        return self.element.load({"mass": 0, **values}, partial=True)

    def move_shelves(self) -> None:
        """Move every element in the store ``lab`` to another shelf."""
        self.moves += 1
        elements = list(self.registry["lab"].find(self.element))
        for element in elements:
            element["shelf"] = f"S{(element['number'] + self.moves) % 20}"
        self.registry["lab"].update(elements)

    def weigh(self, store: Store, elements: Sequence[Record], grams: Decimal) -> None:
        keys = [element["number"] for element in elements]
        own = list(store.find(self.element, {"number": {"$in": keys}}))
        for element in own:
            element["grams"] = grams
        store.update(own)

    def edit_one(self, store: Store, number: int, **values: Any) -> None:
        element = store[self.element, number]
        for name, held in values.items():
            element[name] = held
        store.update(element)

    def workers_log(self, store: str) -> Path:
        return Path("logs", f"{store}.log")

    def document(self, number: int) -> Path:
        (found,) = Path("site").glob(f"{number}.json")
        return found
