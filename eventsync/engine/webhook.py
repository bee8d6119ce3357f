"""Webhooks: what a service tells over HTTP, checked, kept in the index, and told as hints."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import secrets as random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Protocol

from eventsync.engine.change_source import Changes, ChangeSource, SourceState
from eventsync.errors import RecordError, SignatureError, StoreUnavailableError
from eventsync.index import Index
from eventsync.records.record import RecordType

__all__ = [
    "Hint",
    "HintBox",
    "Hinted",
    "StandardWebhook",
    "Webhook",
    "WebhookSource",
    "check_hmac",
    "parse_json",
]

_MARK: Final = "hint/"
_MOST: Final = 10_000
"""So many hints wait at most: a capture that has stopped does not fill the index."""
_SOME: Final = 2000
_TOLERANCE: Final = 300.0
# The pause between two looks into the index while nothing waits.
_PAUSE: Final = 0.1


@dataclass(slots=True, frozen=True)
class Hint:
    """What a webhook says of one object that was written.

    - ``what``: the name of a record type, or of the shared type, for example ``Issue``.
    - ``place``: the project that holds the object; empty if it is not known.
    - ``id``: the id that the service has given to it; empty if it is not known.
    - ``key``: the canonical key of the record, if the service knows it.
    """

    what: str
    place: str = ""
    id: str = ""
    key: str = ""


class Webhook(ABC):
    """Checks and reads the webhooks of one kind of service. Stateless, hence thread-safe.

    ``headers``: the headers of the request, by lower-case name. ``body``: its body as it came.
    """

    @abstractmethod
    def check(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
    ) -> None:
        """Raise ``SignatureError`` unless the sender knows one of the secrets.

        ``now``: the time in seconds since the epoch, for signatures that expire.
        """

    @abstractmethod
    def hints(self, headers: Mapping[str, str], body: bytes) -> Collection[Hint]:
        """Return what the request says; nothing if it is about nothing that a store may hold.

        Raises ``RecordError`` if the body does not have the documented form.
        """


class StandardWebhook(Webhook):
    """Webhooks that are signed as the specification *Standard Webhooks* says.

    The signature is the HMAC-SHA256 of id, time and body, and holds for five minutes. The body is a
    JSON object ``{"type": "Product", "key": "7"}``, or a list of such objects. Without ``key``, the
    records of the type that changed lately are looked for. A service with other bodies has a
    subclass that overrides ``hints``.
    """

    def check(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
    ) -> None:
        id, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not moment.isdecimal() or len(moment) > 12:
            raise SignatureError("the header webhook-timestamp is missing or is no time")
        if abs(now - int(moment)) > _TOLERANCE:
            raise SignatureError("the signature is too old, or the clocks differ")
        signed = b".".join([id.encode(), moment.encode(), body])
        given = headers.get("webhook-signature", "").split()
        for secret in secrets:
            for key in _standard_keys(secret):
                digest = hmac.digest(key, signed, hashlib.sha256)
                right = f"v1,{base64.b64encode(digest).decode()}"
                if any(hmac.compare_digest(right.encode(), one.encode()) for one in given):
                    return
        raise SignatureError("the signature is wrong or missing")

    def hints(self, headers: Mapping[str, str], body: bytes) -> Collection[Hint]:
        parsed = parse_json(body)
        found = []
        for item in parsed if isinstance(parsed, list) else [parsed]:
            texts = item if isinstance(item, dict) else {}
            what, key, id = (texts.get(name, "") for name in ("type", "key", "id"))
            if not what or not all(isinstance(one, str) for one in (what, key, id)):
                raise RecordError('the body must be an object like {"type": "Product", "key": "7"}')
            found.append(Hint(what, id=id, key=key))
        return found


def _standard_keys(secret: str) -> list[bytes]:
    """Return the keys that a secret may stand for: itself, and what it encodes in base 64."""
    keys = [secret.encode()]
    with contextlib.suppress(binascii.Error):  # it encodes nothing
        keys.append(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    return [key for key in keys if key]


def check_hmac(given: str, body: bytes, secrets: Sequence[str], *, prefix: str) -> None:
    """Raise ``SignatureError`` unless ``given`` is the hexadecimal HMAC-SHA256 of ``body``."""
    for secret in secrets:
        right = prefix + hmac.digest(secret.encode(), body, hashlib.sha256).hex()
        if hmac.compare_digest(right.encode(), given.encode()):
            return
    raise SignatureError("the signature is wrong or missing")


def parse_json(body: bytes) -> Any:
    """Return the JSON value of a body. Raises ``RecordError``."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RecordError("the body is not JSON") from error


class HintBox:
    """The hints that were received and are not captured yet, kept in the index of a store."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def put(self, hints: Iterable[Hint]) -> None:
        """Keep hints; durable on return. Raises ``StoreUnavailableError`` if too many wait."""
        marks = {}
        for number, hint in enumerate(dict.fromkeys(hints)):
            name = f"{_MARK}{time.time_ns():020d}-{number:04d}-{random.token_hex(4)}"
            marks[name] = json.dumps(asdict(hint))
        if marks and len(self._index.marks(_MARK)) + len(marks) > _MOST:
            raise StoreUnavailableError(f"more than {_MOST:,} webhooks wait for the capture")
        if marks:
            self._index.save_marks(marks)

    def waiting(self) -> dict[str, Hint]:
        """Return the hints that wait, by the name under which they are kept, oldest first."""
        marks = self._index.marks(_MARK)
        return {name: Hint(**json.loads(marks[name])) for name in sorted(marks)}

    def drop(self, names: Iterable[str]) -> None:
        """Forget hints. Idempotent."""
        if marks := dict.fromkeys(names, ""):
            self._index.save_marks(marks)


class Hinted(Protocol):
    """What the source needs of an accessor."""

    type: RecordType

    @property
    def index(self) -> Index:
        """The version index of the store."""

    def concerns(self, hint: Hint) -> bool:
        """Return whether a hint may be about a record of this accessor."""

    def hinted_key(self, hint: Hint) -> str | None:
        """Return the key of the record; ``None`` if it is not known, as for a new record."""


class WebhookSource(ChangeSource):
    """Tells what the webhooks of a service said. They are received by ``--listen``.

    ``accessors``: those of the store that webhooks can be about.
    """

    kind = "webhooks"
    complete = False
    settle_every: ClassVar[float] = 0.0

    def __init__(
        self, accessors: Sequence[Hinted], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._accessors = list(accessors)
        self._monotonic = monotonic

    @property
    def _box(self) -> HintBox:
        return HintBox(self._accessors[0].index)

    def open(self, mark: str) -> str:
        self._box.waiting()  # the index answers
        return mark

    def changes(self, mark: str, *, wait: float) -> Changes:
        until = self._monotonic() + wait
        while not (waiting := self._box.waiting()) and (left := until - self._monotonic()) > 0:
            time.sleep(min(left, _PAUSE))
        names = list(waiting)[:_SOME]
        keys: dict[str, dict[str, float | None]] = {}
        recent: set[str] = set()
        unreadable: list[tuple[str, RecordError]] = []
        for name in names:
            for accessor in self._accessors:
                if not accessor.concerns(waiting[name]):
                    continue
                try:
                    key = accessor.hinted_key(waiting[name])
                except RecordError as error:
                    unreadable.append((accessor.type.name, error))
                    continue
                if key is None:
                    recent.add(accessor.type.name)
                else:
                    keys.setdefault(accessor.type.name, {})[key] = None
        return Changes(
            mark,
            keys,
            unreadable=unreadable,
            behind=len(waiting) > len(names),
            receipt=names,
            recent=sorted(recent),
        )

    def settle(self, changes: Changes) -> None:
        self._box.drop(changes.receipt or ())

    def close(self) -> None:
        """Do nothing: the store keeps the connections."""

    def state(self) -> SourceState:
        return SourceState(installed=True, waiting=len(self._box.waiting()))
