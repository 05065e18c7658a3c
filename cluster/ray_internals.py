"""Private APIs of Ray, in one file. Checked with Ray 2.60.0.

An upgrade of Ray may remove any of them; `tests/cluster/test_ray_internals.py` names the one that
is gone. The upper bound of `ray` in pyproject.toml is there for this file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from ray._common.utils import get_system_memory
from ray._private import ray_constants, services
from ray._private import worker as ray_worker
from ray._private.node import Node as RayNode
from ray._private.state import state
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.schema import ClusterStatus, NodeInfo, Stats
from ray.autoscaler.v2.utils import ClusterStatusParser
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RaySystemError, RpcError

__all__ = [
    "HEAD_RESOURCE",
    "MAX_SLOW_STORE_BYTES",
    "UNANSWERED",
    "UNUSED_SERVERS",
    "ClusterStatus",
    "NodeInfo",
    "RayNode",
    "ask_tables",
    "bootstrap_address",
    "draining_nodes",
    "end_processes_at_once",
    "end_ray_here",
    "local_addresses_allowed",
    "may_be_slow",
    "may_listen_widely",
    "memory_for_ray",
    "raylet_of_driver",
    "read_authentication",
    "read_cluster_status",
    "request_drain",
    "without_unused_servers",
    "worker_output_to",
]

HEAD_RESOURCE = "node:__internal_head__"  # every head node has it
# Ray refuses a larger object store that does not fit into /dev/shm.
MAX_SLOW_STORE_BYTES: int = ray_constants.REQUIRE_SHM_SIZE_THRESHOLD
# Methods of a node that start what a Ray for one run does not use: the server of a dashboard, which
# starts even without the dashboard, the autoscaler, and the process that sends output of workers.
UNUSED_SERVERS = ("start_api_server", "start_monitor", "start_log_monitor")
UNANSWERED = (RpcError, RaySystemError, TimeoutError)  # raised by reads while the head is away


def read_cluster_status(address: str, timeout_seconds: int) -> ClusterStatus:
    """Return nodes and launches; `ray.autoscaler.v2.sdk.get_cluster_status` with a time limit."""
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=timeout_seconds))
    return ClusterStatusParser.from_get_cluster_status_reply(reply, stats=Stats())


def draining_nodes() -> Mapping[str, int]:
    """Return nodes that will be taken away, with the wall-clock time in milliseconds."""
    return state.get_draining_nodes()


def request_drain(address: str, node: str, deadline_ms: int, reason: str) -> tuple[bool, str]:
    """Announce a preemption, as a spot market does. Return if it was accepted, and why not."""
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    return GcsClient(address).drain_node(node, preemption, reason, deadline_ms)


def read_authentication() -> None:
    """Let this process read the variables of its environment about tokens again.

    Ray reads them once, when it is imported, and keeps the token.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def ask_tables(address: str, timeout_seconds: float) -> None:
    """Ask the tables of a Ray for anything. Raises AuthenticationError for a wrong token.

    `ray.init` itself would try again for minutes.
    """
    GcsClient(address).internal_kv_keys(b"", b"", timeout=timeout_seconds)


def bootstrap_address(address: str) -> str:
    """Return host:port of the head that Ray would connect to for this address."""
    return services.canonicalize_bootstrap_address_or_die(address)


def may_be_slow() -> bool:
    """Return True if the user lets Ray keep a large object store outside of /dev/shm."""
    return bool(ray_constants.env_bool("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", False))


def may_listen_widely() -> bool:
    """Return True if a Ray that starts now replaces 127.0.0.1 by the address of the machine."""
    return bool(ray_constants.ENABLE_RAY_CLUSTER)


def memory_for_ray() -> int:
    """Return the bytes of memory that this machine, or this container, has for Ray."""
    return int(get_system_memory())


def raylet_of_driver() -> int | None:
    """Return the process of the raylet that this driver is connected to; None if it is not here."""
    node = ray_worker._global_node
    if node is None:
        return None
    option = f"--raylet_socket_name={node.raylet_socket_name}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if option in words and words[0].endswith(b"/raylet"):
            return int(path.parent.name)
    return None


def end_ray_here() -> None:
    """Kill what this driver has started of Ray, without a word to it."""
    node = ray_worker._global_node
    if node is not None and node.head:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextmanager
def local_addresses_allowed(allowed: bool) -> Iterator[None]:
    """Let Ray listen on 127.0.0.1 if `allowed`.

    Otherwise Ray replaces 127.0.0.1 by the address of the machine, and listens to the network.
    """
    before = may_listen_widely()
    if allowed:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def without_unused_servers() -> Iterator[None]:
    """Let a Ray that starts here have none of `UNUSED_SERVERS`.

    `ray.init` waits for seconds until the first one answers, and each is an interpreter of its own.
    """
    before = {name: getattr(RayNode, name) for name in UNUSED_SERVERS}
    for name in before:
        setattr(RayNode, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(RayNode, name, start)


def end_processes_at_once() -> None:
    """Let `ray.shutdown` kill the Ray that this process started, with all descendants.

    They ignore SIGTERM: `ray.shutdown` would wait a second for each, and the agents of a raylet
    that did not get it try for a minute to report that.
    """
    node = ray_worker.global_worker.node
    kill = node.kill_all_processes

    def kill_at_once(check_alive: bool = True, **more: Any) -> None:
        pids = [one.process.pid for infos in node.all_processes.values() for one in infos]
        descendants = []
        for pid in pids:
            with suppress(psutil.Error):
                descendants += psutil.Process(pid).children(recursive=True)
        kill(check_alive=check_alive, **{**more, "allow_graceful": False})
        for process in descendants:
            with suppress(psutil.Error):
                process.kill()

    node.kill_all_processes = kill_at_once


@contextmanager
def worker_output_to(write: Any) -> Iterator[None]:
    """Send the messages that Ray prints about its workers to `write(data, ignore_prefix)`.

    Ray prints ten lines for every dead reader, whatever `log_to_driver` says.
    """
    before = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = write
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = before
