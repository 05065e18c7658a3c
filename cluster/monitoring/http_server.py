"""Pages over HTTP: what a run says of itself to whoever asks, on the loopback address.

A page is a function of the query of its address. Nobody on the network is let in unless another
address is given, nothing is written, and no page is larger than what its function gives.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qsl, urlsplit

from shards.errors import ConfigError

HOST = "127.0.0.1"
_LOOK_SECONDS = 0.1  # how long its end may take


@dataclass(frozen=True, slots=True)
class Answer:
    """A page as it is sent: `kind` is its media type, `headers` what else is said of it."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[Mapping[str, str]], Answer]
"""Called with the query of the address, from any thread."""


class HttpServer:
    """Serves `pages`, by path, while it is open. Port 0 takes any free one."""

    def __init__(self, pages: Mapping[str, Page], port: int = 0, host: str = HOST) -> None:
        handler = type("Handler", (_Handler,), {"pages": dict(pages)})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise ConfigError(
                f"/metrics cannot be served on port {port} ({error.strerror}); "
                "give another --metrics-port, or 0 for any free one"
            ) from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # who has to wait for a busy run shall be answered, not turned away

    def server_bind(self) -> None:
        """Without asking a name server for the name of the address, which nobody needs."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Page]

    def do_GET(self) -> None:
        """Answer with the page of this path."""
        address = urlsplit(self.path)
        page = self.pages.get(address.path)
        if page is None:
            answer = Answer(f"pages: {' '.join(sorted(self.pages))}\n".encode(), status=404)
        else:
            answer = page(dict(parse_qsl(address.query)))
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
        except ConnectionError:
            self.close_connection = True  # whoever asked has left

    def log_message(self, *_: object) -> None:
        """Nothing: a line for every scrape would bury what the run says."""
