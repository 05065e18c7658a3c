"""Private APIs of Ray, in one file. Checked with Ray 2.60.0.

An upgrade of Ray may remove any of them; `tests/cluster/test_ray_internals.py` names the one that
is gone. The upper bound of `ray` in pyproject.toml is there for this file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
    "UNANSWERED",
    "ClusterStatus",
    "NodeInfo",
    "RayNode",
    "ask_tables",
    "bootstrap_address",
    "draining_nodes",
    "local_addresses_allowed",
    "may_listen_widely",
    "read_authentication",
    "read_cluster_status",
    "request_drain",
    "worker_output_to",
]

HEAD_RESOURCE = "node:__internal_head__"  # every head node has it
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


def may_listen_widely() -> bool:
    """Return True if a Ray that starts now replaces 127.0.0.1 by the address of the machine."""
    return bool(ray_constants.ENABLE_RAY_CLUSTER)


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
