"""Readers are killed, hang, return, are lost with nodes, are cut off: batches stay the same."""

import time
from pathlib import Path

import pytest

from cluster.ray_internals import RayNode
from shards.samples.admission_config import AdmissionConfig
from tests.drills.cluster_runs import FaultTimer, actors, check_steps, endless, on_cluster, stop
from tests.drills.paced import Pace
from tests.drills.processes import Run
from tests.ray_clusters import RayCluster, ray_cluster

pytestmark = [pytest.mark.nightly, pytest.mark.ray]

# The trainer waits for the readers, so they always crop something.
CONFIG = endless(admission=AdmissionConfig(predicate="tests.drills.paced:sleep"))


def lost(run: Run) -> float:
    return run.metric("readers_lost_total")


def test_faults_of_readers_change_no_batch(
    shards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost, repeated or late chunk would change a digest."""
    out, pace = tmp_path / "run", Pace(tmp_path, monkeypatch, 0.03)
    with ray_cluster() as cluster:
        cluster.add("trainers", num_cpus=1)
        first, second = cluster.add("readers"), cluster.add("readers")
        with on_cluster(cluster.address, CONFIG, shards_folder, out, "--readers", 3) as run:
            run.wait_for_step(20)
            timer = FaultTimer(run)

            def all_there() -> bool:
                return run.metric("actors", role="reader") == 3

            run.wait_for(all_there, "three readers")
            before = lost(run)
            timer.after(
                "a reader is killed",
                lambda: actors(cluster, "Reader")[0].kill(),
                lambda: lost(run) == before + 1,
                all_there,
            )
            hung = actors(cluster, "Reader")[0]
            timer.after(
                "a reader hangs",
                hung.suspend,
                lambda: lost(run) == before + 2,
                all_there,
            )
            timer.after(
                "a node is lost",
                lambda: cluster.lose(second),
                lambda: lost(run) > before + 2,
                lambda: run.metric("actors", role="reader") == 2,
            )
            cluster.add("readers")
            run.wait_for(all_there, "three readers again")
            before = lost(run)
            timer.after(
                "a node is cut off, and continues to work",
                lambda: cluster.cut_off(first),
                lambda: lost(run) > before and refused(run) > 0,
                lambda: run.metric("actors", role="reader") >= 1,
            )
            cluster.come_back(first)
            timer.wait_for_steps()
            lose_all_for(20.0, cluster, run, timer)
            stop(run)
    pace.set(0)
    assert check_steps(CONFIG, shards_folder, out) > 60


def refused(run: Run) -> float:
    """Return the number of late results of readers that were given up."""
    return sum(run.metric("results_refused_total", reason=r) for r in ("fenced", "gone"))


def lose_all_for(seconds: float, cluster: RayCluster, run: Run, timer: FaultTimer) -> None:
    """Remove all readers for a while."""
    began = time.monotonic()

    def lose() -> None:
        for node in of_pool(cluster):
            cluster.lose(node)

    def come_back() -> bool:
        if time.monotonic() - began < seconds:
            return False
        if not of_pool(cluster):
            cluster.add("readers", num_cpus=3)
        return run.metric("actors", role="reader") == 3

    timer.after(
        f"no reader for {seconds:g} s",
        lose,
        lambda: run.metric("actors", role="reader") == 0,
        come_back,
    )


def of_pool(cluster: RayCluster) -> list[RayNode]:
    """Return the nodes of readers."""
    return [node for node in cluster.nodes() if cluster.pool_of(node) == "readers"]
