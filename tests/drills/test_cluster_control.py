"""Control is killed, Control hangs, the head's tables restart: trainers and readers go on."""

from pathlib import Path

import pytest

from tests.drills.cluster_runs import Watch, actors, check_steps, endless, on_cluster, stop
from tests.ray_clusters import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CONFIG = endless()


def test_a_run_outlives_its_control_and_a_restart_of_the_head(
    shards_folder: Path, tmp_path: Path
) -> None:
    """A new Control, of a higher term, is found by those of the old one; nothing is done twice."""
    out = tmp_path / "run"
    with ray_cluster(persistent=True) as cluster:
        cluster.add("readers", num_cpus=4)  # with room for actors that nobody needs
        cluster.add("trainers", num_cpus=4)
        options = ("--readers", 2, "--trainers", 2)
        with on_cluster(cluster.address, CONFIG, shards_folder, out, *options) as run:
            run.wait_for_step(20)
            watch = Watch(run)
            trainers = {process.pid for process in actors(cluster, "Trainer")}
            for term, (what, do) in enumerate((("killed", "kill"), ("stopped", "suspend")), 2):
                [control] = actors(cluster, "Control")
                watch.after(
                    f"Control is {what}",
                    getattr(control, do),
                    lambda term=term: run.metric("control_term") == term,
                    lambda: run.metric("world_size") == 2,
                )
            watch.after(
                "the head's tables are out of reach",
                cluster.kill_gcs,
                lambda: True,
                lambda: True,  # ten steps more, without a head
            )
            cluster.start_gcs()
            watch.after(
                "a reader is killed after the restart",
                lambda: actors(cluster, "Reader")[0].kill(),
                lambda: run.metric("readers_lost_total") >= 1,
                lambda: run.metric("actors", role="reader") == 2,
            )
            # What trainers said in an older term was refused, and counted; they said it again.
            assert run.metric("beats_refused_total", reason="term") >= 2
            assert {process.pid for process in actors(cluster, "Trainer")} == trainers
            assert len(actors(cluster, "Reader")) == 2
            stop(run)
    check_steps(CONFIG, shards_folder, out)
