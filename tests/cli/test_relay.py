"""``eventsync relay``: outboxes are published without a worker."""

from __future__ import annotations

import json
import signal

from servers import eventually


def test_relay_command_publishes_until_sigterm(cli):
    """``eventsync relay`` publishes what is written while it runs, and SIGTERM ends it with 0."""
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
    """``--once`` publishes what waits and says how much; a wrong choice is a wrong usage."""
    away = ("--broker", "redis://127.0.0.1:1/0")
    cli("publish", "crm", "--type", "Person", *away, input='{"id": 1, "name": "Ann"}').check(69)
    assert cli("relay", "--all", "--once", "--json").check().json == {
        "published": {"crm": 1, "documents": 0, "report": 0}
    }
    cli("relay").check(2)
    cli("relay", "crm", "--all").check(2)
    cli("relay", "nothing").check(78)
