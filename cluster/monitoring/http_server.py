"""HTTP server of a run: read-only pages, on the loopback address by default.

A page is a function from the query of its address to a response. The server writes nothing.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qsl, urlsplit

from shards.errors import ConfigError

HOST = "127.0.0.1"
_SHUTDOWN_POLL_SECONDS = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. `kind` is its media type; `headers` are added to the usual ones."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Page = Callable[[Mapping[str, str]], HttpResponse]
"""A page; called with the query of the address, from any thread."""


class HttpServer:
    """Serves `pages` by path while it is open. Port 0 takes any free port."""

    def __init__(self, pages: Mapping[str, Page], port: int = 0, host: str = HOST) -> None:
        handler = type("Handler", (_PageHandler,), {"pages": dict(pages)})
        try:
            self._server = _PageServer((host, port), handler)
        except OSError as error:
            raise ConfigError(
                f"/metrics cannot be served on port {port} ({error.strerror}); "
                "give another --metrics-port, or 0 for any free one"
            ) from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_SHUTDOWN_POLL_SECONDS,),
            name="http",
            daemon=True,
        )
        self._thread.start()

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _PageServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a busy run must answer late, not refuse connections

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client that leaves is no error of the run."""
        _log.debug("a request failed", exc_info=True)

    def server_bind(self) -> None:
        # The base class would look up the host name of the address, which can take seconds.
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port


def _call(page: Page, query: Mapping[str, str], path: str) -> HttpResponse:
    """Return the response of a page; a page that fails is one sentence with status 500."""
    try:
        return page(query)
    except Exception as error:  # whatever fails in a page, the run and its other pages go on
        _log.debug("the page %s failed", path, exc_info=error)
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        text = (
            f"the page {path} cannot be made ({cause}); the run goes on, and its other pages too: "
            "load it again, and report it if it stays so\n"
        )
        return HttpResponse(text.encode(errors="replace"), status=500)


class _PageHandler(BaseHTTPRequestHandler):
    pages: Mapping[str, Page]

    def do_GET(self) -> None:
        """Answer with the page of this path."""
        address = urlsplit(self.path)
        page = self.pages.get(address.path)
        if page is None:
            listed = f"pages: {' '.join(sorted(self.pages))}\n"
            response = HttpResponse(listed.encode(), status=404)
        else:
            response = _call(page, dict(parse_qsl(address.query)), address.path)
        self._send(response)

    def _send(self, response: HttpResponse) -> None:
        try:
            self.send_response(response.status)
            self.send_header("Content-Type", response.kind)
            self.send_header("Content-Length", str(len(response.body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.body)
        except ConnectionError:
            self.close_connection = True  # the client has closed the connection

    def log_message(self, *_: object) -> None:
        """Log nothing: a line for each scrape would hide the messages of the run."""
