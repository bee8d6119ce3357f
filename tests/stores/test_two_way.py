"""A tracker, a database and a folder of documents in sync, edited on all sides, workers killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from servers import eventually
from servers.roundup import RoundupServer

from eventsync.bus import Bus
from eventsync.identity import IdentityMap
from eventsync.registry import StoreRegistry
from eventsync.store import Store
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.stores.trackers import Account, Comment, Issue
from eventsync.stores.trackers.roundup import (
    RoundupAccounts,
    RoundupComments,
    RoundupIssues,
    RoundupService,
)
from eventsync.verify import compare
from eventsync.worker import Options, Worker, run

TYPES = (Account, Issue, Comment)
STORES = ("tracker", "database", "documents")


def store_of(name: str, folder: Path, url: str) -> Store:
    often = {"capture_every": 0.3, "capture_whole_every": 1.0}
    if name == "database":
        accessors = [SqlAccessor(t, f"sqlite:///{folder}/data.db", create=True) for t in TYPES]
        return Store(name, *accessors, **often)
    if name == "documents":
        documents = [JsonFolderAccessor(t, folder / t.__record__.name) for t in TYPES]
        return Store(name, *documents, index=folder / "documents.versions.db", **often)
    service = RoundupService(url, "admin", "secret", allow=["127.0.0.1"])
    identity = IdentityMap(folder / "ids.db", name="tracker")
    return Store(
        name,
        RoundupAccounts(Account, service),
        RoundupIssues(Issue, service, identity=identity),
        RoundupComments(Comment, service, identity=identity),
        index=folder / "tracker.versions.db",
        **often,
    )


def work(name: str, folder: Path, url: str) -> None:
    """What a worker process does."""
    os.dup2(os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    with Bus(f"sqlite:///{folder}/broker.db") as bus:
        store = store_of(name, folder, url)
        peers = [store_of(other, folder, url) for other in STORES if other != name]
        run(Worker(store, bus, options=Options(batch=20, prefetch=4), peers=peers), grace=5.0)


class Crew:
    """Worker processes, which may be killed and are replaced."""

    def __init__(self, folder: Path, url: str) -> None:
        self._arguments = folder, url
        self._context = multiprocessing.get_context("spawn")
        names = [*STORES, "tracker"]  # two for the tracker
        self.workers = [self._started(name) for name in names]

    def _started(self, name: str):
        process = self._context.Process(target=work, args=(name, *self._arguments), name=name)
        process.start()
        return process

    def kill_one(self, rng: random.Random) -> None:
        place = rng.randrange(len(self.workers))
        process = self.workers[place]
        process.kill()
        process.join()
        self.workers[place] = self._started(process.name)

    def stop(self) -> None:
        for process in self.workers:
            os.kill(process.pid, signal.SIGTERM)
        for process in self.workers:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def writes(server: RoundupServer) -> int:
    """How many requests to change something the tracker has had."""
    log = (server.folder / "server.log").read_text(errors="replace")
    return sum(log.count(f'"{method} ') for method in ("POST", "PUT", "PATCH", "DELETE"))


def reads(server: RoundupServer) -> int:
    return (server.folder / "server.log").read_text(errors="replace").count('"GET ')


def edit_document(path: Path, **members: object) -> None:
    """Save a document as an editor does."""
    held = json.loads(path.read_text(encoding="utf-8"))
    new = path.with_name(".editor.swp")
    new.write_text(json.dumps(held | members), encoding="utf-8")
    new.replace(path)


@pytest.mark.slow
def test_two_way(tmp_path):
    """Each edit reaches all three once: no issue twice, no difference, and then no write at all."""
    rng = random.Random(7)
    with RoundupServer() as server, Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        stores = [store_of(name, tmp_path, server.url) for name in STORES]
        registry = StoreRegistry(*stores)
        database = stores[1]
        for store in stores:
            bus.declare(store.name, store.accessors)
            store.open()
        database.publisher = bus
        server.ask("POST", "/data/issue", {"title": "before eventsync"})
        crew = Crew(tmp_path, server.url)
        try:
            made, theirs = 1, []
            for step in range(24):
                issue = Issue(id=f"K{step}", title=f"issue {step}", labels=["a", f"l{step % 3}"])
                database.add(issue)
                made += 1
                if step % 2:
                    database.add(Comment(id=f"C{step}", issue=issue.key, body=f"said {step}"))
                if step % 3 == 0:
                    body = {"title": f"theirs {step}", "status": "unread"}
                    theirs.append(server.ask("POST", "/data/issue", body)["id"])
                    made += 1
                if step % 4 == 0 and theirs:
                    change_later(server, rng.choice(theirs), title=f"renamed {step}")
                if step % 4 == 1:
                    held = sorted((tmp_path / "Issue").glob("*.json"))
                    if held:
                        edit_document(rng.choice(held), description=f"written {step}")
                if step % 5 == 0 and database.get(Issue, "K1") is not None:
                    record = database[Issue, "K1"]
                    record.priority = rng.choice(["bug", "wish"])
                    database.update(record)
                crew.kill_one(rng)
                time.sleep(0.35)
            gone = database[Issue, "K2"]
            database.remove(gone)
            made -= 1

            differences: list[object] = []

            def settled() -> bool:
                waiting = [bus.states(name) for name in STORES]
                if any(q.ready or q.leased for s in waiting for q in s.values()):
                    return False
                if any(store.index.outgoing() for store in stores):
                    return False
                differences[:] = compare(registry).differences
                return not differences

            for _ in range(2):
                try:
                    eventually(settled, timeout=30)
                except AssertionError:
                    pytest.fail(f"the stores do not agree: {differences}")
                time.sleep(1.5)  # what was captured last is then on its way
            before, looked = writes(server), reads(server)
            time.sleep(3)
            assert writes(server) == before
            assert reads(server) > looked
            assert all(bus.states(name)["dead"].ready == 0 for name in STORES)
            titles = [
                i["title"] for i in server.ask("GET", "/data/issue?@fields=title")["collection"]
            ]
            assert len(titles) == len(set(titles)) == made
            for store in stores:
                assert store.count(Issue) == made
                assert store.count(Comment) == 12
            assert compare(registry).total == 0
        finally:
            crew.stop()
            for store in stores:
                store.close()


def change_later(server: RoundupServer, id: str, **properties: object) -> None:
    """Change an item, again if a worker changes it at the same moment."""
    for _ in range(20):
        try:
            server.change(f"issue/{id}", **properties)
        except OSError:  # 412
            continue
        return
    raise AssertionError("it never succeeded")
