"""Proxy on loopback that injects the faults of networks and stores into responses.

A plan chooses the fault of each GET of a shard; other requests pass through. A lasting fault, such
as a deleted shard, applies to each later request of that shard.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

from tests.loopback import LoopbackServer, QuietHandler, serving

Fault = Literal[
    "refuse",  # the connection is reset before the response
    "reset",  # the connection is reset in the middle of the body
    "cut",  # the connection is closed in the middle of the body
    "short",  # half of the body, with a matching Content-Length
    "short_200",  # half of the body, with status 200
    "whole_200",  # the whole shard, with status 200
    "other_range",  # another part of the shard, with its true Content-Range
    "no_range",  # a part without Content-Range
    "stall",  # half of the body, then nothing until after the timeout
    "stall_before",  # nothing until after the timeout
    "drip",  # the body in small pieces, each within the timeout
    "status_408",
    "status_429",
    "status_500",
    "status_502",
    "status_503",
    "status_504",
    "retry_after",  # 503 with Retry-After
    "slow_down",  # 503 with the code SlowDown of S3
    "new_version",  # lasting: another object has the same name
    "gone",  # lasting: 404
    "forbidden",  # lasting: 403
]
PASSING: tuple[Fault, ...] = (
    "refuse", "reset", "cut", "short", "short_200", "whole_200", "other_range", "no_range",
    "stall", "stall_before", "drip", "status_408", "status_429", "status_500", "status_502",
    "status_503", "status_504", "retry_after", "slow_down",
)  # fmt: skip
LASTING: tuple[Fault, ...] = ("new_version", "gone", "forbidden")
RETRY_AFTER_SECONDS = 0.05
_CODES = {"gone": (404, "NoSuchKey"), "forbidden": (403, "AccessDenied")}
_HOP = ("connection", "transfer-encoding", "keep-alive", "date", "server")

FaultPlan = Callable[[str], Fault | None]


class FaultProxy(LoopbackServer):
    """Forwards to `upstream`; `plan(path)` chooses the fault of the next GET of a shard."""

    def __init__(self, upstream: str, plan: FaultPlan, stall_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.plan, self.stall_seconds = plan, stall_seconds
        self.counts: Counter[str] = Counter()
        self.lasting: dict[str, Fault] = {}
        self.ranges: list[tuple[int, int]] = []  # first and last byte of each request
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def next_fault(self, path: str) -> Fault | None:
        """Choose and count the fault of a request."""
        with self._lock:
            fault = self.lasting.get(path) or self.plan(path)
            if fault in LASTING:
                self.lasting[path] = fault
            self.counts[fault or "none"] += 1
            return fault


class _Handler(QuietHandler):
    server: FaultProxy
    wbufsize = 0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "Range" in self.headers:
            first, last = re.findall(r"\d+", self.headers["Range"])
            self.server.ranges.append((int(first), int(last)))
        fault = self.server.next_fault(path) if path.endswith(".tar") else None
        if fault in (None, "drip"):
            status, headers, body = self._forward()
            self._answer(status, headers, body, num_pieces=8 if fault else 1)
        elif fault == "refuse":
            self._reset()
        elif fault == "stall_before":
            self._stall()
        elif fault in ("retry_after", "slow_down") or fault.startswith("status_"):
            self._fail(fault)
        elif fault in LASTING:
            self._send_lasting(fault)
        else:
            self._break(fault)

    def do_HEAD(self) -> None:
        status, headers, _ = self._forward()
        self._send_head(status, headers)

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(*self._forward(body=self.rfile.read(length)))

    do_POST = do_DELETE = do_PUT

    def _forward(
        self, changed: dict[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        headers = dict(self.headers.items()) | (changed or {})
        headers = {name: value for name, value in headers.items() if value}
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = {name: v for name, v in answer.getheaders() if name.lower() not in _HOP}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, num_pieces: int = 1
    ) -> None:
        self._send_head(status, _with_length(headers, len(body)))
        size = max(1, -(-len(body) // num_pieces))
        for start in range(0, len(body), size):
            if start:
                time.sleep(self.server.stall_seconds / 50)
            self.wfile.write(body[start : start + size])

    def _break(self, fault: Fault) -> None:
        """Send a wrong or truncated response."""
        changed: dict[str, str] = {}
        if fault == "whole_200":
            changed = {"Range": ""}
        elif fault == "other_range":
            first, last = re.findall(r"\d+", self.headers["Range"])
            changed = {"Range": f"bytes={int(first) + 512}-{int(last) + 512}"}
        status, headers, body = self._forward(changed)
        half = body[: len(body) // 2]
        if fault in ("whole_200", "other_range"):
            self._answer(status, headers, body)
        elif fault == "no_range":
            self._answer(206, _without(headers, "Content-Range"), body)
        elif fault == "short":
            self._answer(status, headers, half)
        elif fault == "short_200":
            self._answer(200, _without(headers, "Content-Range"), half)
        else:
            self._send_head(status, _with_length(headers, len(body)))
            self.wfile.write(half)
            if fault == "stall":
                self._stall()
            elif fault == "reset":
                time.sleep(0.01)  # a reset may discard bytes that were just sent
                self._reset()
            else:
                self.close_connection = True

    def _fail(self, fault: Fault) -> None:
        status = 503 if fault in ("retry_after", "slow_down") else int(fault[-3:])
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if fault == "retry_after" else {}
        code = "SlowDown" if fault == "slow_down" else f"Status{status}"
        self._answer(status, headers | {"Content-Type": "application/xml"}, _xml(code))

    def _send_lasting(self, fault: Fault) -> None:
        if fault != "new_version":
            status, code = _CODES[fault]
            self._answer(status, {"Content-Type": "application/xml"}, _xml(code))
        elif "If-Match" in self.headers:
            self._answer(412, {"Content-Type": "application/xml"}, _xml("PreconditionFailed"))
        else:
            status, headers, body = self._forward()
            changed = headers | {"ETag": '"of-another-object"', "Last-Modified": "yesterday"}
            self._answer(status, changed, bytes(len(body)))

    def _stall(self) -> None:
        self.server.stopping.wait(self.server.stall_seconds)
        self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()


@contextmanager
def fault_proxy(
    upstream: str, plan: FaultPlan = lambda _: None, stall_seconds: float = 5.0
) -> Iterator[FaultProxy]:
    """Run a proxy before `upstream`."""
    with serving(FaultProxy(upstream, plan, stall_seconds)) as proxy:
        try:
            yield proxy
        finally:
            proxy.stopping.set()


def _with_length(headers: dict[str, str], length: int) -> dict[str, str]:
    return _without(headers, "Content-Length") | {"Content-Length": str(length)}


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() != name.lower()}


def _xml(code: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{code}</Code><Message>{code} was planned</Message></Error>"
    ).encode()
