"""``eventsync top``, in a terminal and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager

import pytest
from servers import free_port
from support.waiting import eventually

from eventsync.cli.command import OK


def stores(found):
    return {store["store"]: store for store in found["stores"]}


def test_top_without_workers_says_what_it_does_not_know(cli):
    """Without a source for workers, their number is not known, rather than 0."""
    cli("publish", "crm", "--type", "Person", input='{"id": 1, "name": "Ann"}').check()
    found = cli("top", "--json", "--every", "0.5").check().json
    report = stores(found)["report"]
    assert (report["waiting"], report["dead"], report["outbox"]) == (1, 0, 0)
    assert 0 <= report["lag"] < 60
    assert report["workers"] is report["rate"] is report["circuit"] is None
    assert found["workers"] == []
    ran = cli("top", "--every", "0.5").check()
    assert re.search(r"^report +1 ", ran.out, re.MULTILINE)
    assert "?" in ran.out
    assert "--endpoint" in ran.err
    assert "\x1b" not in ran.out


def test_top_says_what_cannot_be_asked(cli):
    """An unreachable broker and endpoint are reported, and the rest is still shown."""
    broker = "redis://somebody:hidden-word@127.0.0.1:1/0"
    endpoint = ("--endpoint", "http://127.0.0.1:1")
    ran = cli("top", "--json", "--every", "0.5", "--broker", broker, *endpoint).check(69)
    assert stores(ran.json)["report"]["waiting"] is None
    assert stores(ran.json)["crm"]["outbox"] == 0
    assert len(ran.json["problems"]) == 2
    assert "hidden-word" not in ran.out + ran.err
    cli("top", "--endpoint", "ftp://somewhere", "--json").check(78)


@contextmanager
def working(cli):
    """Run a worker that writes a state file and listens; yield its URL."""
    port = free_port()
    arguments = ("worker", "report", "--listen", f"127.0.0.1:{port}")
    process = cli.start(*arguments, EVENTSYNC_STATE_DIR="state")
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: cli("health", f"{url}/ready").code == OK)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


class Terminal:
    """A command in a terminal with a number of columns, and its output."""

    def __init__(self, cli, columns, *arguments):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eventsync", *arguments],
            cwd=cli.folder,
            # Size by the terminal alone: a test runner may say another in the environment.
            env=cli.environment(TERM="xterm-256color", COLUMNS="", LINES=""),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.written = ""

    def read(self):
        """Read new output; return whether there was any."""
        if not select.select([self._ours], [], [], 0.05)[0]:
            return False
        try:
            self.written += os.read(self._ours, 65_536).decode(errors="replace")
        except OSError:  # how Linux says that the other end has left
            return False
        return True

    def lines(self):
        """Return the lines of all screens, without control sequences."""
        text = self.written.replace("\x1b[H", "\n").replace("\r", "")
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")]

    def has(self, text):
        self.read()
        return text in self.written

    def has_ended(self):
        return not self.read() and self.process.poll() is not None

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.mark.slow
def test_top_with_a_worker(cli, monkeypatch):
    """Workers are read from endpoints and state files; a terminal shows what fits."""
    with working(cli) as url:
        look = ("top", "--every", "0.5")
        monkeypatch.setenv("EVENTSYNC_STATE_DIR", "state")
        both = cli(*look, "--json", "--endpoint", url).check().json
        # What two sources tell of is one worker.
        (seen,) = both["workers"]
        assert (seen["worker"], seen["store"], seen["circuit"]) == ("report", "report", "closed")
        assert stores(both)["report"]["workers"] == 1
        assert stores(both)["report"]["rate"] == 0.0
        assert stores(both)["crm"]["workers"] is None
        (from_file,) = cli(*look, "--json").check().json["workers"]
        assert from_file["pid"] == seen["pid"]
        assert from_file["where"] == "this host"
        for columns in (80, 160):
            terminal = Terminal(cli, columns, *look, "--endpoint", url)
            try:
                eventually(lambda terminal=terminal: terminal.has("closed"))
                terminal.process.send_signal(signal.SIGINT)
                eventually(terminal.has_ended)
            finally:
                terminal.close()
            assert terminal.process.returncode == 0
            # It gives the terminal back as it was.
            written = terminal.written
            assert written.index("\x1b[?1049h") < written.index("store")
            assert written.rindex("store") < written.index("\x1b[?1049l")
            assert max(map(len, terminal.lines())) <= columns
            assert "…" not in written
            (head, *_) = [line for line in terminal.lines() if line.startswith("store ")]
            assert head.endswith("circuit")
            assert ("in hand" in head) == (columns == 160)
