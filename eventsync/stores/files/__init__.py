"""Records in files: a folder of JSON documents, a CSV file, a file of JSON lines.

All three are crash safe: a file is replaced whole, and only once its successor is on the disk. They
know nothing of other stores.
"""

from __future__ import annotations

from eventsync.stores.files.folder import JsonFolderAccessor
from eventsync.stores.files.lines import JsonLinesAccessor
from eventsync.stores.files.table import CsvAccessor

__all__ = ["CsvAccessor", "JsonFolderAccessor", "JsonLinesAccessor"]
