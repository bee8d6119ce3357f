"""A file of JSON lines: each line is the JSON object of one record."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from eventsync.errors import RecordError, kept
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files.single_file import BOM, Content, Segment, SingleFileAccessor
from eventsync.stores.files.text import Members, dump, escape_surrogates, has_surrogates, parse

__all__ = ["JsonLinesAccessor"]

R = TypeVar("R", bound=Record)


class JsonLinesAccessor(SingleFileAccessor[R]):
    """Records of one type as JSON objects, one on each line, in UTF-8.

    An object has the members that the view names. Members that other programs add stay, and so does
    the order of lines and members. Blank lines are ignored. The file is replaced whole, once for
    each batch. ``create``: create the folder and the file if they do not exist. The version index
    is beside the file, ``.<name>.eventsync.db``, unless the store names another.

    If the store held records before, a missing file or one of zero bytes counts as a failure, not
    as a file without records. A file with a single empty line means that all records were deleted
    on purpose.
    """

    def __init__(
        self,
        record_type: type[R],
        path: str | os.PathLike[str],
        *,
        view: View | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(record_type, path, view=view, create=create, encoding="utf-8")
        self.codec = Members(self.view)

    def empty(self) -> Content:
        return Content(segments={0: Segment("\n")})

    def format(self, data: Mapping[str, Any], content: Content) -> str:
        return escape_surrogates(dump(data)) + content.line_end

    def parse(self, text: str) -> Content:
        header = BOM if text.startswith(BOM) else ""
        content = Content(header=header)
        for number, line in enumerate(io.StringIO(text[len(header) :], newline=""), start=1):
            segment = content.segments[number] = Segment(line, line=number)
            if number == 1 and line.endswith("\r\n"):
                content.line_end = "\r\n"
            if not line.strip():
                continue
            try:
                with self.located(segment):
                    if has_surrogates(line):
                        raise RecordError("not UTF-8", hint="save the file as UTF-8")
                    segment.data = parse(line)
            except RecordError as error:
                content.unreadable.append(kept(error))
                if not line.endswith(("\n", "\r")):
                    content.open = error  # somebody may be writing the rest of it
        return content
