"""The log of a process: its form, its level, and that no secret is ever in it.

It owns how lines are written. It must not know who logs, nor what.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

__all__ = ["Redaction", "configure"]

_HIDDEN: Final = "***"
# The user and password of a URL, up to the last @ before its path.
_URL: Final = re.compile(r"(?<=://)([^\s/?#:]*):([^\s/?#]*)(?=@)")
# A password that is an argument of a URL or of a connection string.
_ARGUMENT: Final = re.compile(
    r"(?i)\b((?:[a-z_]*password|passwd|pwd|secret|token|api_?key)\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)"
)
_NAME: Final = re.compile(r"(?i)(password|passwd|secret|token|api_?key|authorization|credential)")
# Shorter ones stand in many an innocent word; in a URL they are hidden all the same.
_SHORTEST: Final = 4


class Redaction:
    """A structlog processor that hides secrets in whatever is about to be logged.

    It hides the passwords of URLs, values under names such as ``password`` or ``token``, and each
    of ``secrets`` wherever it stands, in values of any depth and in tracebacks. Thread-safe.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s for s in secrets if len(s) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __repr__(self) -> str:
        return "Redaction()"

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        return {self.text(str(name)): self._value(name, held) for name, held in event.items()}

    def text(self, text: str) -> str:
        """A text without its secrets."""
        text = _URL.sub(rf"\1:{_HIDDEN}", text)
        text = _ARGUMENT.sub(rf"\1{_HIDDEN}", text)
        return self._known.sub(_HIDDEN, text) if self._known else text

    def _value(self, name: Any, held: Any) -> Any:
        if held is None or isinstance(held, bool | int | float):
            return held
        if isinstance(name, str) and _NAME.search(name):
            return _HIDDEN
        if isinstance(held, Mapping):
            return {self.text(str(key)): self._value(key, value) for key, value in held.items()}
        if isinstance(held, list | tuple | set | frozenset):
            return [self._value("", value) for value in held]
        return self.text(held if isinstance(held, str) else str(held))


def configure(level: str, stream: TextIO, *, secrets: Iterable[str] = ()) -> None:
    """Have this process log to ``stream``: for people on a terminal, as JSON lines elsewhere.

    ``level``: ``debug``, ``info``, ``warning`` or ``error``. ``secrets``: texts that are hidden
    wherever they stand. What other libraries log through ``logging``, and Python's warnings, come
    in the same form, from ``warning`` on, or from ``level`` on if that is higher; with ``debug``
    from ``info`` on. Idempotent; the last call counts.
    """
    terminal = stream.isatty()
    redaction = Redaction(secrets)
    first: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.processors.format_exc_info,
    ]
    last: list[structlog.typing.Processor] = [redaction, _renderer(terminal)]
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *first],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    own = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if own == logging.DEBUG else max(own, logging.WARNING))
    logging.captureWarnings(True)


def _renderer(terminal: bool) -> structlog.typing.Processor:
    if terminal:
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer(ensure_ascii=False)
