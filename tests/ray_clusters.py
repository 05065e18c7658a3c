"""Ray clusters of several nodes on one machine, to be broken on purpose.

Three different faults that must not be taken for one another: a process is killed (`os.kill`), a
node is gone with all its processes (`RayCluster.lose`), and a node that nobody hears of any more
works on (`RayCluster.cut_off`).
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Settled before Ray is imported: left open, it would write a token into the home directory.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
from ray._private.node import Node
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

# A node that says nothing for five seconds is dead. Quicker checks declare busy machines dead.
QUICK_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
}
_STORE_BYTES = 80_000_000
PATIENCE = 90.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Look again and again; what `condition` gave when it gave something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} in {seconds:g} s"
        time.sleep(0.05)
    return found


class RayCluster:
    """A head without CPUs and what nodes are added to it. See `ray_cluster`.

    With `persistent`, the head writes its tables down, so that it can be restarted.
    """

    def __init__(self, folder: Path, *, persistent: bool = False) -> None:
        self._cluster = Cluster(shutdown_at_exit=False)
        env = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
        with _environment(env if persistent else {}):
            self.head: Node = self._cluster.add_node(
                num_cpus=0,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                temp_dir=str(folder / "r"),
                _system_config=dict(QUICK_CHECKS),
            )
        self.address: str = self._cluster.address
        self._persistence = env if persistent else None
        self._stopped: list[psutil.Process] = []

    def add(self, pool: str = "", num_cpus: int = 2, **resources: float) -> Node:
        """One more node, with the label of its pool."""
        return self._cluster.add_node(
            num_cpus=num_cpus,
            resources=dict(resources),
            labels={"pool": pool} if pool else {},
            object_store_memory=_STORE_BYTES,
        )

    def nodes(self) -> list[Node]:
        """Those that were added and not lost."""
        return list(self._cluster.worker_nodes)

    def pool_of(self, node: Node) -> str:
        """The label that it was added with."""
        return str(node._ray_params.labels.get("pool", ""))

    def lose(self, node: Node) -> None:
        """As if the machine had lost its power: everything on it ends at once."""
        processes = processes_of(node)
        for process in processes:
            _send(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(processes, timeout=PATIENCE)

    def cut_off(self, node: Node) -> None:
        """Nobody hears of the node any more, and everything on it works on."""
        raylet = _raylet(node)
        raylet.suspend()
        self._stopped.append(raylet)

    def come_back(self, node: Node) -> None:
        """After `cut_off`: the node speaks again, to those who may have given it up."""
        _raylet(node).resume()

    def drain(self, node: Node, seconds: float) -> None:
        """What a spot market says: the node will be taken away in so many seconds."""
        accepted, why = GcsClient(self.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "a drill",
            int(1000 * (time.time() + seconds)),
        )
        assert accepted, why

    def kill_gcs(self) -> None:
        """The head's tables are out of reach; actors may still talk to each other."""
        assert self._persistence is not None, "its tables would be lost, and every driver with it"
        self.head.kill_gcs_server()

    def start_gcs(self) -> None:
        """After `kill_gcs`."""
        assert self._persistence is not None
        with _environment(self._persistence):
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

    def _all(self) -> list[Node]:
        return [self.head, *self._cluster.worker_nodes]


@contextmanager
def ray_cluster(*, persistent: bool = False) -> Iterator[RayCluster]:
    """A cluster that is gone afterwards; nobody is connected to it yet."""
    # The sockets of Ray lie below, and the name of a socket has 107 bytes at most.
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
    """This process is a driver of the cluster meanwhile."""
    ray.init(address, logging_level="error", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def processes_of(node: Node) -> list[psutil.Process]:
    """Everything that runs on a node: its daemons, and the workers that they started."""
    found: dict[int, psutil.Process] = {}
    for infos in node.all_processes.values():
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return list(found.values())


def workers_of(node: Node, name: str) -> list[psutil.Process]:
    """The actors of a class on a node, such as 'Reader'."""
    found = []
    for process in processes_of(node):
        with suppress(psutil.NoSuchProcess):
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _raylet(node: Node) -> psutil.Process:
    [info] = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What the daemons that are started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
