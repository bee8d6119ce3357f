"""``eventsync status`` and ``check``."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers.redis import RedisServer
from support.project import Cli

from eventsync.transports.guarantees import TRANSPORTS, weakness


def test_status_counts(cli: Cli) -> None:
    """``status`` counts queues by store, and records by store and type."""
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
        "unreadable": 0,
    }


def test_status_before_anything_ran(cli: Cli) -> None:
    """The status of a deployment that has never run says what is missing."""
    ran = cli("status").check()
    assert "there is no queue yet" in ran.err


def test_check_is_content(cli: Cli) -> None:
    """A sound deployment passes the check, with the risk of missing signatures."""
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


def test_check_names_a_filter_that_cannot_be_judged(cli: Cli) -> None:
    """A view whose filter reads a field that its store does not hold is a risk."""
    workers = cli.folder / "workers.py"
    text = workers.read_text(encoding="utf-8")
    workers.write_text(text.replace('omit=("balance",)', 'omit=("city",)'), encoding="utf-8")
    findings = cli("check", "--json").check().json
    (risk,) = [f for f in findings if f["about"] == "store documents" and f["level"] == "risk"]
    assert "the filter of the view of Person reads city" in risk["text"]


def test_check_with_signatures(cli: Cli) -> None:
    """With keys configured, the check does not warn of missing signatures."""
    key = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    ran = cli.real("check", "--json", EVENTSYNC_KEYS=key).check()
    (found,) = [finding for finding in ran.json if finding["about"] == "signatures"]
    assert (found["level"], found["text"]) == (
        "ok",
        "key k1 signs and verifies changes of all types",
    )
    assert key not in ran.out


@pytest.mark.parametrize("scheme", ["filesystem", "memory"])
def test_check_says_what_a_transport_may_lose(cli: Cli, scheme: str) -> None:
    """The check names what a transport may lose, also if the broker is unreachable."""
    ran = cli("check", "--json", "--broker", f"{scheme}://127.0.0.1:1//")
    (finding,) = [finding for finding in ran.json if finding["about"] == "transport"]
    assert finding["level"] == "risk"
    assert TRANSPORTS[scheme] in finding["text"]


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:1//", "sqlite:///broker.db"])
def test_check_says_which_transports_are_safe(cli: Cli, url: str) -> None:
    """The check says that a safe transport loses nothing."""
    ran = cli("check", "--json", "--broker", url)
    (finding,) = [finding for finding in ran.json if finding["about"] == "transport"]
    assert finding["level"] == "ok"
    assert "loses nothing" in finding["text"]
    assert "loses nothing" in cli("check", "--broker", url).out.replace("\n", " ")


def test_check_says_what_is_not_known(cli: Cli) -> None:
    """A transport whose losses are not known is a risk."""
    ran = cli("check", "--json", "--broker", "zookeeper://127.0.0.1:1")
    (finding,) = [finding for finding in ran.json if finding["about"] == "transport"]
    assert finding["level"] == "risk"
    assert "not known" in finding["text"]
    assert weakness("zookeeper") is None
    assert weakness("SQLA+postgresql") == TRANSPORTS["sqla"]


def test_check_finds_stores_that_do_not_fit(cli: Cli) -> None:
    """A partial view of a record type that merges per record is refused."""
    text = Path("records.py").read_text().replace(', rule="field"', "")
    Path("records.py").write_text(text)
    ran = cli("check").check(1)
    assert 'declare Person with rule="field"' in ran.out
    assert "Person" in cli("worker", "crm", "--drain").check(78).err


def test_check_looks_at_the_settings_of_redis(cli: Cli) -> None:
    """The check names each setting of a Redis server that may lose changes."""
    with RedisServer(fsync="always") as server:
        client = server.client()

        def server_findings() -> list[tuple[str, str]]:
            found = cli("check", "--json", "--broker", server.url).check().json
            return [(f["level"], f["text"]) for f in found if f["about"] == "server"]

        ((level, _),) = server_findings()
        assert level == "ok"
        client.config_set("appendfsync", "everysec")
        client.config_set("maxmemory-policy", "allkeys-lru")
        (first, second) = server_findings()
        assert first[0] == second[0] == "risk"
        assert "last second" in first[1]
        assert "noeviction" in second[1]
        client.config_set("appendonly", "no")
        assert "set `appendonly yes`" in server_findings()[0][1]
        client.close()


@pytest.mark.parametrize(
    ("broker", "said"),
    [
        ("amqp://somebody:hidden@127.0.0.1:1//", "127.0.0.1:1"),
        ("redis://somebody:hidden@127.0.0.1:1/0", "127.0.0.1:1"),
        ("nonsense://somebody:hidden@127.0.0.1:1//", "its scheme is unknown"),
    ],
)
def test_check_names_the_broker_that_fails(cli: Cli, broker: str, said: str) -> None:
    """The check names the failing broker and its error, but not its password."""
    ran = cli("check", "--json", "--broker", broker)
    (finding,) = [one for one in ran.json if one["about"] == "broker"]
    assert said in finding["text"]
    assert "hidden" not in ran.out + ran.err


def test_check_creates_nothing_unless_told(cli: Cli) -> None:
    """Without ``--create`` the check leaves a missing database alone and prints what to do."""
    database = Path("crm.db")
    database.unlink(missing_ok=True)
    assert "--create" in cli("check").check().out.replace("\n", " ")
    assert not database.exists()
    found = cli("check", "--create", "--json").check().json
    assert database.exists()
    crm = [finding for finding in found if finding["about"] == "store crm"]
    assert {"ok", "note"} >= {finding["level"] for finding in crm}
    assert any("can be read and written" in finding["text"] for finding in crm)
