"""``eventsync dlq`` with RabbitMQ, which can only be read message by message."""

from __future__ import annotations

import pytest
from cli.test_dlq import TRIGGER, database
from servers.rabbitmq import RabbitServer
from support.project import Cli

from eventsync.broker.bus import Bus


def test_letters_are_listed_and_replayed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """All dead letters are listed each time, and a replay removes them."""
    with RabbitServer() as rabbit:
        monkeypatch.setenv("EVENTSYNC_BROKER", rabbit.url + "?settle=0.01")
        cli("check", "--create").check()
        database(TRIGGER)
        people = "".join(f'{{"id": {n}, "name": "Eve"}}\n' for n in range(20))
        with Bus(rabbit.url) as bus:
            bus.declare("crm", ["Person", "Line"])
        cli("publish", "report", input=people).check()
        cli.drain("crm")
        for _ in range(2):
            listed = cli("dlq", "list", "crm", "--json").check().json
            assert sorted(int(letter["key"]) for letter in listed) == list(range(20))
        replayed = cli("dlq", "replay", "crm", "--key", "7", "--json").check().json
        assert len(replayed["replayed"]) == 1
        assert len(cli("dlq", "list", "crm", "--json").check().json) == 19
        cli.drain("crm")
        assert len(cli("dlq", "list", "crm", "--json").check().json) == 20
        cli("dlq", "discard", "crm", "--all", "--yes").check()
        assert cli("dlq", "list", "crm", "--json").check().json == []
