"""HTTP servers on loopback for tests: quiet, with a thread for each connection."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

S = TypeVar("S", bound="LoopbackServer")


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Server on a free port."""

    daemon_threads = True
    request_queue_size = 64

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect: tests do so on purpose."""


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Handler of kept connections that logs no requests."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the output of tests free of requests."""


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
