"""The faults of a chaos run, each a function of the scene, and how often each strikes.

They know nothing of what is published or compared.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
from proxy import Proxy
from servers import Server
from servers.redis import RedisServer

__all__ = ["FAULTS", "Fault", "Scene", "Struck"]


class Scene(Protocol):
    """What a fault may break."""

    rng: random.Random
    folder: Path
    lease: float
    server: Server | None
    """The broker's, if it has one."""
    proxy: Proxy | None
    database: Server | None
    """The server of the store ``right``, if it has one."""
    outage: float
    """How long it is away in an outage, in seconds."""

    def processes(self, role: str) -> list[str]:
        """The names of the processes of a role that run: worker, producer or relay."""

    def process(self, name: str) -> Any: ...

    def replace(self, name: str) -> None:
        """Wait for a process to end, and start another in its place."""

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while; in the end everything is done at once."""

    def poison(self) -> None:
        """Publish something that no store can take."""

    def note(self, kind: str, store: str | None) -> None:
        """What strikes ``store`` (or all of them) strikes now."""


Struck = str | None
"""The store that a fault concerns, by name; ``None`` for all of them."""


@dataclass(frozen=True)
class Fault:
    """``share``: how often it strikes for each worker that is killed. ``fits``: where it can."""

    strike: Callable[[Scene], Struck]
    share: float
    fits: Callable[[Scene], bool] = lambda scene: True


def _store_of(name: str) -> str:
    return name.split(":")[1]


def _signal(scene: Scene, role: str, number: signal.Signals) -> str | None:
    names = scene.processes(role)
    if not names:
        return None
    name = scene.rng.choice(names)
    os.kill(scene.process(name).pid, number)
    return name


def kill(scene: Scene) -> Struck:
    """SIGKILL a worker."""
    name = _signal(scene, "worker", signal.SIGKILL)
    assert name is not None
    scene.replace(name)
    return _store_of(name)


def term(scene: Scene) -> Struck:
    """SIGTERM a worker, which has to leave in good order."""
    name = _signal(scene, "worker", signal.SIGTERM)
    assert name is not None
    os.kill(scene.process(name).pid, signal.SIGCONT)  # it may be one that is paused
    scene.replace(name)
    return _store_of(name)


def pause(scene: Scene) -> Struck:
    """SIGSTOP a worker for longer than its lease, so that others take over what it holds."""
    name = _signal(scene, "worker", signal.SIGSTOP)
    assert name is not None
    process = scene.process(name)

    def resume() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)

    scene.later(scene.lease + scene.rng.uniform(0.2, 1.0), resume)
    return _store_of(name)


def kill_producer(scene: Scene) -> Struck:
    """SIGKILL a producer, which goes on from its journal."""
    if name := _signal(scene, "producer", signal.SIGKILL):
        scene.replace(name)
    return None


def kill_relay(scene: Scene) -> Struck:
    """SIGKILL the relay of the producers' spool."""
    if name := _signal(scene, "relay", signal.SIGKILL):
        scene.replace(name)
    return None


def restart(scene: Scene) -> Struck:
    """SIGKILL the broker, and start it again on what it has on disk."""
    assert scene.server is not None
    scene.server.kill()
    time.sleep(scene.rng.uniform(0.0, 0.5))
    scene.server.start()
    return None


def cut_power(scene: Scene) -> Struck:
    """As ``restart``, but what was written in the last second has not reached the disk.

    So it is where the append-only file is synced once a second, and the host goes down.
    """
    assert isinstance(scene.server, RedisServer)
    (log,) = scene.server.folder.glob("appendonlydir/*.incr.aof")
    synced = log.stat().st_size
    time.sleep(1.0)
    scene.server.kill()
    os.truncate(log, synced)
    scene.server.start()
    return None


def reset(scene: Scene) -> Struck:
    """Reset every connection to the broker."""
    assert scene.proxy is not None
    scene.proxy.reset()
    return None


def hole(scene: Scene) -> Struck:
    """Swallow, for some seconds, whatever goes to the broker or comes from it."""
    assert scene.proxy is not None
    scene.proxy.hold()
    scene.later(scene.rng.uniform(0.5, 4.0), scene.proxy.release)
    return None


def truncate(scene: Scene) -> Struck:
    """Break a connection to the broker in the middle of a message."""
    assert scene.proxy is not None
    scene.proxy.truncate()
    return None


def step_clock(scene: Scene) -> Struck:
    """Set the producers' clocks ahead, within what drift is allowed, or far back."""
    skew = scene.rng.choice([0.0, scene.rng.uniform(1.0, 4.0), -scene.rng.uniform(1.0, 3600.0)])
    (scene.folder / "skew.new").write_text(str(skew))
    (scene.folder / "skew.new").replace(scene.folder / "skew")
    return None


def lock_store(scene: Scene) -> Struck:
    """Have nobody write to the database of the store ``left`` for a while."""
    connection = sqlite3.connect(
        scene.folder / "left.db", timeout=1.0, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        connection.close()  # a worker that is paused has it locked already
    else:
        scene.later(scene.rng.uniform(0.5, 3.0), connection.close)
    return "left"


def stop_store(scene: Scene) -> Struck:
    """SIGKILL the database server of the store ``right``; it is back after some seconds."""
    database = scene.database
    assert database is not None
    if database.process is not None:
        database.kill()
        scene.later(scene.rng.uniform(0.5, 3.0), lambda: database.start() and None)
    return "right"


def outage(scene: Scene) -> Struck:
    """SIGKILL that server, for as long as is asked for; struck once it is back."""
    database = scene.database
    assert database is not None
    if database.process is not None:
        database.kill()

    def end() -> None:
        database.start()
        scene.note("back-from-outage", "right")

    scene.later(scene.outage, end)
    return "right"


def _connect(scene: Scene) -> psycopg.Connection[Any]:
    assert scene.database is not None
    return psycopg.connect(scene.database.url.replace("+psycopg", ""), connect_timeout=2)


def cut_store(scene: Scene) -> Struck:
    """Have the database server end the connections of all workers."""
    with contextlib.suppress(psycopg.OperationalError), _connect(scene) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    return "right"


def tangle(scene: Scene) -> Struck:
    """Lock versions in the database the wrong way round, until workers deadlock with it."""

    def lock() -> None:
        # It may be chosen as the deadlock's victim, or lose its server: that is all it is for.
        with contextlib.suppress(psycopg.Error), _connect(scene) as connection:
            for half in ("DESC", "ASC"):
                connection.execute(
                    f"SELECT 1 FROM eventsync_version ORDER BY key {half} LIMIT 400 FOR UPDATE"
                )
                time.sleep(0.3)

    threading.Thread(target=lock, daemon=True).start()
    return "right"


def poison(scene: Scene) -> Struck:
    """Publish something that no store can take."""
    scene.poison()
    return None


def _has_proxy(scene: Scene) -> bool:
    return scene.proxy is not None


def _has_database(scene: Scene) -> bool:
    return scene.database is not None


FAULTS = {
    "kill": Fault(kill, 1.0),
    "term": Fault(term, 0.05),
    "pause": Fault(pause, 0.03),
    "kill-producer": Fault(kill_producer, 0.05),
    "kill-relay": Fault(kill_relay, 0.05, lambda scene: bool(scene.processes("relay"))),
    "reset": Fault(reset, 0.03, _has_proxy),
    "hole": Fault(hole, 0.01, _has_proxy),
    "truncate": Fault(truncate, 0.03, _has_proxy),
    "step-clock": Fault(step_clock, 0.03),
    "lock-store": Fault(lock_store, 0.02, lambda scene: (scene.folder / "left.db").exists()),
    "stop-store": Fault(stop_store, 0.01, _has_database),
    "cut-store": Fault(cut_store, 0.03, _has_database),
    "tangle": Fault(tangle, 0.03, _has_database),
    "poison": Fault(poison, 0.02),
}
"""Those that strike in proportion to the workers killed; ``restart``, ``cut_power`` and ``outage``
are asked for by number."""
