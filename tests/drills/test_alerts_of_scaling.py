"""Alerts about nodes of a run on Ray's autoscaler: none start, or the autoscaler is dead."""

import json
import time
from pathlib import Path

import pytest

from tests.drills.calm import PROGRAM, calm
from tests.drills.cluster_runs import on_cluster
from tests.drills.quick_alerts import TIMEOUT_SECONDS, quick_prometheus, wait_for_alerts
from tests.drills.test_autoscaling import KINDS
from tests.prometheus import Prometheus, needs_prometheus
from tests.scaling_cluster import scaling_cluster

pytestmark = [pytest.mark.nightly, pytest.mark.ray, needs_prometheus]


def autoscaler_is_down(prometheus: Prometheus) -> bool:
    query = 'ALERTS{alertname="StreamsslAutoscalerDown",alertstate="firing"}'
    return bool(prometheus.query(query))


def test_pending_nodes_and_a_dead_autoscaler_raise_their_alerts(
    shards_folder: Path, tmp_path: Path
) -> None:
    """A run would wait for nodes that never start. Nodes for readers are sold out for a while."""
    out, ray_targets = tmp_path / "run", tmp_path / "ray.json"
    options = ("--trainer-pool", "pool=trainers", "--reader-pool", "market=spot", "--readers", 1)
    with (
        scaling_cluster(KINDS) as cluster,
        quick_prometheus(tmp_path / "prometheus", out, ray_targets=ray_targets) as prometheus,
    ):
        # The name that it has on a machine with one cluster; here its port is any free one.
        target = {"targets": [cluster.autoscaler], "labels": {"instance": "head:44217"}}
        ray_targets.write_text(json.dumps([target]))
        cluster.order(refused=("spot",))
        with on_cluster(
            cluster.address, calm(), shards_folder, out, *options, program=PROGRAM
        ) as run:
            wait_for_alerts(prometheus, {"StreamsslNodesPending"}, run, since=time.time())
            cluster.order()
            run.wait_for_step(20)
            run.wait_for(
                lambda: prometheus.value('up{job="ray"}') == 1, "metrics of the autoscaler"
            )
            assert not autoscaler_is_down(prometheus)
            began = time.monotonic()
            cluster.kill_autoscaler()
            while not autoscaler_is_down(prometheus):
                assert run.process.poll() is None, run.text
                assert time.monotonic() - began < TIMEOUT_SECONDS
                time.sleep(0.3)
            print(f"StreamsslAutoscalerDown after {time.monotonic() - began:.1f} s")
