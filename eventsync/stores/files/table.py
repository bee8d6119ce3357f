"""A CSV file with a header: each row is one record."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from eventsync.errors import ConfigError, EventSyncError, RecordError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files.single_file import BOM, Content, Segment, SingleFileAccessor
from eventsync.stores.files.text import Cells

__all__ = ["CsvAccessor"]

R = TypeVar("R", bound=Record)
_LONGEST_CELL: Final = 1 << 24


class _OpenCellError(csv.Error):
    """The file ends within a quoted cell."""


class CsvAccessor(SingleFileAccessor[R]):
    """Records of one type as the rows of a CSV file with a header.

    An existing file keeps its further columns, the order of its columns and rows, the text of rows
    that do not change, and its line ends. The file is replaced whole, once for each batch.

    ``null``: the cell text that means ``None`` in an optional column of text, of bytes or with a
    conversion. It keeps ``None`` and an empty text apart; a text that looks like it is written with
    a backslash before it. In every other optional column an empty cell means ``None``. If empty
    cells mean ``None`` in the text columns of your file too, pass ``null=""``: an empty text in an
    optional field is then refused.

    Numbers, dates and times are written as a person writes them, booleans as ``true`` and
    ``false``, bytes in base64, lists and dicts as JSON. A conversion of the view receives the text
    of the cell.

    ``formulas``: with ``False``, a text that a spreadsheet would take for a formula, because it
    begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return, is written with an
    apostrophe before it, and read back without it. Use it if people open the file in a spreadsheet
    and others may write the texts. Cells of columns that the view does not name stay as they are.

    ``delimiter``, ``quote``, ``encoding``: of the file. ``create``: create the folder and the file
    if they do not exist. The version index is beside the file, ``.<name>.eventsync.db``, unless the
    store names another.

    If the store held records before, a missing or empty file counts as a failure, not as a file
    without records. A file with only its header means that all records were deleted on purpose.
    """

    def __init__(
        self,
        record_type: type[R],
        path: str | os.PathLike[str],
        *,
        view: View | None = None,
        delimiter: str = ",",
        quote: str = '"',
        null: str = "\\N",
        formulas: bool = True,
        encoding: str = "utf-8",
        create: bool = True,
    ) -> None:
        super().__init__(record_type, path, view=view, create=create, encoding=encoding)
        for what, sign in (("delimiter", delimiter), ("quote", quote)):
            if len(sign) != 1 or sign in "\r\n" or delimiter == quote:
                raise ConfigError(
                    f"{what}={sign!r}: expected one character, not a line end, and delimiter and "
                    "quote must differ"
                )
        self._delimiter, self._quote = delimiter, quote
        self.codec = Cells(self.view, null, formulas=formulas)
        for column in self.view.names.values():
            # Whoever adds a column leaves its cells empty. Not every field reads an empty cell.
            with suppress(EventSyncError):
                self.view.fills |= self.view.to_record(self.codec.decode({column: ""}))

    def empty(self) -> Content:
        columns = [*self.view.names.values(), *self.view.constant]
        return Content(header=self._row(columns, "\n"), columns=columns)

    def format(self, data: Mapping[str, Any], content: Content) -> str:
        return self._row([data.get(column, "") for column in content.columns], content.line_end)

    def parse(self, text: str) -> Content:
        content = Content()
        if not text.strip(BOM):
            return content
        bom = BOM if text.startswith(BOM) else ""
        rows = self._rows(text[len(bom) :])
        _, header, cells = next(rows)
        content.header = bom + header
        content.line_end = "\r\n" if header.endswith("\r\n") else "\n"
        content.columns = self._checked_columns(cells)
        if not header.endswith(("\n", "\r")):
            content.header += content.line_end
        for number, (line, row, cells) in enumerate(rows, start=1):
            segment = content.segments[number] = Segment(row, line=line)
            if cells == []:
                continue  # a blank line
            if isinstance(cells, list) and len(cells) == len(content.columns):
                segment.data = dict(zip(content.columns, cells, strict=True))
                continue
            # Not raised, since a file may have as many wrong rows as it has signs.
            error = self.placed(segment, self._misfit(cells, content.columns))
            content.unreadable.append(error)
            if isinstance(cells, _OpenCellError):
                content.open = error
        return content

    def _misfit(self, cells: list[str] | csv.Error, columns: list[str]) -> RecordError:
        """Return what is wrong with a row."""
        if isinstance(cells, _OpenCellError):
            return RecordError(
                f"a quote ({self._quote}) opens a cell here, and nothing closes it",
                hint="close the cell, or remove the quote",
            )
        if isinstance(cells, csv.Error):
            return RecordError(f"not CSV: {cells}", hint="correct the row or remove it")
        return RecordError(
            f"the row has {len(cells)} cells, but the header has {len(columns)}",
            hint="correct the row or remove it",
        )

    def _checked_columns(self, cells: list[str] | csv.Error) -> list[str]:
        if isinstance(cells, csv.Error):
            raise self._bad_header(f"it is not CSV: {cells}")
        needed = [*self.view.names.values(), *self.view.constant]
        for column in needed:
            if column not in cells:
                raise self._bad_header(
                    f"it lacks the column {column!r}; it has {', '.join(map(repr, cells))}"
                )
        seen: set[str] = set()
        for column in cells:
            if column in seen:
                raise self._bad_header(f"it has the column {column!r} twice")
            seen.add(column)
        return cells

    def _bad_header(self, message: str) -> EventSyncError:
        return self.broken(
            f"the header of {self._path}: {message}",
            hint="add the column, map the field with View(rename=...) or leave it out with "
            "View(omit=...)",
        )

    def _rows(self, text: str) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
        """Yield each row: the number of its first line, its text, and its cells or an error."""
        if csv.field_size_limit() < _LONGEST_CELL:
            # The limit holds for the whole process, so it is only ever raised.
            csv.field_size_limit(_LONGEST_CELL)
        taken: list[str] = []
        ended = False

        def lines() -> Iterator[str]:
            nonlocal ended
            for line in io.StringIO(text, newline=""):
                taken.append(line)
                yield line
            ended = True

        reader = csv.reader(lines(), delimiter=self._delimiter, quotechar=self._quote, strict=True)
        line = 1
        while True:
            cells: list[str] | csv.Error
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # The reader only asks for lines after the last one if a cell is still open.
                cells = _OpenCellError(str(error)) if ended else error
            yield line, "".join(taken), cells
            line += len(taken)
            taken.clear()

    def _row(self, cells: list[str], end: str) -> str:
        text = io.StringIO(newline="")
        # With this line end the csv module quotes every cell that contains "\r" or "\n".
        csv.writer(
            text, delimiter=self._delimiter, quotechar=self._quote, lineterminator="\r\n"
        ).writerow(cells)
        return text.getvalue()[:-2] + end
