"""Settings: from the environment, files and arguments."""

from __future__ import annotations

import pytest
from project.settings_page import PAGE, page

from eventsync.config import load, location, unread
from eventsync.errors import ConfigError


def test_letters_are_kept_for_less_than_tombstones():
    """A retention of dead letters beyond that of tombstones is refused, with the reason."""
    with pytest.raises(ConfigError, match="could not be replayed"):
        load(letter_retention=11 * 86_400.0)


def test_settings_from_files(tmp_path, monkeypatch):
    """A secret may lie in a file; a variable overrides the file, and an argument overrides both."""
    (tmp_path / "eventsync_broker").write_text("redis://:hunter22@files/0\n", encoding="utf-8")
    (tmp_path / "eventsync_store_crm_2").write_text("sqlite:///files.db\n", encoding="utf-8")
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(tmp_path))
    assert load().broker.get_secret_value() == "redis://:hunter22@files/0"
    assert load().secrets() == ["hunter22"]
    assert location("crm-2", "sqlite:///default.db") == "sqlite:///files.db"
    monkeypatch.setenv("EVENTSYNC_BROKER", "redis://environment/0")
    monkeypatch.setenv("EVENTSYNC_STORE_CRM_2", "sqlite:///environment.db")
    assert load().broker.get_secret_value() == "redis://environment/0"
    assert load(broker="redis://given/0").broker.get_secret_value() == "redis://given/0"
    assert location("crm-2") == "sqlite:///environment.db"


def test_locations_that_are_said_nowhere(tmp_path, monkeypatch):
    """Without a location the default counts; without a default the error says what to set."""
    assert location("crm", "sqlite:///default.db") == "sqlite:///default.db"
    with pytest.raises(ConfigError, match="EVENTSYNC_STORE_CRM"):
        location("crm")
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="EVENTSYNC_SECRETS_DIR"):
        location("crm", "sqlite:///default.db")


def test_only_prefixed_variables_count(monkeypatch):
    """A variable ``BROKER`` without the prefix is ignored."""
    monkeypatch.setenv("BROKER", "amqp://somebody.else/")
    assert load().broker.get_secret_value().startswith("sqlite:")


def test_settings_that_nothing_reads_are_named(tmp_path, monkeypatch):
    """A misspelt variable or file is named, with the nearest setting and without its value."""
    (tmp_path / "eventsync_kyes").write_text("hunter22", encoding="utf-8")
    (tmp_path / "eventsync_broker").write_text("redis://h/0", encoding="utf-8")
    (tmp_path / "password").write_text("hunter22", encoding="utf-8")
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("EVENTSYNC_STALL_AFTR", "7")
    monkeypatch.setenv("EVENTSYNC_STORE_TYPO", "redis://:hunter22@h/0")
    monkeypatch.setenv("EVENTSYNC_STORE_TYPED", "redis://h/0")
    monkeypatch.setenv("EVENTSYNC_GRACE", "3")
    location("typed")
    assert unread() == [
        "nothing reads the variable EVENTSYNC_STALL_AFTR; do you mean EVENTSYNC_STALL_AFTER?",
        "nothing reads the variable EVENTSYNC_STORE_TYPO; do you mean EVENTSYNC_STORE_TYPED?",
        "nothing reads the file eventsync_kyes; do you mean eventsync_keys?",
    ]


def test_the_page_of_settings_is_that_of_the_code():
    """``python tests/project/settings_page.py --write`` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()
