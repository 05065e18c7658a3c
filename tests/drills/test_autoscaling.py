"""Ray's autoscaler on one machine: a starved trainer gets nodes and gives them back later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards.samples.admission_config import AdmissionConfig
from tests.drills.cluster_runs import check_steps, endless, on_cluster, stop
from tests.drills.paced import Pace
from tests.drills.processes import Run
from tests.scaling_cluster import ScalingCluster, scaling_cluster

pytestmark = [pytest.mark.nightly, pytest.mark.ray]

CONFIG = endless(admission=AdmissionConfig(predicate="tests.drills.paced:sleep"))
STORE = {"object_store_memory": 80_000_000}
KINDS = {
    "trainers": {
        "resources": {"CPU": 1, **STORE},
        "labels": {"pool": "trainers"},
        "min_workers": 0,
        "max_workers": 1,
    },
    "spot": {
        "resources": {"CPU": 2, **STORE},
        "labels": {"pool": "readers", "market": "spot"},
        "min_workers": 0,
        "max_workers": 3,
    },
    "reserved": {
        "resources": {"CPU": 2, **STORE},
        "labels": {"pool": "reserved"},
        "min_workers": 0,
        "max_workers": 3,
    },
}


def test_nodes_come_for_a_starved_trainer_and_go_when_it_is_fed(
    shards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow readers starve the trainer: nodes must come; fast readers: nodes must drain and go."""
    out, pace = tmp_path / "run", Pace(tmp_path, monkeypatch, 0.05)
    with scaling_cluster(KINDS) as cluster, scaled(cluster, shards_folder, out) as run:
        run.wait_for_step(40)  # the prefetched batches are used up
        began = time.monotonic()
        hungry = wait_share(run)
        run.wait_for(lambda: readers(run) >= 4 and cluster.num_nodes() >= 3, "two nodes more")
        up = time.monotonic() - began
        pace.set(0.0005)
        run.wait_for(lambda: readers(run) <= 2, "a node that is emptied")
        sated = wait_share(run)
        run.wait_for(lambda: cluster.num_nodes() <= 2, "a node that is gone")
        down = time.monotonic() - began
        print(
            f"waits {hungry:.0%}; nodes up after {up:.0f} s; waits {sated:.0%} with half of the "
            f"readers; a node down after {down:.0f} s"
        )
        stop(run)
    pace.set(0)
    check_steps(CONFIG, shards_folder, out)


def test_readers_come_from_the_second_pool_when_the_first_is_sold_out(
    shards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spot nodes are sold out for hours at times."""
    out, pace = tmp_path / "run", Pace(tmp_path, monkeypatch, 0.01)
    with scaling_cluster(KINDS) as cluster:
        cluster.order(refused=("spot",))
        with scaled(cluster, shards_folder, out) as run:
            run.wait_for_step(10)
            stop(run)
    pace.set(0)
    check_steps(CONFIG, shards_folder, out)


@contextmanager
def scaled(cluster: ScalingCluster, data: Path, out: Path) -> Iterator[Run]:
    """Start a run with autoscaled readers from two pools."""
    pools = ("--trainer-pool", "pool=trainers", "--reader-pool", "market=spot", "pool=reserved")
    options = (*pools, "--readers", "1..6")
    with on_cluster(
        cluster.address, CONFIG, data, out, *options, program="tests.drills.quick"
    ) as run:
        yield run


def readers(run: Run) -> float:
    return run.metric("actors", role="reader")


def wait_share(run: Run, num_steps: int = 10) -> float:
    """Return the share of time that the trainer waits for data in the next steps."""
    waited, began = run.metric("data_wait_seconds_total"), time.monotonic()
    run.wait_for_step(run.last_step + num_steps)
    return (run.metric("data_wait_seconds_total") - waited) / (time.monotonic() - began)
