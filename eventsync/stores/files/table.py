"""Records as the rows of a CSV file.

It owns the header, the cells and the rows' text. It knows nothing of other files.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from eventsync.errors import ConfigError, EventSyncError, RecordError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files.lines import Content, OneFile, Piece
from eventsync.stores.files.text import Cells

__all__ = ["CsvAccessor"]

R = TypeVar("R", bound=Record)
_BOM: Final = "\ufeff"
_LONGEST_CELL: Final = 1 << 24


class CsvAccessor(OneFile[R]):
    """Records of one type as the rows of a CSV file with a header.

    An existing file is used as it stands: further columns, the order of columns and rows, the text
    of rows that do not change, the line ends. The file is replaced whole, once for each batch.

    ``null``: what stands for ``None`` in an optional column of text (or bytes, or with a
    conversion), so that ``None`` and an empty text both come back as they were; a text that looks
    like it gets a backslash before it. In every other optional column an empty cell is ``None``.
    Where a file has empty cells for ``None`` in columns of text too, say ``null=""``: an empty text
    in an optional field is then refused. Numbers, dates and the like are as a person writes them,
    booleans ``true`` and ``false``, bytes base64, lists and dicts JSON. A conversion of the view
    gets a cell's text.

    ``delimiter``, ``quote``, ``encoding``: of the file. ``create``: create the folder and the file
    if they are not there. The version index is beside the file, ``.<name>.eventsync.db``, unless
    the store names another.

    A file that is missing or empty where records were before is not taken for an empty store; one
    of which only the header is left is.
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
        encoding: str = "utf-8",
        create: bool = True,
    ) -> None:
        super().__init__(record_type, path, view=view, create=create, encoding=encoding)
        for what, sign in (("delimiter", delimiter), ("quote", quote)):
            if len(sign) != 1 or sign in "\r\n" or delimiter == quote:
                raise ConfigError(f"{what}={sign!r}: it has to be one character of its own")
        self._delimiter, self._quote = delimiter, quote
        self._cells = Cells(self.view, null)

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        return self._cells.encode(stored)

    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return self._cells.decode(data)

    def empty(self) -> Content:
        columns = [*self.view.names.values(), *self.view.constant]
        return Content(head=self._row(columns, "\n"), columns=columns)

    def line(self, data: Mapping[str, Any], content: Content) -> str:
        return self._row([data.get(column, "") for column in content.columns], content.end)

    def parse(self, text: str) -> Content:
        content = Content()
        if not text.strip(_BOM):
            return content
        bom = _BOM if text.startswith(_BOM) else ""
        rows = self._rows(text[len(bom) :])
        _, header, cells = next(rows)
        content.head = bom + header
        content.end = "\r\n" if header.endswith("\r\n") else "\n"
        content.columns = self._checked_columns(cells)
        if not header.endswith(("\n", "\r")):
            content.head += content.end
        for number, (line, row, cells) in enumerate(rows, start=1):
            piece = content.pieces[number] = Piece(row, line=line)
            if cells == []:
                continue  # a blank line
            try:
                with self._located(piece):
                    piece.data = self._data(cells, content.columns)
            except RecordError as error:
                content.lost.append(error)
        return content

    def _data(self, cells: list[str] | csv.Error, columns: list[str]) -> dict[str, Any]:
        if isinstance(cells, csv.Error):
            raise RecordError(f"not CSV: {cells}", hint="mend the row or remove it")
        if len(cells) != len(columns):
            raise RecordError(
                f"the row has {len(cells)} cells, the header {len(columns)}",
                hint="mend the row or remove it",
            )
        return dict(zip(columns, cells, strict=True))

    def _checked_columns(self, cells: list[str] | csv.Error) -> list[str]:
        if isinstance(cells, csv.Error):
            raise self._bad_header(f"it is not CSV: {cells}")
        needed = [*self.view.names.values(), *self.view.constant]
        for column in needed:
            if column not in cells:
                raise self._bad_header(
                    f"it lacks the column {column!r}; it has {', '.join(map(repr, cells))}"
                )
        for column in cells:
            if cells.count(column) > 1:
                raise self._bad_header(f"it has the column {column!r} twice")
        return cells

    def _bad_header(self, message: str) -> EventSyncError:
        return self.broken(
            f"the header of {self._path}: {message}",
            hint="add the column, map the field with View(rename=...) or leave it out with "
            "View(omit=...)",
        )

    def _rows(self, text: str) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
        """Each row: the number of its first line, its text as it stands, and its cells."""
        if csv.field_size_limit() < _LONGEST_CELL:
            # The limit is the whole process's; it is only ever raised.
            csv.field_size_limit(_LONGEST_CELL)
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in io.StringIO(text, newline=""):
                taken.append(line)
                yield line

        reader = csv.reader(lines(), delimiter=self._delimiter, quotechar=self._quote, strict=True)
        line = 1
        while True:
            cells: list[str] | csv.Error
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
            yield line, "".join(taken), cells
            line += len(taken)
            taken.clear()

    def _row(self, cells: list[str], end: str) -> str:
        text = io.StringIO(newline="")
        # With this line end the module quotes every cell that holds a part of any line end.
        csv.writer(
            text, delimiter=self._delimiter, quotechar=self._quote, lineterminator="\r\n"
        ).writerow(cells)
        return text.getvalue()[:-2] + end
