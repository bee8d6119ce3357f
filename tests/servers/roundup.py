"""A Roundup issue tracker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from servers import Server, program

__all__ = ["RoundupServer"]

# The server program of Roundup refuses to run as root, as tests often do.
_SERVE = """
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from roundup.cgi.wsgi_handler import RequestDispatcher

class Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True

port = int(sys.argv[2])
make_server("127.0.0.1", port, RequestDispatcher(sys.argv[1]), Threads).serve_forever()
"""


class RoundupServer(Server):
    """A tracker with the classic schema, the user ``admin`` and the password ``secret``."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        home = str(self.folder / "tracker")
        self._admin("-i", home, "install", "classic", "sqlite")
        config = self.folder / "tracker" / "config.ini"
        settings = config.read_text()
        for old, new in (
            ("#web = NO DEFAULT", f"web = {self.url}/"),
            ("#domain = NO DEFAULT", "domain = localhost"),
            ("#host = NO DEFAULT", "host = localhost"),
            ("\ndebug = \n", f"\ndebug = {self.folder / 'mail'}\n"),
            ("api_failed_login_limit = 4", "api_failed_login_limit = 1000"),
            # Each request checks the password. Fewer rounds of hashing make the tests faster.
            ("pbkdf2_default_rounds = 250000", "pbkdf2_default_rounds = 1000"),
        ):
            assert old in settings, old
            settings = settings.replace(old, new)
        config.write_text(settings)
        self._admin("-i", home, "initialise", "secret")

    def _admin(self, *arguments: str) -> None:
        command = [program("roundup-admin", str(Path(sys.executable).parent)), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, timeout=60)

    def command(self) -> list[str]:
        return [sys.executable, "-c", _SERVE, str(self.folder / "tracker"), str(self.port)]

    def is_ready(self) -> bool:
        try:
            self.ask("GET", "/data/status")
        except OSError:
            return False
        return True

    def ask(self, method: str, path: str, body: Any = None, *, etag: str = "") -> Any:
        """Send a request to the REST interface, as another client would."""
        credentials = base64.b64encode(b"admin:secret").decode()
        headers = {
            "Authorization": f"Basic {credentials}",
            "Content-Type": "application/json",
            "Origin": self.url,
            "Referer": f"{self.url}/",
            "X-Requested-With": "test",
            "If-Match": etag,
        }
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/rest{path}", data=content, headers=headers, method=method
        )
        # Roundup sometimes answers 400 while another client writes. The request had no effect.
        for attempts_left in reversed(range(5)):
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                if error.code != 400:
                    raise
                said = error.read().decode(errors="replace")
                if not attempts_left:
                    raise AssertionError(f"{method} {path}: {said}") from error
                time.sleep(0.2)
        raise AssertionError("the last attempt returns or raises")

    def change(self, item: str, method: str = "PATCH", **properties: Any) -> Any:
        """Change or retire an item, as in ``issue/1``, whatever its present entity tag."""
        etag = self.ask("GET", f"/data/{item}")["@etag"]
        return self.ask(method, f"/data/{item}", properties, etag=etag)
