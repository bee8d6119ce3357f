"""The log of a process: its format, its level, and the redaction of secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

from eventsync.values.printable import printable, printable_json

__all__ = ["Redaction", "configure"]

_HIDDEN: Final = "***"
# The user and password of a URL, up to the last @ before its path.
_URL: Final = re.compile(r"(?<=://)([^\s/?#:]*):([^\s/?#]*)(?=@)")
# A password or token as a parameter in a URL or in a connection string.
_ARGUMENT: Final = re.compile(
    r"(?i)\b((?:[a-z_]*password|passwd|pwd|secret|token|api_?key)\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)"
)
_NAME: Final = re.compile(r"(?i)(password|passwd|secret|token|api_?key|authorization|credential)")
# Shorter secrets are not searched for, because they occur in ordinary words. In URLs they are
# hidden in any case.
_SHORTEST: Final = 4


class Redaction:
    """A structlog processor that hides secrets in log lines. Thread-safe.

    It hides passwords in URLs, the values of fields with names like ``password`` or ``token``, and
    every occurrence of each text in ``secrets``, also in nested values and tracebacks. Texts of
    fewer than four characters in ``secrets`` are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s for s in secrets if len(s) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __repr__(self) -> str:
        return "Redaction()"

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        return {self.text(str(name)): self._value(name, value) for name, value in event.items()}

    def text(self, text: str) -> str:
        """Return ``text`` with each secret replaced by ``***``."""
        text = _URL.sub(rf"\1:{_HIDDEN}", text)
        text = _ARGUMENT.sub(rf"\1{_HIDDEN}", text)
        return self._known.sub(_HIDDEN, text) if self._known else text

    def _value(self, name: Any, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(name, str) and _NAME.search(name):
            return _HIDDEN
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._value(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value("", item) for item in value]
        return self.text(value if isinstance(value, str) else str(value))


def configure(level: str, stream: TextIO, *, secrets: Iterable[str] = ()) -> None:
    """Configure the log of this process: readable text on a terminal, else JSON lines.

    ``stream``: where the log is written. ``level``: ``debug``, ``info``, ``warning`` or ``error``.
    ``secrets``: texts to hide in all log lines. The log records of other libraries, and Python's
    warnings, are written in the same format. Their level is ``info`` if ``level`` is ``debug``,
    ``error`` if ``level`` is ``error``, else ``warning``. A later call replaces the configuration.
    """
    terminal = stream.isatty()
    redaction = Redaction(secrets)
    first: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.processors.format_exc_info,
    ]
    last: list[structlog.typing.Processor] = [redaction, _renderer(terminal)]
    if terminal:
        last.insert(1, _escape_controls)
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


def _escape_controls(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape the control characters in texts, which a terminal would obey."""
    return {
        printable(name): printable(value, lines=name == "exception")
        if isinstance(value, str)
        else value
        for name, value in event.items()
    }


def _renderer(terminal: bool) -> structlog.typing.Processor:
    if terminal:
        return structlog.dev.ConsoleRenderer()
    render = structlog.processors.JSONRenderer(ensure_ascii=False)

    def render_printable(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        return printable_json(str(render(logger, method, event)))

    return render_printable
