"""Records in files: a folder of JSON documents, a CSV file or a file of JSON lines.

All three survive a crash: a file is replaced as a whole, after its successor is on the disk.
"""

from __future__ import annotations

from eventsync.stores.files.folder import JsonFolderAccessor
from eventsync.stores.files.lines import JsonLinesAccessor
from eventsync.stores.files.table import CsvAccessor

__all__ = ["CsvAccessor", "JsonFolderAccessor", "JsonLinesAccessor"]
