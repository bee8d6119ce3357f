"""The answer to a request, and the JSON in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventsync.errors import RecordError
from eventsync.stores.rest.unreadable import DECODER, refuse_many

__all__ = ["Answer"]


@dataclass(slots=True, frozen=True)
class Answer:
    """The answer to a request: the status, the headers by lower-case name, and the body."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    def json(self) -> Any:
        """Return the body as JSON; numbers with a point are decimals. Raises ``RecordError``."""
        try:
            text = self.content.decode("utf-8-sig").strip(" \t\r\n")
            refuse_many(text)
            return DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{self.url}: the answer is not JSON: {error}") from error

    @property
    def etag(self) -> str | None:
        """The strong entity tag of the object (RFC 9110), ``None`` if there is none."""
        tag = self.headers.get("etag", "")
        return None if not tag or tag.startswith("W/") else tag
