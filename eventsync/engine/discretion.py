"""Discretion: the values of secret fields are kept out of the errors of stores.

A server may quote what it refuses. The errors of stores become log lines, dead letters and the
output of commands, so the values of secret fields are replaced where a write fails. A store that
knows how its server quotes values leaves out more, for example those of other records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from eventsync.engine.isolation import item_error
from eventsync.errors import EventSyncError
from eventsync.records.record_type import RecordType

__all__ = ["HIDDEN", "discreet", "secret_fields"]

HIDDEN: Final = "***"
# A shorter text is not searched for: it may be part of any word.
_SHORTEST: Final = 4
_ESCAPED: Final = {"\n": r"(?:n|\n)", "\r": r"(?:r|\r)", "\t": r"(?:t|\t)"}


def secret_fields(type: RecordType) -> tuple[str, ...]:
    """Return the names of the secret fields of a record type."""
    return tuple(name for name, field in type.fields.items() if field.secret)


@contextmanager
def discreet(
    names: tuple[str, ...], rows: Callable[[], Iterable[Mapping[str, Any] | None]]
) -> Iterator[None]:
    """Replace the values of secret fields in the error that the block raises.

    ``names``: the names of the secret fields. ``rows``: returns the field values that the error may
    quote. The error that caused the raised one is left out, since its text is the server's.
    """
    if not names:
        yield
        return
    try:
        yield
    except OSError:
        raise  # it says what the system refused, and quotes no value
    except Exception as error:
        known = item_error(error)
        _hide(known, names, rows())
        if known is error:
            known.__cause__, known.__suppress_context__ = None, True
            raise
        raise known from None


def _hide(
    error: EventSyncError, names: tuple[str, ...], rows: Iterable[Mapping[str, Any] | None]
) -> None:
    texts = {text for row in rows if row for name in names for text in _texts(row.get(name))}
    for text in sorted(texts, key=len, reverse=True):
        pattern = "".join(map(_escapable, text))
        error.message = re.sub(pattern, HIDDEN, error.message)
        error.hint = re.sub(pattern, HIDDEN, error.hint)
    error.args = (error.message,)


def _escapable(sign: str) -> str:
    """Return a pattern of a sign, which may be escaped or doubled any number of times."""
    if sign in _ESCAPED:
        return rf"(?:\\*{_ESCAPED[sign]})"
    quoted = re.escape(sign)
    return rf"\\*{quoted}{{1,2}}" if sign in "'\"\\" else quoted


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value that a server may quote."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        shown = value.hex() if isinstance(value, bytes) else str(value)
        if len(shown) >= _SHORTEST:
            yield shown
