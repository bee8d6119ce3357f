"""``eventsync relay``: outboxes and spools are published without a worker."""

from __future__ import annotations

import json
import signal

from support.waiting import eventually


def test_relay_command_publishes_until_sigterm(cli):
    """A relay publishes changes that are written while it runs, and SIGTERM ends it with 0."""
    relay = cli.start("relay", "crm")
    try:
        away = ("--broker", "redis://127.0.0.1:1/0")
        cli("publish", "crm", "--type", "Person", *away, input='{"id": 1, "name": "Ann"}').check(69)
        assert cli("status", "--json").json["stores"]["crm"]["outbox"] <= 1

        def published():
            return cli("status", "--json").json["stores"]["crm"]["outbox"] == 0

        eventually(published)
        relay.send_signal(signal.SIGTERM)
        _, err = relay.communicate(timeout=20)
    finally:
        relay.kill()
        relay.communicate()
    assert relay.returncode == 0, err
    assert any(json.loads(line)["event"] == "published" for line in err.splitlines())


def test_relay_once(cli):
    """``--once`` publishes what waits and prints how much; wrong options are wrong usage."""
    away = ("--broker", "redis://127.0.0.1:1/0")
    cli("publish", "crm", "--type", "Person", *away, input='{"id": 1, "name": "Ann"}').check(69)
    assert cli("relay", "--all", "--once", "--json").check().json == {
        "published": {"crm": 1, "documents": 0, "report": 0}
    }
    cli("relay").check(2)
    cli("relay", "crm", "--all").check(2)
    cli("relay", "nothing").check(78)


def test_spool_takes_and_relays(cli):
    """``publish --spool`` needs no broker, and ``relay --spool --once`` publishes the changes."""
    away = ("--broker", "redis://127.0.0.1:1/0")
    into = ("publish", "--type", "Line", "--spool", "spool.db")
    line = '{"order": 1, "number": 1, "text": "a"}'
    assert "1 record written to the spool" in cli(*into, *away, input=line).check().out
    assert cli(*into, *away, "--json", input="").check().json["waiting"] is True
    cli("relay", "--spool", "spool.db", "--once", *away).check(69)
    found = cli("relay", "--spool", "spool.db", "--once", "--json").check().json
    assert (found["published"], found["waiting"], found["kept"]) == (1, 0, 1)
    cli("worker", "crm", "--drain").check()
    assert cli("status", "--json").json["stores"]["crm"]["types"]["Line"]["here"] == 1
    cli("publish", "crm", "--spool", "spool.db", input="").check(2)
    cli("relay", "crm", "--spool", "spool.db").check(2)
    cli("relay", "--spool", "crm.db").check(78)


def test_spool_relay_tells_size_and_age(cli):
    """``relay --spool`` logs how many changes wait and since when."""
    relay = cli.start("relay", "--spool", "spool.db")
    try:
        into = ("publish", "--type", "Line", "--spool", "spool.db")
        cli(*into, input='{"order": 1, "number": 1, "text": "a"}').check()
        found = json.loads(relay.stderr.readline())
        relay.send_signal(signal.SIGTERM)
        _, err = relay.communicate(timeout=20)
    finally:
        relay.kill()
        relay.communicate()
    assert relay.returncode == 0, err
    assert (found["event"], found["waiting"], found["oldest"]) == ("published", 0, None)
    assert found["bytes"] > 0
