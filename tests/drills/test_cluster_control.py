"""Control is killed, Control hangs, the tables of the head restart: the run continues."""

from pathlib import Path

import pytest

from tests.drills.cluster_runs import FaultTimer, actors, check_steps, endless, on_cluster, stop
from tests.ray_clusters import ray_cluster

pytestmark = [pytest.mark.nightly, pytest.mark.ray]

CONFIG = endless()


def test_a_run_survives_two_controls_and_a_restart_of_the_head(
    shards_folder: Path, tmp_path: Path
) -> None:
    """Trainers would restart, or a step would be done twice, when Control is replaced."""
    out = tmp_path / "run"
    with ray_cluster(persistent=True) as cluster:
        cluster.add("readers", num_cpus=4)  # with room for superfluous actors
        cluster.add("trainers", num_cpus=4)
        options = ("--readers", 2, "--trainers", 2)
        with on_cluster(cluster.address, CONFIG, shards_folder, out, *options) as run:
            run.wait_for_step(20)
            timer = FaultTimer(run)
            trainers = {process.pid for process in actors(cluster, "Trainer")}
            for term, (what, do) in enumerate((("killed", "kill"), ("stopped", "suspend")), 2):
                [control] = actors(cluster, "Control")
                timer.after(
                    f"Control is {what}",
                    getattr(control, do),
                    lambda term=term: run.metric("control_term") == term,
                    lambda: run.metric("world_size") == 2,
                )
            timer.after(
                "the head's tables are out of reach",
                cluster.kill_gcs,
                lambda: True,
                lambda: True,  # ten steps more, without a head
            )
            cluster.start_gcs()
            timer.after(
                "a reader is killed after the restart",
                lambda: actors(cluster, "Reader")[0].kill(),
                lambda: run.metric("readers_lost_total") >= 1,
                lambda: run.metric("actors", role="reader") == 2,
            )
            # Messages of an older term were refused and counted; trainers sent them again.
            assert run.metric("beats_refused_total", reason="term") >= 2
            assert {process.pid for process in actors(cluster, "Trainer")} == trainers
            assert len(actors(cluster, "Reader")) == 2
            stop(run)
    check_steps(CONFIG, shards_folder, out)
