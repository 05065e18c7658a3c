"""Trainers are killed, hang, are taken away and come back: the steps go on, on the same batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamssl.optim import OptimConfig
from streamssl.run import Placement
from tests.drills.cluster_runs import Watch, actors, check_steps, endless, on_cluster, stop
from tests.ray_clusters import ray_cluster, workers_of
from tests.tinyrun import BACKBONE, read_log, stop_at, train_here

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# Ranks add up in another order than one process: with large steps, that would grow. And each drops
# paths of its own rows, which one process would not drop.
OPTIONS = {name: value for name, value in BACKBONE.options.items() if name != "drop_path_rate"}
CONFIG = endless(
    optim=OptimConfig(name="larc", base_lr=0.003), backbone=replace(BACKBONE, options=OPTIONS)
)


def test_trainers_come_and_go_and_the_run_is_the_same_run(
    shards_folder: Path, tmp_path: Path
) -> None:
    """Killed, hung, preempted, replaced each time: every step once, and the weights of one process.

    That all ranks hold the same state is checked by the run itself, which would end otherwise.
    """
    out = tmp_path / "run"
    with ray_cluster() as cluster:
        cluster.add("readers", num_cpus=1)
        nodes = [cluster.add("trainers", num_cpus=1) for _ in range(3)]
        options = ("--readers", 1, "--trainers", 3)
        with on_cluster(cluster.address, CONFIG, shards_folder, out, *options) as run:
            run.wait_for_step(1)

            def all_there() -> bool:
                return run.metric("world_size") == 3

            run.wait_for(all_there, "three ranks")
            watch = Watch(run)
            watch.go_on()
            watch.after(
                "a trainer is killed",
                lambda: actors(cluster, "Trainer")[0].kill(),
                lambda: run.metric("trainers_lost_total") == 1,
                all_there,
            )
            watch.after(
                "a trainer hangs",
                lambda: actors(cluster, "Trainer")[1].suspend(),
                lambda: run.metric("trainers_lost_total") == 2,
                all_there,
            )
            cluster.add("trainers", num_cpus=1)
            watch.after(
                "a trainer's node is taken away",
                lambda: cluster.drain(nodes[2], 60),
                lambda: not workers_of(nodes[2], "Trainer"),
                all_there,
            )
            assert run.metric("trainers_lost_total") == 2, "a notice is no loss"
            recoveries = run.metric("recoveries_total")
            seconds = run.metric("recovery_seconds_total")
            print(f"{recoveries:.0f} recoveries, {seconds / recoveries:.1f} s each")
            stop(run)
    num = check_steps(CONFIG, shards_folder, out)
    alone = tmp_path / "alone"
    placement = Placement(readers=1)
    train_here(CONFIG, shards_folder, alone, placement=placement, stop=stop_at(alone, num))
    losses = [[fields["loss"] for fields in read_log(run)] for run in (out, alone)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
    ours, theirs = (load_file(state_file(run, num)) for run in (out, alone))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-2, atol=2e-2, err_msg=name)


def state_file(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}" / "state.safetensors"
