"""Ray clusters of several nodes on one machine, to be broken on purpose.

Three faults must be distinguished: a process is killed (`os.kill`), a node is lost with all its
processes (`RayCluster.lose`), and a node that sends nothing any more continues to work
(`RayCluster.cut_off`).
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
from ray.cluster_utils import Cluster

from cluster.ray_access import environment
from cluster.ray_internals import RayNode, request_drain
from tests.ray_token import settle_token

# A node that is silent for five seconds is dead. Quicker checks declare busy machines dead.
QUICK_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
}
_STORE_BYTES = 80_000_000
PATIENCE = 90.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `condition` returns a true value, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} in {seconds:g} s"
        time.sleep(0.05)
    return found


class RayCluster:
    """A head without CPUs, and the nodes that are added. See `ray_cluster`.

    If `persistent`, the head saves its tables, so that it can be restarted.
    """

    def __init__(self, folder: Path, *, persistent: bool = False) -> None:
        self._cluster = Cluster(shutdown_at_exit=False)
        env = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
        with environment(env if persistent else {}):
            self.head: RayNode = self._cluster.add_node(
                num_cpus=0,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                temp_dir=str(folder / "r"),
                _system_config=dict(QUICK_CHECKS),
            )
        self.address: str = self._cluster.address
        self._persistence = env if persistent else None
        self._stopped: list[psutil.Process] = []

    def add(self, pool: str = "", num_cpus: int = 2, **resources: float) -> RayNode:
        """Add a node with the label of its pool."""
        return self._cluster.add_node(
            num_cpus=num_cpus,
            resources=dict(resources),
            labels={"pool": pool} if pool else {},
            object_store_memory=_STORE_BYTES,
        )

    def nodes(self) -> list[RayNode]:
        """Return the nodes that were added and not lost."""
        return list(self._cluster.worker_nodes)

    def pool_of(self, node: RayNode) -> str:
        """Return the label with which a node was added."""
        return str(node._ray_params.labels.get("pool", ""))

    def lose(self, node: RayNode) -> None:
        """End everything on a node at once, like a power failure."""
        processes = processes_of(node)
        for process in processes:
            _send(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(processes, timeout=PATIENCE)

    def cut_off(self, node: RayNode) -> None:
        """Silence a node; everything on it continues to work."""
        raylet = _raylet(node)
        raylet.suspend()
        self._stopped.append(raylet)

    def come_back(self, node: RayNode) -> None:
        """End `cut_off`: the node sends again, to a head that may have given it up."""
        _raylet(node).resume()

    def drain(self, node: RayNode, seconds: float) -> None:
        """Announce that a node will be taken away in so many seconds, like a spot market."""
        deadline_ms = int(1000 * (time.time() + seconds))
        accepted, why = request_drain(self.address, node.node_id, deadline_ms, "a drill")
        assert accepted, why

    def kill_gcs(self) -> None:
        """Kill the tables of the head; actors can still call each other."""
        assert self._persistence is not None, "its tables would be lost, and every driver with them"
        self.head.kill_gcs_server()

    def start_gcs(self) -> None:
        """Start the tables again after `kill_gcs`."""
        assert self._persistence is not None
        with environment(self._persistence):
            self.head.start_gcs_server()

    def close(self) -> None:
        """End everything, stopped processes included."""
        for process in self._stopped:
            _send(process, signal.SIGCONT)
        children = [process for node in self._all() for process in processes_of(node)]
        self._cluster.shutdown()
        for process in children:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(children, timeout=PATIENCE)

    def _all(self) -> list[RayNode]:
        return [self.head, *self._cluster.worker_nodes]


@contextmanager
def ray_cluster(*, persistent: bool = False) -> Iterator[RayCluster]:
    """Start a cluster, and end it afterwards. This process is not connected to it."""
    settle_token()
    # Ray puts its sockets there, and the path of a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    try:
        cluster = RayCluster(folder, persistent=persistent)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to the cluster as a driver."""
    ray.init(address, logging_level="error", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def processes_of(node: RayNode) -> list[psutil.Process]:
    """Return the daemons of a node, and the workers that they started."""
    found: dict[int, psutil.Process] = {}
    for infos in node.all_processes.values():
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return list(found.values())


def workers_of(node: RayNode, name: str) -> list[psutil.Process]:
    """Return the actors of a class on a node, such as 'Reader'."""
    found = []
    for process in processes_of(node):
        with suppress(psutil.NoSuchProcess):
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _raylet(node: RayNode) -> psutil.Process:
    [info] = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
