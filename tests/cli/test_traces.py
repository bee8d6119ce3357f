"""``EVENTSYNC_TRACES``: commands export their traces."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest


@pytest.mark.slow
def test_the_command_line_sends_traces(cli):
    """With EVENTSYNC_TRACES a command sends its spans by OTLP before it ends."""
    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        "EVENTSYNC_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    try:
        (cli.folder / "people.jsonl").write_text('{"id": 1, "name": "Ann"}\n')
        arguments = ("publish", "crm", "--type", "Person", "-f", "people.jsonl")
        cli.real(*arguments, **environment).check()
        cli.real("worker", "report", "--drain", **environment).check()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    sent = b"".join(bodies)
    for word in (b"publish Person", b"apply report", b"apply Person", b"eventsync"):
        assert word in sent
