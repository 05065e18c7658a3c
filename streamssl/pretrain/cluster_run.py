"""A run on a Ray cluster: the specification that `cluster` needs."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console

from cluster.control.control_spec import ControlSpec
from cluster.driver.driver import RunSpec, run_cluster
from cluster.driver.ray_session import count_gpus, ray_session
from cluster.driver.run_desk import RunDesk
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.protocol.learner import LearnerState
from cluster.protocol.node_pools import parse_pools
from cluster.trainers.batch_feed import FeedConfig
from cluster.trainers.elastic_training import TrainerConfig
from cluster.trainers.trainer_crops import TrainerCropsConfig
from shards.stores.range_reader import SourceConfig
from streamssl import checkpoint
from streamssl.monitoring.catalogue import METRICS
from streamssl.pretrain.run_recorder import RunRecorder
from streamssl.runs.crop_job import crop_job
from streamssl.runs.decode_placement import place_of_decoding
from streamssl.runs.file_names import CONTROL, JOURNAL
from streamssl.runs.logs.progress import Progress
from streamssl.runs.placement import Placement
from streamssl.runs.run_setup import PreparedRun
from streamssl.training.learner import build_learner

# Batches that a trainer holds ahead of its step.
_MAX_FEED_BYTES = 1 << 30


def train_on_cluster(
    run: PreparedRun,
    placement: Placement,
    metrics: MetricsHub,
    console: Console,
    stop: Callable[[], bool],
    *,
    desk: RunDesk,
) -> Progress:
    """Train `run` on a Ray cluster, which is started or joined; return totals of its steps.

    `desk` answers commands of the user meanwhile.
    """
    state = checkpoint.take(run.state)
    cores = placement.reader_limit + placement.trainers
    stream_bytes = run.config.stream.max_bytes
    with (
        ray_session(
            placement.cluster,
            cores,
            _room(run, state),
            stream_bytes=stream_bytes,
            tell=lambda text: console.print(text, highlight=False, markup=False),
            lost=functools.partial(_tell_lost, run, console),
        ),
        RunRecorder(run, placement, metrics, console) as recorder,
        desk.open(),
    ):
        run_cluster(_spec(run, placement, state, console), recorder, stop)
        return recorder.progress


def _tell_lost(run: PreparedRun, console: Console, text: str) -> None:
    """Say why the process ends now, and from where the same command goes on."""
    saved = checkpoint.list_checkpoints(run.out)
    goes_on = "nothing is saved yet; the same command begins again"
    if saved:
        step = checkpoint.read_fields(saved[-1])["step"]
        goes_on = f"step {step} is saved; the same command continues from there"
    for line in (text, goes_on):
        console.print(f"streamssl: {line}", highlight=False, markup=False, soft_wrap=True)


def _spec(run: PreparedRun, placement: Placement, state: LearnerState, console: Console) -> RunSpec:
    config = run.config
    job = crop_job(config, run.data, SourceConfig(cache=placement.cache))
    options = _trainer_options(placement)
    by_trainers = place_of_decoding(run, placement, job, options, console) == "trainers"
    ports = placement.debug_ports
    control = ControlSpec(
        folder=run.out.resolve() / CONTROL,
        journal=run.out.resolve() / JOURNAL,
        manifest=run.data.manifest,
        order=run.order,
        stream=config.stream,
        admission=config.admission,
        num_steps=config.num_steps,
        readers=(placement.readers, placement.reader_limit),
        trainers=placement.trainers,
        pools={
            "reader": parse_pools(placement.reader_pools),
            "trainer": parse_pools(placement.trainer_pools),
        },
        config=placement.control_config,
        debug_ports=ports
        and replace(ports, on_nodes=placement.cluster != "local", metrics=METRICS),
    )
    # Trainers of a local cluster share the cores of this machine.
    shared = placement.cluster == "local"
    threads = max(1, torch.get_num_threads() // placement.trainers) if shared else None
    return RunSpec(
        control=control,
        job=replace(job, only_verify=by_trainers),
        build=functools.partial(build_learner, config),
        trainer=TrainerConfig(
            num_steps=config.num_steps, save_every=config.save_every, num_threads=threads
        ),
        feed=FeedConfig(
            max_bytes=min(_MAX_FEED_BYTES, config.stream.max_bytes),
            cropping=TrainerCropsConfig.of(job) if by_trainers else None,
        ),
        state=state,
        entries=run.journal.entries,
        trainer_options=options,
    )


def _trainer_options(placement: Placement) -> dict[str, int]:
    """Return the resources of a trainer: GPUs only, since GPU nodes may hide their cores from Ray
    to keep readers away."""
    num_gpus = placement.trainer_gpus
    if num_gpus is None:
        num_gpus = min(1, count_gpus())
    return {"num_gpus": num_gpus, "num_cpus": 0 if num_gpus else 1}


def _room(run: PreparedRun, state: LearnerState) -> int:
    """Return the bytes that the object store of Ray needs: crops, subset lists and states."""
    subset = run.data.subset
    listed = 0 if subset is None else subset.num_bytes
    saved = sum(tensor.nbytes for tensor in state.tensors.values())
    return run.config.stream.max_bytes + listed + 4 * saved
