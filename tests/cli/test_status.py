"""``eventsync status`` and ``check``: what an operator sees first."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.project import Cli

from eventsync.cli.check import TRANSPORTS


def test_status_counts(cli: Cli) -> None:
    """Queues and records are counted, per store and type."""
    cli("sync").check()
    people = '{"id": 1, "name": "Ann", "city": "Oslo"}\n{"id": 2, "name": "Bob", "city": "Rome"}\n'
    cli("publish", "crm", "--type", "Person", input=people).check()
    stores = cli("status", "--json").check().json["stores"]
    assert stores["documents"]["queues"]["ready"] == 1
    assert stores["documents"]["queues"]["oldest"] < 60
    cli.drain("documents")
    document = Path("documents", "9.json")
    document.write_text('{"id": 9, "name": "Ida", "city": "Oslo"}')
    stores = cli("status", "--json").check().json["stores"]
    assert stores["documents"]["queues"]["ready"] == 0
    assert stores["documents"]["types"]["Person"] == {
        "here": 1,
        "pending": 0,
        "away": 1,
        "deleted": 0,
        "new": 1,
    }


def test_status_before_anything_ran(cli: Cli) -> None:
    """A deployment that has never run has a status too, which says what is missing."""
    ran = cli("status").check()
    assert "it has no queue yet" in ran.err


def test_check_is_content(cli: Cli) -> None:
    """A sound deployment passes, with the default's risk named."""
    findings = cli("check", "--json").check().json
    levels = {finding["about"]: finding["level"] for finding in findings}
    assert levels == {
        "stores": "ok",
        "store crm": "ok",
        "store documents": "ok",
        "store report": "ok",
        "broker": "ok",
        "transport": "ok",
        "signatures": "risk",
    }


def test_check_with_signatures(cli: Cli) -> None:
    """With keys configured there is no warning of unsigned envelopes."""
    key = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    ran = cli.real("check", "--json", EVENTSYNC_KEYS=key).check()
    assert "signatures" not in {finding["about"] for finding in ran.json}
    assert key not in ran.out


@pytest.mark.parametrize("scheme", ["redis", "amqp", "filesystem", "memory"])
def test_check_says_what_a_transport_may_lose(cli: Cli, scheme: str) -> None:
    """The weakness of a transport is told, whether or not the broker can be reached."""
    ran = cli("check", "--json", "--broker", f"{scheme}://127.0.0.1:1//")
    (finding,) = [finding for finding in ran.json if finding["about"] == "transport"]
    assert finding["level"] == "risk"
    assert TRANSPORTS[scheme] in finding["text"]


def test_check_finds_stores_that_do_not_fit(cli: Cli) -> None:
    """A record type merged per record, of which a store holds a part, is refused."""
    text = Path("records.py").read_text().replace(', rule="field"', "")
    Path("records.py").write_text(text)
    ran = cli("check").check(1)
    assert 'declare Person with rule="field"' in ran.out
    assert "Person" in cli("worker", "crm", "--drain").check(78).err
