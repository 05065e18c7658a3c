"""Pages of one process of a run, for whoever wants to know what hangs, and why.

    /metrics   what this process counted since it started, and what it takes of its machine
    /stacks    where each of its threads is at this moment
    /healthz   "ok" while it answers

There are none unless a run was given ports. They are answered by threads of their own, whatever all
others wait for; a stopped process does not answer, nor one in code that keeps the interpreter's
lock. They change nothing, and whoever reaches the port may read them.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import ray

from cluster.monitoring.exposition import metrics_page, process_registry
from cluster.monitoring.http_server import HOST, Answer, HttpServer
from cluster.protocol.metric import Readings
from shards.errors import ConfigError

_MIN_PORT, _MAX_PORT = 1024, 65_535

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DebugPorts:
    """Each process takes the first free one from `first` to `last`: of the loopback address, or of
    its node's, where others of the cluster reach it."""

    first: int
    last: int
    on_nodes: bool = False

    def __post_init__(self) -> None:
        if not _MIN_PORT <= self.first <= self.last <= _MAX_PORT:
            raise ConfigError(_refusal(str(self)))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_ports(text: str) -> DebugPorts:
    """Ports from `9500-9599`. Raises ConfigError."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise ConfigError(_refusal(text))
    return DebugPorts(int(first), int(last))


class ProcessPages:
    """Serves the pages of this process while it is open, and it is from the start.

    `read` gives what it counted, from any thread. `address` is empty where there are no ports, or
    none is free: nothing but the pages depends on it.
    """

    def __init__(self, name: str, ports: DebugPorts | None, read: Callable[[], Readings]) -> None:
        self._server: HttpServer | None = None
        if ports is None:
            return
        registry = process_registry(read)
        pages = {
            "/metrics": lambda _: metrics_page(registry),
            "/stacks": lambda _: Answer(stacks(name).encode()),
            "/healthz": lambda _: Answer(b"ok\n"),
        }
        host = ray.util.get_node_ip_address() if ports.on_nodes else HOST
        for port in range(ports.first, ports.last + 1):
            with suppress(ConfigError):
                self._server = HttpServer(pages, port, host)
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
        """Where they are: host:port."""
        return "" if self._server is None else self._server.address

    def __enter__(self) -> "ProcessPages":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.__exit__()


def stacks(name: str) -> str:
    """The stacks of all threads of this process, the innermost call last."""
    # Reading source lines gives others the time to go on: all that moves is noted before.
    places = {
        ident: list(traceback.walk_stack(frame)) for ident, frame in sys._current_frames().items()
    }
    places.pop(threading.get_ident())  # it only asks
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
