"""A Singer tap and target: one incremental batch of a table of PostgreSQL, piped into another."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peer.batch import copied, databases, through_eventsync
from benchmarks.peer.environment import Environment
from benchmarks.peer.result import NotRunError, compared

__all__ = ["NAME", "measure"]

NAME = "singer"

_BROKER = "redis-always"


class Pipe:
    """``tap-postgres | target-postgres``, with the state that it keeps from run to run."""

    def __init__(self, environment: Environment, source: str, target: str, folder: Path) -> None:
        self._tap = environment.command("tap-postgres")
        self._target = environment.command("target-postgres")
        self._folder = folder
        self._state: str | None = None
        driver = "postgresql+psycopg:"
        self._tap_settings = self._file(
            "tap.json",
            {
                "sqlalchemy_url": source.replace("postgresql:", driver),
                "filter_schemas": ["public"],
                "use_singer_decimal": True,
            },
        )
        self._target_settings = self._file(
            "target.json",
            {
                "sqlalchemy_url": target.replace("postgresql:", driver),
                "default_target_schema": "crm",
                "load_method": "upsert",
                "use_copy": True,
                "add_record_metadata": False,
                "activate_version": False,
            },
        )
        self._catalog = self._file("catalog.json", self._discovered())

    def _file(self, name: str, content: Any) -> str:
        path = self._folder / name
        path.write_text(json.dumps(content))
        return str(path)

    def _discovered(self) -> Any:
        """The catalog: the table of customers, incrementally by its mark."""
        ran = subprocess.run(
            [self._tap, "--config", self._tap_settings, "--discover"],
            capture_output=True,
            check=False,
        )
        if ran.returncode:
            raise NotRunError(f"the tap discovers nothing: {ran.stderr.decode()[-200:]}")
        (stream,) = (
            stream
            for stream in json.loads(ran.stdout)["streams"]
            if stream["tap_stream_id"] == "public-customer"
        )
        stream |= {"replication_method": "INCREMENTAL", "replication_key": "changed"}
        for entry in stream["metadata"]:
            entry["metadata"]["selected"] = True
            if not entry["breadcrumb"]:
                entry["metadata"] |= {
                    "replication-method": "INCREMENTAL",
                    "replication-key": "changed",
                }
        return {"streams": [stream]}

    def run(self) -> None:
        """Copy what changed since the last time. Raises ``NotRunError``."""
        state = ["--state", self._state] if self._state else []
        with (self._folder / "peer.log").open("ab") as log:
            tap = subprocess.Popen(
                [self._tap, "--config", self._tap_settings, "--catalog", self._catalog, *state],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
            )
            target = subprocess.Popen(
                [self._target, "--config", self._target_settings],
                stdin=tap.stdout,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
            )
            assert tap.stdout is not None
            tap.stdout.close()
            told, _ = target.communicate()
        if tap.wait() or target.returncode:
            raise NotRunError(f"it failed: {(self._folder / 'peer.log').read_text()[-300:]}")
        if told.strip():
            (self._folder / "state.json").write_text(told.strip().splitlines()[-1])
            self._state = str(self._folder / "state.json")


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """One incremental batch of ``events * factor`` rows."""
    environment = Environment(NAME, folder)
    count = events * factor
    beside = through_eventsync(_BROKER, count)
    with databases() as (source, target), tempfile.TemporaryDirectory() as name:
        pipe = Pipe(environment, source.url, target, Path(name))
        theirs, idle = copied(source, target, count, "crm.customer", pipe.run)
    yield compared(
        NAME,
        "tap-postgres into target-postgres",
        theirs,
        beside,
        broker=_BROKER,
        note=f"an incremental batch by upsert with COPY, {idle}; eventsync: relay and worker "
        "start, all is in the outbox",
    )
