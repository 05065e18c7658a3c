"""HTTP server of a run, on the loopback address by default.

A page is a function from the query of its address to a response. `page_access` decides who is
answered. A path such as `POST /drill` names a page that changes something: only the token opens it.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cluster.monitoring.page_access import PageAccess
from shards.errors import ConfigError

HOST = "127.0.0.1"
_SHUTDOWN_POLL_SECONDS = 0.1
# A client that sends or takes nothing for so long, or is not done after the second time, is left.
_IDLE_SECONDS = 10.0
_REQUEST_SECONDS = 60.0
_MAX_CONNECTIONS = 128
_PART_BYTES = 1 << 16

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
    """Serves `pages` by path while it is open. Port 0 takes any free port.

    Whoever sends `token` may read everything, see `page_access`.
    """

    def __init__(
        self, pages: Mapping[str, Page], port: int = 0, host: str = HOST, token: str = ""
    ) -> None:
        parts = {"pages": dict(pages), "access": PageAccess(host, token)}
        try:
            self._server = _PageServer((host, port), type("Handler", (_PageHandler,), parts))
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

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, float] = {}  # the time at which each was accepted
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # The base class would look up the host name of the address, which can take seconds.
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port

    def verify_request(self, request: Any, _: Any) -> bool:
        """Make room for a connection: the oldest one has had most time to send its request."""
        if len(self._open) >= _MAX_CONNECTIONS:
            self._hang_up(min(list(self._open.items()), key=lambda item: item[1])[0])
        self._open[request] = time.monotonic()
        return True

    def service_actions(self) -> None:
        """Leave slow clients; called ten times a second."""
        overdue = time.monotonic() - _REQUEST_SECONDS
        for request, began in list(self._open.items()):
            if began < overdue:
                self._hang_up(request)

    def _hang_up(self, request: socket.socket) -> None:
        self._open.pop(request, None)
        try:
            request.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed meanwhile

    def shutdown_request(self, request: Any) -> None:
        """Close a connection whose thread is done."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client that leaves is no error of the run."""
        _log.debug("a request failed", exc_info=True)


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
    access: PageAccess
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer with the page of this path."""
        self._answer("")

    def do_POST(self) -> None:
        """Answer with the page of this path, which changes something."""
        self._answer("POST ")

    def _answer(self, method: str) -> None:
        address = urlsplit(self.path)
        server = self.connection.getsockname()[:2]
        headers = {name: self.headers.get(name, "") for name in ("Host", "Authorization")}
        client = self.client_address[:2]
        refused = self.access.refusal(address.path, headers, client, server)
        if not refused and method and not self.access.has_token(headers):
            refused = "only commands of the run's own user change something"
        page = self.pages.get(method + address.path)
        if refused:
            response = HttpResponse(f"{refused}\n".encode(), status=403)
        elif page is None:
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
            # The time-out of a socket is for all that one call sends.
            for start in range(0, len(response.body), _PART_BYTES):
                self.wfile.write(response.body[start : start + _PART_BYTES])
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client has closed the connection, or takes nothing

    def log_message(self, *_: object) -> None:
        """Log nothing: a line for each scrape would hide the messages of the run."""
