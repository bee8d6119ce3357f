"""A reader of records in JSON Lines and CSV.

A wrong line is reported, and reading continues with the next line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

from eventsync.errors import RecordError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files.text import Cells, Members, parse

__all__ = ["Format", "RecordLine", "format_of", "read_lines"]


class Format(StrEnum):
    """The format of a file with records."""

    JSONL = "jsonl"
    CSV = "csv"


@dataclass(slots=True)
class RecordLine:
    """One record of the input, or a line that holds no valid record.

    ``number``: the number of the line, counted from 1; in CSV, of the last line of the record.
    ``offset``: the number of bytes up to the end of this line. ``record``: ``None`` in the case of
    an error. ``key``: the key of ``record``. ``error``: empty if the record is valid.
    """

    number: int
    offset: int
    record: Record | None = None
    key: str = ""
    error: str = ""


def format_of(name: str) -> Format:
    """Return the format that a file name implies: CSV if it ends in ``.csv``, else JSON Lines."""
    return Format.CSV if name.lower().endswith(".csv") else Format.JSONL


def read_lines(
    stream: BinaryIO,
    format: Format,
    record_type: type[Record],
    *,
    partial: bool = False,
    key_only: bool = False,
) -> Iterator[RecordLine]:
    """Yield a ``RecordLine`` for each record in ``stream``, also for each line that is wrong.

    ``partial``: allow lines that leave out fields. ``key_only``: read only the key fields, and
    ignore all others. Values are written as in the file stores. An empty CSV cell means ``None`` in
    an optional field, the empty text in a text field, and no value in any other field. Raises
    ``RecordError`` if a CSV header names an unknown field, or a field twice.
    """
    reader = _read_csv if format is Format.CSV else _read_json
    names = record_type.__record__.keys
    for line, data in reader(_CountedLines(stream), record_type, key_only):
        if data is not None:
            missing = [name for name in names if name not in data]
            if key_only:
                data = {name: data[name] for name in names if name in data}
            if missing:
                line.error = f"the key is missing: {', '.join(missing)}"
                yield line
                continue
            try:
                line.record = record_type.load(data, partial=partial or key_only)
                line.key = line.record.key  # raises if the key is too long
            except RecordError as error:
                line.record, line.error = None, str(error)
        yield line


class _CountedLines:
    """An iterator over the lines of a stream, as text, that counts the lines and bytes.

    ``number``, ``offset``: the lines and bytes read so far. A line that is not UTF-8 is yielded
    with replacement characters, and ``encoding_error`` describes the error.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.number = 0
        self.offset = 0
        self.encoding_error = ""

    def __iter__(self) -> Iterator[str]:
        for raw in self._stream:
            self.number += 1
            self.offset += len(raw)
            try:
                text = raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self.encoding_error = f"byte {error.start + 1} is not UTF-8: {error.reason}"
                text = raw.decode("utf-8", "replace")
            yield text

    def line(self, error: str = "") -> RecordLine:
        """Return a ``RecordLine`` without a record for the line that was read last.

        ``error``: the error of this line. An encoding error of the line takes precedence.
        """
        encoding_error, self.encoding_error = self.encoding_error, ""
        return RecordLine(self.number, self.offset, error=encoding_error or error)


def _read_json(
    lines: _CountedLines, record_type: type[Record], key_only: bool
) -> Iterator[tuple[RecordLine, Mapping[str, Any] | None]]:
    fields = record_type.__record__.fields
    members = Members(View().bind(record_type.__record__))
    for text in lines:
        if not text.strip():
            continue
        data, error = None, ""
        try:
            parsed = parse(text)
            unknown = [name for name in parsed if name not in fields and not key_only]
            if unknown:
                raise record_type.__record__.unknown(unknown)
            data = members.decode(parsed)
        except RecordError as problem:
            # Remove the line number of the parser, which is always 1. The caller reports the real
            # one.
            error = str(problem).replace("not JSON: line 1, column", "not JSON: column")
        line = lines.line(error)
        yield line, None if line.error else data


def _read_csv(
    lines: _CountedLines, record_type: type[Record], key_only: bool
) -> Iterator[tuple[RecordLine, Mapping[str, Any] | None]]:
    cells = Cells(View().bind(record_type.__record__), null="")
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        data, error = None, ""
        try:
            row = next(reader)
            if not row:
                continue
            if header is None:
                header = _checked_header(row, record_type, key_only)
                continue
            if len(row) != len(header):
                error = f"{len(row)} cells, but the header has {len(header)} columns"
            else:
                data = cells.decode(
                    _cells_with_value(dict(zip(header, row, strict=True)), record_type)
                )
        except StopIteration:
            return
        except csv.Error as problem:
            error = f"the line is not CSV: {problem}"
        except RecordError as problem:
            if header is None:
                raise
            error = str(problem)
        line = lines.line(error)
        yield line, None if line.error else data


def _checked_header(header: list[str], record_type: type[Record], key_only: bool) -> list[str]:
    unknown = [name for name in header if name not in record_type.__record__.fields]
    if unknown and not key_only:
        raise record_type.__record__.unknown(unknown)
    if len(set(header)) < len(header):
        raise RecordError(f"the CSV header names a column twice: {', '.join(header)}")
    return header


def _cells_with_value(row: Mapping[str, str], record_type: type[Record]) -> dict[str, str]:
    """Return the cells of a row that are values of a field.

    Unknown columns are left out, and empty cells of fields that are neither optional nor text.
    """
    fields = record_type.__record__.fields
    return {
        name: cell
        for name, cell in row.items()
        if name in fields and (cell or fields[name].optional or fields[name].type in (str, bytes))
    }
