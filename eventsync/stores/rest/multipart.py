"""Uploads: bodies of the type ``multipart/form-data`` (RFC 7578)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from eventsync.errors import ConfigError

try:
    import httpx2 as httpx
except ImportError as error:  # pragma: no cover
    raise ConfigError(
        "the REST store needs httpx2", hint="pip install 'eventsync[rest]'"
    ) from error

__all__ = ["Upload", "multipart"]


class Upload(NamedTuple):
    """A body that is not JSON, and its media type."""

    content: bytes
    type: str


def multipart(
    field: str, name: str, type: str, content: bytes, more: Mapping[str, str] | None = None
) -> Upload:
    """Return the body of a form with one file in it.

    ``field``: the name of the form field with the file. ``name``, ``type``: those of the file.
    ``more``: further fields of the form.
    """
    form = httpx.Request(
        "POST", "http://form.invalid", data=more or {}, files={field: (name, content, type)}
    )
    return Upload(form.read(), form.headers["content-type"])
