"""Pages of a single process of a run, to find out which thread hangs, and where.

    /metrics   counters since this process started, and its use of the machine
    /stacks    the stack of each thread at this moment
    /healthz   "ok" while it answers

There are no pages unless the run was given ports. Threads of their own answer, even while all
others wait; a stopped process does not answer, nor one in code that holds the interpreter's lock.
Pages are read-only. On the address of a node they are for clients with the token of the cluster;
on the loopback address they are for this user, see `page_access`.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cluster.monitoring.exposition import metrics_response, process_registry
from cluster.monitoring.http_server import HOST, HttpResponse, HttpServer
from cluster.monitoring.metric_catalogue import build_catalogue
from cluster.ray_access import read_token
from shards.errors import ConfigError
from shards.metric import Metric, Readings

_MIN_PORT, _MAX_PORT = 1024, 65_535

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DebugPorts:
    """Ports for the pages of processes: each process takes the first free one from `first` on.

    If `on_nodes`, pages are on the address of the node, where other nodes reach them; else on the
    loopback address. `metrics` are the rows of the catalogue.
    """

    first: int
    last: int
    on_nodes: bool = False
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if not _MIN_PORT <= self.first <= self.last <= _MAX_PORT:
            raise ConfigError(_refusal(str(self)))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_ports(text: str) -> DebugPorts:
    """Parse ports such as `9500-9599`. Raises ConfigError."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise ConfigError(_refusal(text))
    return DebugPorts(int(first), int(last))


class ProcessPages:
    """Serves the pages of this process from its construction until it is closed.

    `read` returns its counters, from any thread. `address` is empty without ports, or if none is
    free: nothing else depends on the pages. `node_address` is used by ports that are `on_nodes`.
    """

    def __init__(
        self,
        name: str,
        ports: DebugPorts | None,
        read: Callable[[], Readings],
        node_address: str = HOST,
    ) -> None:
        self._server: HttpServer | None = None
        if ports is None:
            return
        registry = process_registry(build_catalogue(ports.metrics), read)
        pages = {
            "/metrics": lambda _: metrics_response(registry),
            "/stacks": lambda _: HttpResponse(stacks(name).encode()),
            "/healthz": lambda _: HttpResponse(b"ok\n"),
        }
        host = node_address if ports.on_nodes else HOST
        for port in range(ports.first, ports.last + 1):
            with suppress(ConfigError):
                self._server = HttpServer(pages, port, host, read_token())
                return
        _log.warning(
            "%s serves no pages: none of the ports %s is free on %s; give more of them with "
            "--debug-ports",
            name,
            ports,
            host,
        )

    @property
    def address(self) -> str:
        """The address of the pages: host:port."""
        return "" if self._server is None else self._server.address

    def __enter__(self) -> "ProcessPages":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.__exit__()


def stacks(name: str) -> str:
    """Return the stacks of all threads of this process, the innermost call last."""
    # Reading source lines lets other threads run: take all frames before.
    places = {
        ident: list(traceback.walk_stack(frame)) for ident, frame in sys._current_frames().items()
    }
    places.pop(threading.get_ident())  # the thread that answers
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"{name}, process {os.getpid()}\n"]
    for ident, calls in places.items():
        lines = "".join(traceback.StackSummary.extract(iter(calls[::-1])).format())
        parts.append(f"thread {threads.get(ident, 'of no name')}:\n{lines}")
    return "\n".join(parts)


def _refusal(found: str) -> str:
    return (
        f"debug ports {found!r}; they must be two ports from {_MIN_PORT} to {_MAX_PORT}, the "
        "second not below the first: give for example --debug-ports 9500-9599"
    )
