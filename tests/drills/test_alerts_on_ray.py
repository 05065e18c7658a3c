"""Alerts of runs on Ray fire for their faults, and not for a healthy run.

`test_alerts` has the alerts of runs in one process, `quick_alerts` the times of the rules.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from tests.drills.calm import PROGRAM, calm
from tests.drills.cluster_runs import actors, on_cluster
from tests.drills.processes import Run, started
from tests.drills.quick_alerts import (
    TIMEOUT_SECONDS,
    fired,
    firing,
    quick_prometheus,
    settled,
    wait_for_alerts,
)
from tests.prometheus import Prometheus, needs_prometheus
from tests.ray_clusters import RayCluster, connected, ray_cluster
from tests.tinyrun import make_shards

pytestmark = [pytest.mark.nightly, pytest.mark.ray, needs_prometheus]

# On a machine that does all of this at once, trainers may wait.
HARMLESS = {"StreamsslStarved"}
ENV = {"PYTHONPATH": str(Path(__file__).parents[2])}


@contextmanager
def filled_store(cluster: RayCluster) -> Iterator[None]:
    """Fill a node's store with objects in use, which Ray cannot write to disk."""
    with connected(cluster.address):
        kept = [(ref, ray.get(ref)) for ref in map(ray.put, [np.zeros(1_000_000, np.uint8)] * 74)]
        yield
        del kept


def kill_readers_until(
    names: set[str], prometheus: Prometheus, run: Run, cluster: RayCluster
) -> None:
    """Kill all readers but the oldest again and again until these alerts fire."""
    began, num_killed, told = time.monotonic(), 0, set[str]()
    while missing := names - told:
        assert run.process.poll() is None, run.text
        assert time.monotonic() - began < TIMEOUT_SECONDS, f"no {missing}:\n{run.text}"
        for reader in sorted(actors(cluster, "Reader"), key=lambda one: one.create_time())[1:]:
            with suppress(psutil.NoSuchProcess):
                reader.kill()
                num_killed += 1
        for name in sorted((firing(prometheus, run.out.name) & names) - told):
            print(f"{name} after {time.monotonic() - began:.1f} s, {num_killed} readers killed")
            told.add(name)
        time.sleep(0.3)


def test_a_faulty_run_raises_its_alerts_and_a_healthy_run_none(tmp_path: Path) -> None:
    """An alert would not fire in a real run: readers and Control die, an object store is full."""
    data = make_shards(tmp_path / "shards", num=230, per_shard=10)
    hurt_out, healthy_out = tmp_path / "hurt", tmp_path / "healthy"
    names = {"StreamsslRestartStorm", "StreamsslActorsMissing", "StreamsslObjectStoreFilling"}
    with (
        quick_prometheus(tmp_path / "prometheus", hurt_out, healthy_out) as prometheus,
        ray_cluster() as cluster,
    ):
        cluster.add("trainers", num_cpus=1)
        cluster.add("readers", num_cpus=3)
        local = ("--cluster", "local", "--readers", 1, "--trainers", 2)
        with (
            started(calm(), data, healthy_out, *local, env=ENV, program=PROGRAM) as healthy,
            on_cluster(
                cluster.address, calm(), data, hurt_out, "--readers", 3, program=PROGRAM
            ) as hurt,
        ):
            healthy.wait_for_step(20)
            hurt.wait_for(lambda: hurt.metric("actors", role="reader") == 3, "three readers")
            settled(prometheus, hurt)
            began = settled(prometheus, healthy)
            with filled_store(cluster):
                kill_readers_until(names, prometheus, hurt, cluster)
            killed = time.time()
            for _ in range(3):
                term = hurt.metric("control_term")
                hurt.wait_for(lambda: bool(actors(cluster, "Control")), "a Control to kill")
                actors(cluster, "Control")[0].kill()
                hurt.wait_for(lambda term=term: hurt.metric("control_term") > term, "the next one")
            wait_for_alerts(prometheus, {"StreamsslControlRestarts"}, hurt, healthy, since=killed)
            healthy.wait_for_step(healthy.last_step + 10)
            print(f"healthy for {time.time() - began:.0f} s, {healthy.last_step} steps")
            assert fired(prometheus, "healthy", began) <= HARMLESS


def test_a_state_mismatch_is_an_alert_after_the_run_has_ended(
    shards_folder: Path, tmp_path: Path
) -> None:
    """The target disappears with the run: a user who looks later must still see why."""
    out = tmp_path / "differs"
    config = calm(wrong_step=90)
    options = ("--cluster", "local", "--readers", 1, "--trainers", 2)
    with (
        quick_prometheus(tmp_path / "prometheus", out) as prometheus,
        started(config, shards_folder, out, *options, env=ENV, program=PROGRAM) as run,
    ):
        run.wait_for_step(20)
        settled(prometheus, run)
        assert run.end() == 1
        began = time.monotonic()
        while "StreamsslStateMismatch" not in firing(prometheus, out.name) or prometheus.targets():
            assert time.monotonic() - began < TIMEOUT_SECONDS, run.text
            time.sleep(0.3)
        print(f"StreamsslStateMismatch {time.monotonic() - began:.1f} s after the end")
    assert run.last_step == 100, run.text
