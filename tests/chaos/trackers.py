"""A tracker, PostgreSQL and a folder of documents in sync, edited on all sides, workers killed.

Run it from the project's root, for example::

    python tests/chaos/trackers.py --silence 60 --kills 10 --seed 3

It starts a Roundup tracker and a PostgreSQL server of its own, which have to be installed, and four
workers: two of the tracker, and one of each other store. People open issues, comment, rename and
write in the tracker, in the database and in the documents, all at once, while workers are killed
with SIGKILL and replaced. When all is settled nobody does anything for a while, and the requests
that the tracker gets then are counted. It prints a report, and exits with 1 if the stores differ,
an issue is there twice, a record is a dead letter, or anything was written in the silence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import psycopg
import structlog
from servers.postgres import PostgresServer
from servers.roundup import RoundupServer
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.identity import IdentityMap
from eventsync.stores.sql import SqlAccessor
from eventsync.stores.trackers import Account, Comment, Issue
from eventsync.stores.trackers.roundup import (
    RoundupAccounts,
    RoundupComments,
    RoundupIssues,
    RoundupService,
)
from eventsync.verify import compare
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

_context = multiprocessing.get_context("forkserver")
_TYPES = (Account, Issue, Comment)
_CREW = ("tracker", "tracker", "database", "documents")


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    edits: dict[str, int] = field(default_factory=dict)
    """How many were made where."""
    kills: int = 0
    issues: int = 0
    comments: int = 0
    found: dict[str, int] = field(default_factory=dict)
    """How many issues and comments each store has in the end."""
    duplicates: list[str] = field(default_factory=list)
    """Titles that more than one issue of the tracker has."""
    differing: list[str] = field(default_factory=list)
    dead_letters: int = 0
    silence: float = 0.0
    reads_in_silence: int = 0
    writes_in_silence: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Each edit is everywhere, once, and led to nothing else."""
        expected = {"issues": self.issues, "comments": self.comments}
        wrong = [name for name, n in self.found.items() if n != expected[name.split(".")[1]]]
        refuted = self.differing or self.duplicates or self.dead_letters or self.writes_in_silence
        return not wrong and not refuted and self.reads_in_silence > 0


@dataclass(frozen=True)
class Places:
    """Where everything is, for each process to open it by itself."""

    folder: Path
    tracker: str
    database: str

    def store(self, name: str) -> Store:
        """One of the three stores."""
        often = {"capture_every": 0.3, "capture_whole_every": 1.0}
        if name == "database":
            tables = [SqlAccessor(t, self.database, create=True) for t in _TYPES]
            return Store(name, *tables, **often)
        if name == "documents":
            folders = [JsonFolderAccessor(t, self.folder / t.__record__.name) for t in _TYPES]
            return Store(name, *folders, index=self.folder / "documents.versions.db", **often)
        service = RoundupService(self.tracker, "admin", "secret", allow=["127.0.0.1"])
        identity = IdentityMap(self.folder / "ids.db", name="tracker")
        return Store(
            name,
            RoundupAccounts(Account, service),
            RoundupIssues(Issue, service, identity=identity),
            RoundupComments(Comment, service, identity=identity),
            index=self.folder / "tracker.versions.db",
            **often,
        )

    def bus(self) -> Bus:
        """The embedded broker."""
        return Bus(f"sqlite:///{self.folder}/broker.db", lease=5.0)


def work(places: Places, name: str) -> None:
    """What a worker process does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with places.bus() as bus:
        peers = [places.store(other) for other in set(_CREW) if other != name]
        worker = Worker(places.store(name), bus, options=Options(batch=20, prefetch=4), peers=peers)
        run(worker, grace=5.0)


class Crew:
    """Worker processes, which may be killed and are replaced."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.workers = [self._started(name) for name in _CREW]

    def _started(self, name: str) -> Any:
        process = _context.Process(target=work, args=(self._places, name), name=name, daemon=True)
        process.start()
        return process

    def kill_one(self, rng: random.Random) -> None:
        """Kill one of them, and start another in its place."""
        place = rng.randrange(len(self.workers))
        process = self.workers[place]
        process.kill()
        process.join()
        self.workers[place] = self._started(process.name)

    def stop(self) -> None:
        """Ask all to end, and wait for that."""
        for process in self.workers:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        for process in self.workers:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()


class People:
    """Those who edit, in all three places, and know what they have made."""

    def __init__(
        self, rng: random.Random, places: Places, server: RoundupServer, database: Store
    ) -> None:
        self._rng, self._places = rng, places
        self._server, self._database = server, database
        self._theirs: list[str] = []
        self.issues = self.comments = 0
        self.edits: Counter[str] = Counter()

    def edit(self, step: int) -> None:
        """What they do at one moment."""
        issue = Issue(id=f"K{step}", title=f"issue {step}", labels=["a", f"l{step % 3}"])
        self._database.add(issue)
        self.issues += 1
        self.edits["database"] += 1
        if step % 2:
            self._database.add(Comment(id=f"C{step}", issue=issue.key, body=f"said {step}"))
            self.comments += 1
            self.edits["database"] += 1
        if step % 3 == 0:
            self._open(f"theirs {step}")
        if step % 4 == 0 and self._theirs:
            self._change(self._rng.choice(self._theirs), title=f"renamed {step}")
        if step % 6 == 2 and self._theirs:
            said = {"content": f"theirs said {step}", "author": "admin"}
            message = self._server.ask("POST", "/data/msg", said)["id"]
            # The first message of an issue is its description, so it is said where one is.
            add = {"@op": "add", "messages": [message]}
            self._change(self._rng.choice(self._theirs), **add)
            self.comments += 1
        if step % 4 == 1:
            self._write_a_document(step)
        if step % 4 == 3:
            self._write_a_row(step)
        if step % 5 == 0:
            record = self._database.get(Issue, "K1")
            if record is not None:
                record.priority = self._rng.choice(["bug", "wish"])
                self._database.update(record)
                self.edits["database"] += 1

    def remove_one(self) -> None:
        """Somebody deletes an issue of the database, which nobody has commented on."""
        self._database.remove(self._database[Issue, "K2"])
        self.issues -= 1
        self.edits["database"] += 1

    def _open(self, title: str) -> None:
        text = {"content": f"about {title}", "author": "admin"}
        message = self._server.ask("POST", "/data/msg", text)["id"]
        body = {"title": title, "status": "unread", "messages": [message]}
        self._theirs.append(self._server.ask("POST", "/data/issue", body)["id"])
        self.issues += 1
        self.edits["tracker"] += 1

    def _change(self, id: str, **properties: Any) -> None:
        """Change an issue in the tracker, again if a worker changes it at the same moment."""
        for _ in range(50):
            with contextlib.suppress(OSError):  # 412
                self._server.change(f"issue/{id}", **properties)
                self.edits["tracker"] += 1
                return
        raise RuntimeError(f"issue {id} of the tracker cannot be changed")

    def _write_a_document(self, step: int) -> None:
        """Save a document as an editor does."""
        documents = self._places.folder / "Issue"
        eventually(lambda: any(documents.glob("*.json")), what="there are documents")
        path = self._rng.choice(sorted(documents.glob("*.json")))
        members = json.loads(path.read_text(encoding="utf-8"))
        new = path.with_name(".editor.swp")
        new.write_text(json.dumps(members | {"description": f"written {step}"}), encoding="utf-8")
        new.replace(path)
        self.edits["documents"] += 1

    def _write_a_row(self, step: int) -> None:
        """Somebody who does not know of eventsync writes into the database."""
        url = self._places.database.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                """UPDATE "Issue" SET status = 'closed', description = %s WHERE id = %s""",
                [f"closed {step}", f"K{self._rng.randrange(step)}"],
            )
        self.edits["rows"] += 1


def requests(server: RoundupServer, *methods: str) -> int:
    """How many requests of these methods the tracker has had."""
    log = (server.folder / "server.log").read_text(errors="replace")
    return sum(log.count(f'"{method} ') for method in methods)


class Harness:
    """One run, in a folder of its own."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rng = random.Random(options.seed)
        self.report = Report(seed=options.seed, silence=options.silence)

    def run(self) -> Report:
        """Edit and kill, let it settle, be silent, and compare."""
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(RoundupServer())
            database = stack.enter_context(PostgresServer())
            places = Places(self.folder, server.url, database.url)
            bus = stack.enter_context(places.bus())
            stores = [places.store(name) for name in dict.fromkeys(_CREW)]
            registry = StoreRegistry(*stores)
            for store in stores:
                bus.declare(store.name, store.accessors)
                stack.enter_context(store)
            registry["database"].publisher = bus
            crew = Crew(places)
            stack.callback(crew.stop)
            people = People(self.rng, places, server, registry["database"])
            self._disturb(people, crew)
            for _ in range(2):
                self._settle(registry, bus)
                time.sleep(1.5)  # what was captured last is then on its way
            self._be_silent(server)
            self._compare(registry, bus, server, people)
        self.report.seconds = round(time.monotonic() - begun, 1)
        return self.report

    def _disturb(self, people: People, crew: Crew) -> None:
        """Edits and kills, evenly mixed."""
        edits, kills = self.options.edits, self.options.kills
        for step in range(max(edits, kills)):
            if step < edits:
                people.edit(step)
            if (step + 1) * kills // max(edits, kills) > self.report.kills:
                crew.kill_one(self.rng)
                self.report.kills += 1
            time.sleep(0.35)
        people.remove_one()

    def _settle(self, registry: StoreRegistry, bus: Bus) -> None:
        """Wait until nothing is on its way and all are alike, or for too long."""

        def settled() -> bool:
            for store in registry:
                states = bus.states(store.name)
                if any(queue.ready or queue.leased for queue in states.values()):
                    return False
                if store.index.outgoing():
                    return False
            return not compare(registry).differences

        with contextlib.suppress(AssertionError):  # the comparison in the end says what is not
            eventually(settled, timeout=self.options.settle)

    def _be_silent(self, server: RoundupServer) -> None:
        """Do nothing, and count what the tracker is asked."""
        writing = ("POST", "PUT", "PATCH", "DELETE")
        reads, writes = requests(server, "GET"), requests(server, *writing)
        time.sleep(self.options.silence)
        self.report.reads_in_silence = requests(server, "GET") - reads
        self.report.writes_in_silence = requests(server, *writing) - writes

    def _compare(
        self, registry: StoreRegistry, bus: Bus, server: RoundupServer, people: People
    ) -> None:
        report = self.report
        report.edits = dict(people.edits)
        report.issues, report.comments = people.issues, people.comments
        report.differing = [str(found) for found in compare(registry).differences]
        titles = Counter(self._titles(server))
        report.duplicates = [title for title, count in titles.items() if count > 1]
        for store in registry:
            report.dead_letters += bus.states(store.name)["dead"].ready
            report.found[f"{store.name}.issues"] = store.count(Issue)
            report.found[f"{store.name}.comments"] = store.count(Comment)

    def _titles(self, server: RoundupServer) -> Iterator[str]:
        for found in server.ask("GET", "/data/issue?@fields=title")["collection"]:
            yield found["title"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=24, help="moments at which people edit")
    parser.add_argument("--kills", type=int, default=10, help="of workers, with SIGKILL")
    parser.add_argument("--silence", type=float, default=60.0, help="seconds in which to be silent")
    parser.add_argument("--settle", type=float, default=120.0, help="seconds to settle at most")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Report:
    """One run; prints its report."""
    options = parse(arguments)
    _context.set_forkserver_preload(["trackers"])
    with tempfile.TemporaryDirectory() as folder:
        report = Harness(options, Path(folder)).run()
    print(json.dumps(asdict(report) | {"sound": report.sound}, ensure_ascii=False))
    return report


if __name__ == "__main__":
    sys.exit(0 if main().sound else 1)
