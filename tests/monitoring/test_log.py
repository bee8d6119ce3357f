"""The log: its format, its level, and that it contains no secret."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest
import structlog

from eventsync.config import load
from eventsync.monitoring.log import Redaction, configure


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stream():
    """A stream to log to; the logging configuration is restored afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "text",
    [
        "amqp://user:hunter22@host/vhost",
        "redis://:hunter22@host:6379/0; redis://:hunter22@other/0",
        "postgresql+psycopg://u:hun:ter22@host/db",
        "redis://h@ost:hunter22@host/0",
        "host=db password=hunter22 user=me",
        "redis://host/0?ssl=1&password=hunter22&db=1",
        "pwd = 'hunter22'",
        "the key hunter22 is wrong",
    ],
)
def test_secrets_in_texts_are_hidden(text):
    """Passwords in URLs and connection strings, and known secrets, are hidden; the rest stays."""
    shown = Redaction(["hunter22"] if "key" in text else []).text(text)
    assert "hunter22" not in shown
    assert "ter22" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "text", ["http://host/path", "10:30 a@b.example", "sqlite:////tmp/a@b.db", "key_digest"]
)
def test_what_is_no_secret_stays(text):
    """Text that only resembles a secret is not hidden."""
    assert Redaction(["abc"]).text(text) == text


def test_no_secret_in_any_line(stream):
    """Secrets are hidden in nested values, in names, in tracebacks and in objects."""
    configure("info", stream, secrets=["hunter22"])
    log = structlog.get_logger()
    url = "amqp://u:other99@host"
    try:
        raise ValueError(f"cannot reach {url} with hunter22")
    except ValueError as error:
        log.exception("failed hunter22", error=error, deep={"urls": [url, (url, {url})]})
    log.info("set", password="other99", api_key=b"other99", attempt=3, hunter22=1)
    text = stream.getvalue()
    assert "hunter22" not in text
    assert "other99" not in text
    first, second = lines(stream)
    assert "ValueError: cannot reach amqp://u:***@host" in first["exception"]
    assert second["attempt"] == 3


def test_other_libraries_log_in_the_same_form(stream):
    """Records of ``logging`` and warnings are lines of JSON without secrets."""
    configure("info", stream, secrets=["hunter22"])
    logging.getLogger("kombu").warning("lost %s", "amqp://u:other99@host hunter22")
    logging.getLogger("kombu").info("not shown")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind hunter22", stacklevel=1)
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == (
        "lost amqp://u:***@host ***",
        "warning",
        "kombu",
    )
    assert "mind ***" in second["event"]


def test_level(stream):
    """Nothing below the level is logged, by eventsync or other libraries."""
    configure("error", stream)
    structlog.get_logger().warning("no")
    logging.getLogger("kombu").warning("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_terminal(stream):
    """On a terminal the lines are readable text, and hide secrets too."""
    terminal = Terminal()
    configure("info", terminal, secrets=["hunter22"])
    structlog.get_logger().info("broker", url="amqp://u:other99@host", what="hunter22")
    text = terminal.getvalue()
    assert "broker" in text
    assert not text.startswith("{")
    assert "other99" not in text
    assert "hunter22" not in text


def test_settings_know_their_secrets(monkeypatch):
    """The secrets of the settings are the passwords of broker URLs, also decoded, and the keys."""
    settings = load(
        broker="redis://:one%40one@a/0;redis://u:two2@b/0",
        keys="a:c2VjcmV0,b:b3RoZXI=",
    )
    assert settings.secrets() == ["one%40one", "one@one", "two2", "c2VjcmV0", "b3RoZXI="]
    assert load(broker="sqlite:///a@b:c.db").secrets() == []
