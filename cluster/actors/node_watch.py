"""Node watch: the nodes of the cluster as the head knows them, with launches and notices.

A thread of its own reads them with a time limit: while the head restarts, the last answer stands,
with its age.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.protocol.node_pools import Pool
from cluster.ray_internals import (
    HEAD_RESOURCE,
    UNANSWERED,
    NodeInfo,
    draining_nodes,
    read_cluster_status,
)

_POLL_SECONDS = 2.0
_CALL_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is alive as far as the head knows.

    `leaves_at` is when it will be taken away, in seconds of the wall clock: None without a notice,
    0.0 if the notice has no time. A node without actors leaves as soon as it is told to.
    """

    id: str
    address: str
    kind: str
    labels: Mapping[str, str]
    total: Mapping[str, float]
    free: Mapping[str, float]
    is_head: bool = False
    leaves_at: float | None = None

    def used_share(self, resource: str) -> float | None:
        """Return the used share of a resource; None if the node has none of it."""
        total = self.total.get(resource, 0.0)
        return 1 - self.free.get(resource, 0.0) / total if total > 0 else None

    @property
    def drains(self) -> bool:
        """True if it will be taken away: nothing new is created there."""
        return self.leaves_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Nodes of a kind that an autoscaler requested; `reason` if they failed."""

    kind: str
    count: int
    since: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The cluster at one moment. `seen` in seconds of the steady clock."""

    seen: float
    alive: tuple[Node, ...] = ()
    pending: tuple[Launch, ...] = ()
    failed: tuple[Launch, ...] = ()

    def of(self, pool: Pool) -> tuple[Node, ...]:
        """Return the nodes of a pool, without a head that offers no CPU."""
        return tuple(
            node
            for node in self.alive
            if pool.holds(node.labels) and not (node.is_head and not node.total.get("CPU"))
        )

    @property
    def draining(self) -> dict[str, float]:
        """Nodes that will be taken away, with the time."""
        return {node.id: node.leaves_at for node in self.alive if node.leaves_at is not None}

    def find(self, node: str) -> Node | None:
        """Return a node by its id; None if it is not alive."""
        return next((one for one in self.alive if one.id == node), None)


@dataclass(slots=True)
class NodeWatch:
    """Reads the nodes again and again while it is open. A context.

    `latest` is None until the first answer.
    """

    poll_seconds: float = _POLL_SECONDS
    latest: Nodes | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "NodeWatch":
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not joined: a call to a dead head may hang, and must not delay the exit.
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            with suppress(*UNANSWERED):  # the last answer stands
                self.latest = read_nodes(self.latest)
            self._closed.wait(self.poll_seconds)


def read_nodes(before: Nodes | None = None) -> Nodes:
    """Read the nodes once. Raises one of `UNANSWERED` if the head does not answer.

    A notice is never withdrawn, but a head that restarts forgets it: those of `before` stand.
    """
    status = read_cluster_status(ray.get_runtime_context().gcs_address, _CALL_SECONDS)
    known = before.draining if before else {}
    leaving = known | {node: ms / 1000 for node, ms in draining_nodes().items()}
    alive = tuple(_node(info, leaving) for info in (*status.active_nodes, *status.idle_nodes))
    booting = Counter(info.ray_node_type_name for info in status.pending_nodes)
    now = time.time()
    return Nodes(
        seen=time.monotonic(),
        alive=tuple(sorted(alive, key=lambda node: (not node.is_head, node.id))),
        pending=(
            *_launches(status.pending_launches),
            *(Launch(kind=kind, count=count, since=now) for kind, count in booting.items()),
        ),
        failed=_launches(status.failed_launches),
    )


def _node(info: NodeInfo, leaving: Mapping[str, float]) -> Node:
    total = info.total_resources()
    return Node(
        id=info.node_id or "",
        address=info.ip_address,
        kind=info.ray_node_type_name,
        labels=dict(info.labels or {}),
        total=total,
        free=info.available_resources(),
        is_head=HEAD_RESOURCE in total,
        leaves_at=leaving.get(info.node_id or ""),
    )


def _launches(found: Iterable[Any]) -> tuple[Launch, ...]:
    return tuple(
        Launch(
            kind=one.ray_node_type_name,
            count=one.count,
            since=float(one.failed_ts_s or one.request_ts_s),
            reason=" ".join((one.details or "").split())[:200],
        )
        for one in found
    )
