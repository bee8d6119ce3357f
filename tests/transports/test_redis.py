"""The Redis broker: the contract of leased transports, and what is specific to Redis."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis._parsers.base import BaseParser
from redis.crc import key_slot
from servers import free_port, program
from servers.certificate import self_signed
from servers.redis import RedisServer
from transports.contract import PATIENCE, Broker, TransportContract, eventually

from eventsync.broker.bus import Bus
from eventsync.errors import BusConfigError, BusError, BusUnavailableError, ConfigError
from eventsync.transports.leased.message import OutboundMessage
from eventsync.transports.redis import client as client_module
from eventsync.transports.redis import scripts
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.transport import RedisSettings, advice, connect

CONNECT = "eventsync.transports.redis.transport:connect"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Return a Redis server for the module that syncs each write to the disk."""
    with RedisServer(fsync="always") as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    """Return the URL of that server, emptied."""
    client = server.client()
    client.flushall()
    client.close()
    return server.url


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    """Return a broker on that server."""
    with Broker.opened(CONNECT, url) as broker:
        yield broker


class TestRedisContract(TransportContract):
    """The conformance suite on a Redis server."""

    connect = CONNECT

    @pytest.fixture
    def url(self, server: RedisServer) -> str:
        """Return the URL of the server, emptied."""
        client = server.client()
        client.flushall()
        client.close()
        return server.url


# -- the URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place", "db"),
    [
        ("redis://localhost", "localhost:6379", 0),
        ("redis://:pw@h:1/2", "h:1", 2),
        ("rediss://u:p%40w@[::1]:1/2?lease=5", "::1:1", 2),
        ("redis+socket:///run/a%20b.sock?db=3", "/run/a b.sock", 3),
        ("redis+socket://u:pw@/run/r.sock", "/run/r.sock", 0),
        ("redis+cluster://a,b:2", "a:6379,b:2", 0),
        ("sentinel://u:pw@a,b:2/main/4", "main of sentinels a:26379,b:2", 4),
    ],
)
def test_urls_name_a_server(url: str, place: str, db: int) -> None:
    """Each form of URL is parsed, with its defaults."""
    settings = RedisSettings.from_url(url)
    assert (settings.place, settings.db) == (place, db)


def test_urls_carry_credentials_and_settings() -> None:
    """User, password and settings in the URL override the options."""
    settings = RedisSettings.from_url("redis://u:p%40w@h?lease=5&prefix={x}:", lease=7, timeout=3)
    assert (settings.username, settings.password) == ("u", "p@w")
    assert (settings.lease, settings.timeout, settings.prefix) == (5.0, 3.0, "{x}:")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://:hidden@h", "not the URL of a Redis server"),
        ("redis://:hidden@h:port", "is wrong"),
        ("redis://:hidden@h:70000", "port 70000 is not between"),
        ("redis://:hidden@h/x", "is wrong"),
        ("redis://:hidden@h/-1", "is negative"),
        ("redis://:hidden@a,b", "only sentinels and clusters"),
        ("redis+socket://:hidden@h/x", "names no socket"),
        ("sentinel://:hidden@h", "names no service"),
        ("redis://:hidden@h?leese=5", "known settings are ca_file"),
        ("redis://:hidden@h?lease=0", "greater than 0"),
        ("redis://:hidden@h?prefix=x", "no hash tag"),
    ],
)
def test_wrong_urls_are_refused(url: str, message: str) -> None:
    """A wrong URL raises an error that says why and does not show the password."""
    with pytest.raises(ConfigError, match=message) as caught:
        connect(url)
    assert "hidden" not in str(caught.value)


def test_the_password_is_never_shown() -> None:
    """Neither the representation, the shown URL nor errors contain the password."""
    for url in ("redis://u:hid/d?en@127.0.0.1:1", "redis+socket://u:hid/d?en@/none.sock"):
        connection = connect(url)
        with pytest.raises(BusUnavailableError, match="cannot be reached") as caught:
            connection.transport.open_backend()
        bus = Bus(url)
        with pytest.raises(BusUnavailableError) as of_bus:
            bus.open()
        shown = [repr(connection), connection.as_uri(), repr(RedisSettings.from_url(url))]
        shown += [repr(bus), bus.shown_url, str(caught.value), str(of_bus.value)]
        assert not any("hid" in text or "en@" in text for text in shown), shown


def test_nobody_loads_the_client_library_in_vain() -> None:
    """A bus on another transport does not import redis."""
    code = "import sys, eventsync.broker.bus; print('redis' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.split() == ["False"], answer.stderr


def test_a_wrong_password_is_no_passing_trouble(url: str, server: RedisServer) -> None:
    """Refused credentials raise an error that is not retryable."""
    client = server.client()
    client.execute_command("ACL", "SETUSER", "other", "on", ">right", "~*", "+@all")
    with pytest.raises(BusError, match="refuses these credentials") as caught:
        connect(f"redis://other:wrong@127.0.0.1:{server.port}").connect()
    assert not isinstance(caught.value, BusUnavailableError)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with Broker.opened(CONNECT, f"redis://other:right@127.0.0.1:{server.port}") as broker:
        broker.declare("crm")
    client.close()


@pytest.mark.parametrize("word", [word for word, _, _ in client_module._TEMPORARY])
def test_a_passing_error_of_the_server(word: str) -> None:
    """Each row of the table of passing errors, as the driver gives it, and as a script nests it."""
    for answer in (f"{word} something", f"ERR Error running script: @user_script:4: -{word} some"):
        error = client_module._bus_error("redis://x", BaseParser.parse_error(answer))
        assert isinstance(error, BusUnavailableError)
        assert error.hint


@pytest.mark.parametrize("word", [word for word, _ in client_module._LASTING])
def test_a_lasting_error_of_the_server(word: str) -> None:
    """Each row of the table of errors that somebody has to end, with what to change."""
    answer = f"{word} 3999 127.0.0.1:6381" if word == "MOVED" else f"{word} something"
    if word.startswith(("DB", "unknown")):
        answer = f"ERR {answer}"
    error = client_module._bus_error("redis://x", BaseParser.parse_error(answer))
    assert isinstance(error, BusConfigError)
    assert "broker URL" in error.hint or "rediscluster" in error.hint or error.hint


def test_a_key_name_is_no_error_code() -> None:
    """A word in the middle of another is not taken for a code."""
    error = BaseParser.parse_error("ERR no such key ROOM")
    assert type(client_module._bus_error("redis://x", error)) is BusError


def test_a_demotion_during_a_blocking_read() -> None:
    """``UNBLOCKED`` is a passing error, since the server may be promoted again."""
    with RedisServer() as server:
        client = RedisClient(RedisSettings.from_url(server.url))
        client.command("XADD", "s", "*", "a", "b")
        caught: list[Exception] = []

        def read() -> None:
            try:
                client.command("XREAD", "BLOCK", "5000", "STREAMS", "s", "$")
            except Exception as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        with server.client() as other:
            eventually(lambda: int(other.info("clients")["blocked_clients"]) == 1)
            other.execute_command("REPLICAOF", "127.0.0.1", "1")
        thread.join()
        client.close()
        assert [type(error) for error in caught] == [BusUnavailableError]
        assert "UNBLOCKED" in str(caught[0])


def test_a_unix_socket(tmp_path: Path) -> None:
    """A server is reached through a Unix socket."""
    path = tmp_path / "r.sock"
    server = RedisServer()
    command = [*server.command(), "--unixsocket", str(path)]
    server.command = lambda: command  # type: ignore[method-assign]
    with server, Broker.opened(CONNECT, f"redis+socket://{path}") as broker:
        broker.declare("crm")
        broker.publish("crm", "1")
        assert [m.body for m in broker.receive("crm", 1)] == [b"1"]


def test_tls(tmp_path: Path) -> None:
    """With rediss:// the server's certificate is verified."""
    certificate, key = self_signed(tmp_path)
    server, port = RedisServer(), free_port()
    command = [*server.command(), "--tls-port", str(port), "--tls-auth-clients", "no"]
    command += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    server.command = lambda: command  # type: ignore[method-assign]
    url = f"rediss://localhost:{port}/0"
    with server:
        with Broker.opened(CONNECT, f"{url}?ca_file={certificate}") as broker:
            broker.declare("crm")
            broker.publish("crm", "1")
            assert broker.ready("crm") == 1
        with pytest.raises(BusConfigError, match="certificate verify failed"):
            connect(url).transport.open_backend()
        by_number = f"rediss://127.0.0.1:{port}/0?ca_file={certificate}"
        with pytest.raises(BusConfigError, match="certificate is not valid for"):
            connect(by_number).transport.open_backend()


# -- what is on the server ---------------------------------------------------------------------


def test_all_keys_are_in_one_slot(broker: Broker, server: RedisServer) -> None:
    """All keys of a deployment are in one hash slot; another prefix has another."""
    other = broker.other(prefix="{other}:x:")
    for each in (broker, other):
        each.declare("crm", "e", "topic", "#")
        each.publish("crm", "1")
        each.receive("crm", 1)
    client = server.client()
    keys = client.keys()
    assert len(keys) == 12
    for tag in (b"{eventsync}:", b"{other}:x:"):
        ours = [key for key in keys if key.startswith(tag)]
        assert len(ours) == 6
        assert len({key_slot(key) for key in ours}) == 1
    client.close()


def test_memory_is_bounded_by_the_backlog(broker: Broker, server: RedisServer) -> None:
    """After a drain and a close the server uses no more memory than before."""
    broker.declare("crm")
    client = server.client()

    def drain_some() -> int:
        other = broker.other()
        for _ in range(5):
            broker.publish("crm", *["x" * 1000] * 2000)
        other.receive("crm", 10_000, settle=True)
        other.connection.release()
        return int(client.memory_usage("{eventsync}:queue:crm") or 0)

    assert max(drain_some() for _ in range(3)) < 10_000
    assert client.xlen("{eventsync}:queue:crm") == 0
    assert client.zcard("{eventsync}:consumers") == 0
    names = {c["name"] for c in client.xinfo_consumers("{eventsync}:queue:crm", "eventsync")}
    assert names <= {b"released"}
    client.close()


def test_entries_of_strangers_do_no_harm(broker: Broker, server: RedisServer) -> None:
    """Entries that other programs add to a stream are delivered and can be settled."""
    broker.declare("crm")
    client = server.client()
    stream = "{eventsync}:queue:crm"
    client.xadd(stream, {"no json": "1"})
    client.xadd(stream, {"[1]": "2", "b": "no json"})
    client.xadd(stream, {"{}": "3", "b": "[1, 2]", "c": ""})
    client.close()
    broker.publish("crm", "4")
    got = broker.receive("crm", 4, settle=True)
    assert [message.body for message in got] == [b"1", b"2", b"3", b"4"]
    assert [message.content_type for message in got[:3]] == [None] * 3
    assert ["x-malformed" in message.headers for message in got] == [False, True, True, False]
    broker.channel.flush()
    assert broker.channel.queue_stats("crm") == (0, 0, None)


def test_a_lease_is_bounded_in_bytes(broker: Broker) -> None:
    """A lease takes at most ``lease_bytes``, but at least one message."""
    broker.declare("crm")
    broker.publish("crm", *["x" * 100_000] * 10)
    other = broker.other(lease_bytes=250_000)
    got = other.consume("crm")
    other.connection.drain_events(timeout=PATIENCE)
    assert 1 <= len(got) <= 3


# -- what goes wrong ---------------------------------------------------------------------------


def test_what_is_ready_comes_at_one_look(url: str, monkeypatch) -> None:
    """Ready messages are delivered without a second query."""
    ran: list[scripts.Script] = []
    run = RedisClient.run

    def counted(self: RedisClient, script: scripts.Script, *arguments: Any) -> Any:
        ran.append(script)
        return run(self, script, *arguments)

    with Bus(url) as bus:
        bus.declare("crm", ["T"])
        bus.publish("T", [b"one", b"two"])
        bus.publish("T", [b"three"])
        subscription = bus.subscribe("crm", ["T"], prefetch=64)
        monkeypatch.setattr(RedisClient, "run", counted)
        assert len(subscription.fetch(timeout=5.0, limit=64)) == 2
        assert ran.count(scripts.LEASE) == 1
        subscription.close()


def test_a_look_that_finds_nothing_writes_nothing(url: str, server: RedisServer) -> None:
    """A lease that finds no message writes nothing."""
    with Bus(url) as bus, server.client() as client:
        subscription = bus.subscribe("crm", ["T"], prefetch=64)
        subscription.fetch(timeout=0.0, limit=64)
        before = client.info("persistence")["aof_current_size"]
        for _ in range(50):
            subscription.fetch(timeout=0.0, limit=64)
        # A consumer that shows itself, as it does each second, takes some hundred bytes.
        assert client.info("persistence")["aof_current_size"] - before < 1000
        subscription.close()


def test_forgotten_scripts_are_sent_again(broker: Broker, server: RedisServer) -> None:
    """The transport works on after SCRIPT FLUSH between any two steps."""
    client = server.client()
    client.script_flush()
    broker.declare("crm")
    client.script_flush()
    broker.publish("crm", "1")
    client.script_flush()
    (message,) = broker.receive("crm", 1)
    client.script_flush()
    message.ack()
    assert broker.channel.flush() == 1
    client.close()


def test_a_destroyed_group_comes_back(broker: Broker, server: RedisServer) -> None:
    """After XGROUP DESTROY all unacknowledged messages are delivered and can be settled."""
    broker.declare("crm")
    broker.publish("crm", "1", "2")
    got = broker.consume("crm", prefetch=3)
    broker.connection.drain_events(timeout=PATIENCE)
    client = server.client()
    client.xgroup_destroy("{eventsync}:queue:crm", "eventsync")
    client.close()
    got[0].ack()
    broker.drain_until(lambda: len(got) == 3)
    assert got[2].body == b"2"
    got[2].ack()
    broker.channel.flush()
    assert broker.channel.queue_stats("crm")[:2] == (0, 0)


def test_cut_connections_are_made_again(broker: Broker, server: RedisServer) -> None:
    """After CLIENT KILL at most one call fails, and no message stays leased."""
    broker.declare("crm")
    broker.publish("crm", *map(str, range(100)))
    got = broker.consume("crm", prefetch=10)
    client = server.client()
    seen: set[bytes] = set()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < 100:
        assert time.monotonic() < deadline
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        try:
            broker.connection.drain_events(timeout=0.05)
        except (TimeoutError, BusUnavailableError):
            continue
        seen |= {message.body for message in got}
        for message in got:
            message.ack()
        got.clear()
    client.close()
    eventually(lambda: _flushed(broker) and broker.channel.queue_stats("crm")[:2] == (0, 0))


def _flushed(broker: Broker) -> bool:
    try:
        broker.channel.flush()
    except BusUnavailableError:
        return False
    return True


def test_a_lost_answer_leaves_nothing_behind(broker: Broker, monkeypatch) -> None:
    """Messages leased in a lost answer become ready again while the consumer lives."""
    broker.declare("crm")
    broker.publish("crm", "1", "2")
    got = broker.consume("crm", prefetch=1)
    broker.connection.drain_events(timeout=PATIENCE)
    got[0].ack()
    backend = broker.channel.backend
    run = backend._client.run

    def loses_the_answer(script: Any, *args: Any) -> Any:
        answer = run(script, *args)
        if script is scripts.LEASE:
            raise BusUnavailableError("the answer is lost")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(backend._client, "run", loses_the_answer)
        with pytest.raises(BusUnavailableError):
            broker.connection.drain_events(timeout=PATIENCE)
    broker.drain_until(lambda: len(got) == 2)
    assert got[1].body == b"2"
    assert got[1].headers["x-delivery-count"] == 0
    got[1].ack()
    assert broker.channel.flush() == 1


def test_an_emptied_server_is_said(broker: Broker, server: RedisServer) -> None:
    """After FLUSHALL a consumer gets an error to declare again, and then works."""
    broker.declare("crm")
    broker.consume("crm")
    client = server.client()
    client.flushall()
    client.close()
    with pytest.raises(BusUnavailableError, match="has lost queue 'crm'"):
        broker.connection.drain_events(timeout=0)
    broker.declare("crm")
    broker.publish("crm", "1")
    assert broker.ready("crm") == 1


def test_a_full_server_refuses_and_can_be_drained(broker: Broker, server: RedisServer) -> None:
    """With full memory a publish raises a retryable error, and consumers still drain."""
    broker.declare("crm")
    broker.publish("crm", *["x" * 1000] * 100)
    client = server.client()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(BusUnavailableError, match="memory is full"):
            broker.publish("crm", "1", "2")
        broker.receive("crm", 100, prefetch=30, settle=True)
        broker.channel.flush()
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)
    finally:
        client.config_set("maxmemory", 0)
        client.close()
    broker.publish("crm", "1")
    assert broker.ready("crm") == 1


def test_a_hung_server_is_an_error_in_time(broker: Broker, server: RedisServer) -> None:
    """A server that does not answer raises after the timeout and is usable later."""
    broker.declare("crm")
    other = broker.other(timeout=0.3)
    other.publish("crm", "1")
    server.pause()
    try:
        with pytest.raises(BusUnavailableError, match="cannot be reached"):
            other.publish("crm", "2")
    finally:
        server.resume()
    # The publish that was given up may have been stored, or not.
    other.publish("crm", "3")
    assert broker.ready("crm") in (2, 3)


# -- servers that are killed -------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_server_loses_no_publish() -> None:
    """With appendfsync always, each publish that returned survives SIGKILL and restart."""
    with RedisServer(fsync="always") as server, Broker.opened(CONNECT, server.url) as broker:
        broker.declare("crm")
        said: set[str] = set()
        tried = 0
        for _ in range(3):
            killer = threading.Timer(0.3, server.kill)
            killer.start()
            try:
                while True:
                    tried += 1
                    batch = [f"{tried}-{part}" for part in range(3)]
                    broker.publish("crm", *batch)
                    said.update(batch)
            except BusUnavailableError:
                killer.join()
            server.start()
        count = broker.ready("crm")
        bodies = [m.body.decode() for m in broker.receive("crm", count, settle=True)]
        assert len(said) > 100
        assert said <= set(bodies)
        assert len(bodies) == len(set(bodies)), "a publish was tried twice"
        whole = Counter(body.partition("-")[0] for body in bodies)
        assert set(whole.values()) == {3}, "a batch was stored in part"


@pytest.mark.slow
def test_a_killed_server_loses_no_message_that_is_consumed() -> None:
    """With a server that is killed repeatedly, all messages arrive and none stays leased."""
    with RedisServer(fsync="always") as server, Broker.opened(CONNECT, server.url) as broker:
        broker.declare("crm")
        broker.publish("crm", *map(str, range(3000)))
        got = broker.consume("crm", prefetch=20)
        seen: Counter[bytes] = Counter()
        kills = 0
        deadline = time.monotonic() + 60
        while len(seen) < 3000:
            assert time.monotonic() < deadline
            if len(seen) > 700 * (kills + 1):
                server.kill()
                kills += 1
                with pytest.raises(BusUnavailableError):
                    broker.connection.drain_events(timeout=PATIENCE)
                server.start()
            try:
                broker.connection.drain_events(timeout=1)
            except (TimeoutError, BusUnavailableError):
                continue
            seen.update(message.body for message in got)
            for message in got:
                message.ack()
            got.clear()
        assert kills == 4
        eventually(lambda: _flushed(broker) and broker.channel.queue_stats("crm")[:2] == (0, 0))
        assert sum(seen.values()) - 3000 <= 20 * kills


# -- who is alive ------------------------------------------------------------------------------


def test_the_silent_elsewhere_are_succeeded(broker: Broker, server: RedisServer) -> None:
    """A silent consumer on another host is taken over after ``dead_after``."""
    broker.declare("crm")
    broker.publish("crm", "1")
    elsewhere = broker.other(dead_after=0.5)
    backend = elsewhere.channel.backend
    backend._consumer = "another-host.1.2.name"
    elsewhere.channel.backend.lease(["crm"], 1, [])
    heir = broker.other(dead_after=0.5)
    got = heir.consume("crm")
    started = time.monotonic()
    heir.drain_until(lambda: got)
    assert time.monotonic() - started >= 0.3
    assert got[0].headers["x-delivery-count"] == 1
    assert backend.extend() is False
    # It goes on under a name of its own.
    broker.publish("crm", "2")
    heir.connection.release()
    assert [d.body for d in backend.lease(["crm"], 9, [])] == [b"1", b"2"]


def test_an_outage_makes_nobody_dead(broker: Broker, server: RedisServer) -> None:
    """After an outage consumers get time to renew before they count as dead."""
    broker.declare("crm")
    broker.publish("crm", "1")
    rival = broker.other(dead_after=0.6, timeout=0.1).channel.backend
    holder = broker.other().channel.backend
    holder._consumer = "another-host.1.2.name"
    holder.lease(["crm"], 1, [])
    server.pause()
    with pytest.raises(BusUnavailableError):
        rival.reclaim()
    server.resume()
    client = server.client()
    client.zadd("{eventsync}:consumers", {holder._consumer: 1})
    client.close()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        rival.reclaim()
        assert broker.ready("crm") == 0

    def taken_over() -> bool:
        rival.reclaim()
        return broker.ready("crm") == 1

    eventually(taken_over)


def test_the_dead_of_this_host_are_succeeded_at_once(broker: Broker) -> None:
    """A consumer killed on this host is taken over at once, whatever ``dead_after`` is."""
    broker.declare("crm")
    broker.publish("crm", "1")
    actor = broker.actor(dead_after=3600, lease=3600)
    actor.do("consume", "crm", 1)
    assert actor.do("receive", 1, PATIENCE) == ["1"]
    heir = broker.other()
    got = heir.consume("crm")
    actor.signal(signal.SIGKILL)
    heir.drain_until(lambda: got)
    assert got[0].headers["x-delivery-count"] == 1


def test_sentinels_name_the_server(tmp_path: Path, url: str, server: RedisServer) -> None:
    """A sentinel:// URL finds the primary of its service."""
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
    command = [program("redis-server"), str(config), "--sentinel", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def reached() -> bool:
            try:
                RedisClient(RedisSettings.from_url(f"sentinel://127.0.0.1:{port}/main")).command(
                    "PING"
                )
            except BusUnavailableError:
                return False
            return True

        eventually(reached)
        with Bus(f"sentinel://127.0.0.1:{port}/main") as bus:
            bus.declare("crm", ["Product"])
            bus.publish("Product", [b"x"])
            assert bus.state("eventsync.crm").ready == 1
        with pytest.raises(BusUnavailableError, match="other of sentinels"):
            Bus(f"sentinel://127.0.0.1:{port}/other").open()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_cluster() -> None:
    """A cluster works as a broker, although it refuses scripts with keys of several slots."""
    server = RedisServer()
    command = [*server.command(), "--cluster-enabled", "yes"]
    command += ["--cluster-announce-ip", "127.0.0.1", "--cluster-port", str(free_port())]
    server.command = lambda: command  # type: ignore[method-assign]
    url = f"redis+cluster://127.0.0.1:{server.port}"
    with server:
        client = server.client()
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        with Broker.opened(CONNECT, url) as broker:
            broker.declare("crm", "e", "fanout", "")
            broker.declare("cache", "e", "fanout", "")
            broker.channel.publish_many([OutboundMessage(b"1", "k", "e")])
            broker.publish("crm", "2", "3")
            got = broker.receive("crm", 3)
            got[0].ack()
            got[1].requeue()
            assert broker.channel.queue_stats("crm")[:2] == (1, 1)
            assert broker.channel.queue_purge("crm") == 1
            assert broker.ready("cache") == 1
            broker.channel.queue_delete("cache")
            assert advice(url) == advice(server.url)
            server.kill()
            with pytest.raises(BusUnavailableError):
                broker.publish("crm", "4")
            with pytest.raises(BusUnavailableError):
                Bus(url).open()
            server.start()
            eventually(lambda: _published(broker))
        client.close()


def test_a_restricted_default_user_is_told() -> None:
    """``advice`` warns of a default user that may not replay the append-only file."""
    with RedisServer() as server, server.client() as client:
        client.acl_setuser(
            "own", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"]
        )
        url = f"redis://own:secret@127.0.0.1:{server.port}/0"
        before = advice(url)
        client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
        assert advice(url) == before
        client.execute_command("ACL", "SETUSER", "default", "-flushall")
        (told,) = set(advice(url)) - set(before)
        assert "append-only" in told
        client.execute_command("ACL", "SETUSER", "default", "resetkeys", "allcommands")
        assert told in advice(url)


def _published(broker: Broker) -> bool:
    try:
        broker.publish("crm", "4")
    except BusUnavailableError:
        return False
    return True
