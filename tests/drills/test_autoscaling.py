"""Ray's own autoscaler on one machine: a hungry trainer gets nodes, a sated one gives them back."""

import time
from pathlib import Path

import pytest

from shards.admission import AdmissionConfig
from tests.drills.cluster_runs import check_steps, endless, on_cluster, stop
from tests.drills.paced import set_pace
from tests.drills.processes import Run
from tests.scaling_cluster import scaling_cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray]

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


def test_a_hungry_trainer_gets_nodes_and_a_sated_one_gives_them_back(
    shards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that sleep starve the trainer: nodes come. They wake up: nodes are emptied and go.

    Before that the first pool cannot be had, so the readers are made in the next one.
    """
    out, pace = tmp_path / "run", set_pace(tmp_path, monkeypatch)
    pace.write_text("0.05")
    with scaling_cluster(KINDS) as cluster:
        pools = ("--trainer-pool", "pool=trainers", "--reader-pool", "market=spot", "pool=reserved")
        with on_cluster(
            cluster.address,
            CONFIG,
            shards_folder,
            out,
            *pools,
            *("--readers", "1..6"),
            program="tests.drills.quick",
        ) as run:
            run.wait_for_step(1)
            began = time.monotonic()
            hungry = wait_share(run)
            run.wait_for(lambda: readers(run) >= 4, "four readers on two nodes")
            up = time.monotonic() - began
            cluster.order(refused=("spot",))
            pace.write_text("0.0005")
            run.wait_for(lambda: readers(run) <= 2, "a node that is emptied")
            sated = wait_share(run)
            down = time.monotonic() - began
            print(
                f"waits {hungry:.0%}; four readers after {up:.0f} s, then it waits {sated:.0%}; "
                f"a node fewer after {down:.0f} s"
            )
            stop(run)
    check_steps(CONFIG, shards_folder, out)


def readers(run: Run) -> float:
    return run.metric("actors", role="reader")


def wait_share(run: Run, num_steps: int = 10) -> float:
    """How much of the time of the next steps the trainer waits for data."""
    waited, began = run.metric("data_wait_seconds_total"), time.monotonic()
    run.wait_for_step(run.last_step + num_steps)
    return (run.metric("data_wait_seconds_total") - waited) / (time.monotonic() - began)
