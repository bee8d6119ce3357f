"""A MongoDB server: ``mongod`` or, where that is not installed, SecantusDB."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from servers import Server, program

__all__ = ["MongoServer"]


class MongoServer(Server):
    """One server without a replica set.

    SecantusDB implements MongoDB's wire protocol and error codes on the same storage engine.
    ``auth``: whether users must log in, from the next start on.
    """

    auth = False

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        address = ("--bind_ip", "127.0.0.1", "--port", str(self.port))
        auth = ("--auth",) if self.auth else ()
        if (real := shutil.which("mongod")) is not None:
            return [real, "--dbpath", str(data), *address, *auth]
        stand_in = program("secantusd-py", str(Path(sys.executable).parent))
        return [stand_in, "--storage-path", str(data), "--host", *address[1:], *auth]

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """Return a new client of the server."""
        return MongoClient(self.url, serverSelectionTimeoutMS=2000, **options)

    def is_ready(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.admin.command("ping"))
            except PyMongoError:
                return False
