"""Ray cluster on one machine whose autoscaler starts and ends nodes, which are processes here.

Launches can be made slow, or fail, while it runs. Ray's own class for this needs a file that its
wheel lacks, and ends every Ray of the machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from tests.ray_clusters import QUICK_CHECKS
from tests.ray_token import settle_token

_HEAD = "f" * 51 + "00000"  # its id in Ray's provider
_TOKEN = "STREAMSSL_SCALING_CLUSTER"


class OrderedProvider(FakeMultiNodeProvider):
    """Ray's provider of nodes as local processes; a file lists the kinds without capacity."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._orders = Path(provider_config["orders"])

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        orders = json.loads(self._orders.read_text())
        time.sleep(orders["boot_seconds"])
        kind = tags["ray-user-node-type"]
        if kind in orders["refused"]:
            raise RuntimeError(f"no capacity for {kind}")
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


class ScalingCluster:
    """A head, and kinds of nodes that are launched on demand.

    `kinds` is as in the `available_node_types` of `ray up`. Drivers join at `address`; the
    autoscaler serves metrics at `autoscaler`.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Any], idle_seconds: float) -> None:
        self._token = uuid.uuid4().hex
        self._orders = folder / "orders.json"
        port, self._metrics_port = _free_port(), _free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        self.autoscaler = f"{ray.util.get_node_ip_address()}:{self._metrics_port}"
        self.order()
        config = folder / "cluster.json"
        config.write_text(json.dumps(self._config(kinds, idle_seconds)))
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head"),
            *(f"--port={port}", f"--temp-dir={folder / 'r'}", f"--autoscaling-config={config}"),
            *("--num-cpus=0", "--num-gpus=0", "--object-store-memory=120000000"),
            *("--include-dashboard=false", "--dashboard-agent-listen-port=0"),
            *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
            f"--ray-client-server-port={_free_port()}",
            "--system-config=" + json.dumps(QUICK_CHECKS, separators=(",", ":")),
        ]
        started = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stdout + started.stderr

    def order(self, *, boot_seconds: float = 0.0, refused: tuple[str, ...] = ()) -> None:
        """Set how long a launch takes, and which kinds have no capacity."""
        part = self._orders.with_suffix(".part")
        part.write_text(json.dumps({"boot_seconds": boot_seconds, "refused": refused}))
        part.replace(self._orders)

    def num_nodes(self) -> int:
        """Return the number of running nodes without the head."""
        return sum("raylet/raylet " in _command(pid) for pid in self._pids()) - 1

    def kill_autoscaler(self) -> None:
        """Kill the autoscaler; nothing starts it again."""
        monitors = [pid for pid in self._pids() if "autoscaler/v2/monitor.py" in _command(pid)]
        assert monitors, "no autoscaler runs"
        for pid in monitors:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the processes of this cluster, which carry its token, and no other Ray."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._pids():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + 5
            while self._pids() and time.monotonic() < deadline:
                time.sleep(0.1)

    def _config(self, kinds: Mapping[str, Any], idle_seconds: float) -> dict[str, Any]:
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        nothing: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
        for words in ("initialization", "setup", "head_setup", "worker_setup"):
            nothing[f"{words}_commands"] = []
        for words in ("head_start_ray_commands", "worker_start_ray_commands"):
            nothing[words] = []
        return nothing | {
            "cluster_name": "drill",
            "max_workers": 8,
            "upscaling_speed": 10,
            "idle_timeout_minutes": idle_seconds / 60,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": head,
                **{name: {"node_config": {}, **kind} for name, kind in kinds.items()},
            },
            "provider": {
                "type": "external",
                "module": f"{__name__}.{OrderedProvider.__name__}",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
                "launch_multiple": True,
                "head_node_id": _HEAD,
                "orders": str(self._orders),
            },
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
        }

    def _environment(self) -> dict[str, str]:
        here = str(Path(__file__).parents[1])  # where the monitor finds OrderedProvider
        return os.environ | {
            _TOKEN: self._token,
            "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", "")))),
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # Ray's default ports are fixed: two clusters of one machine would collide.
            "AUTOSCALER_METRIC_PORT": str(self._metrics_port),
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
        }

    def _pids(self) -> list[int]:
        mark = f"{_TOKEN}={self._token}".encode()
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    if mark in (place / "environ").read_bytes():
                        found.append(int(place.name))
                except OSError:  # it is another user's, or gone
                    continue
        return found


@contextmanager
def scaling_cluster(
    kinds: Mapping[str, Any], *, idle_seconds: float = 3.0
) -> Iterator[ScalingCluster]:
    """Start a cluster, and end it afterwards. This process is not connected to it."""
    settle_token()
    folder = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))
    try:
        cluster = ScalingCluster(folder, kinds, idle_seconds)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it is gone
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
