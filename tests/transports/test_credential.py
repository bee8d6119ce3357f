"""Passwords in broker URLs are hidden and known as secrets, also where the URL is mistyped."""

from __future__ import annotations

import pytest

from eventsync.broker.bus import Bus
from eventsync.errors import EventSyncError
from eventsync.transports import schemes
from eventsync.transports.credential import masked, passwords

SECRET = "s3cret-of-nobody"
FORMS = [
    "redis://u:{}@h/0",
    "redis//u:{}@h/0",
    "redis:/u:{}@h/0",
    "redis:u:{}@h/0",
    "redis;//u:{}@h/0",
    "//u:{}@h/0",
    "u:{}@h:6379",
    "amqp://u:{}@h1//;amqp://v:{}@h2//",
    "amqp://u:a/{}@h//",
    "amqp://u:a@{}@h//",
    "amqp://u:a?{}@h//",
    "amqp://u:[{}@h//",
    "sentinel://:{}@h:1,h2:2/service",
]
WITHOUT_HOST = ["redis://u:{}", "redis://u:{}/0", "amqps//u:{}", "amqp://127.0.0.1:{}//"]


@pytest.mark.parametrize("form", [*FORMS, *WITHOUT_HOST])
def test_no_password_is_shown(form: str) -> None:
    """Neither the shown URL nor the error of connecting contains the password."""
    url = form.replace("{}", SECRET)
    bus = Bus(url)
    with pytest.raises(EventSyncError) as caught:
        bus.open()
    for text in (masked(url), bus.shown_url, bus.transport, repr(bus), str(caught.value)):
        assert SECRET not in text


@pytest.mark.parametrize("form", FORMS)
def test_passwords_are_known(form: str) -> None:
    """The password is found, so that a log line which contains it can be redacted."""
    url = form.replace("{}", SECRET)
    assert any(SECRET in part for part in passwords(url))


@pytest.mark.parametrize(
    "url",
    [
        "redis://h1:1,h2:2/0",
        "redis://[::1]:6379/0?db=1",
        "amqp://u@h//",
        "sqlite:///a@b:c.db",
        "localhost:6379/0",
        "memory:",
        "carrier-pigeon://x",
    ],
)
def test_a_url_without_a_password_is_shown(url: str) -> None:
    """A URL without a password is shown as it is."""
    assert schemes.masked(url) == url
    assert passwords(url) == []


@pytest.mark.parametrize(
    ("url", "scheme"),
    [("redis://h", "redis"), ("redis//h", ""), ("h:6379", ""), ("memory:", "memory"), ("", "")],
)
def test_scheme(url: str, scheme: str) -> None:
    """A host with a port is not taken for a scheme."""
    assert schemes.scheme_of(url) == scheme
