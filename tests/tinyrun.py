"""Runs of seconds: the smallest network, on shards of synthetic images."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cluster.protocol.step_report import StepReport
from shards.crops import recipe as crops
from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack
from shards.records import CropBatch, Cursor
from shards.stream.stream_config import StreamConfig
from streamssl.checkpoint import TrainState
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import METHODS, RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig
from streamssl.pretrain.run import RunSummary, pretrain
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig
from streamssl.training.learner import PretrainLearner
from streamssl.training.trainer import train

BATCH = 16
CPU = torch.device("cpu")
# Drop path draws random numbers in every step, so a resume with other numbers shows, unless the
# branches begin at zero.
BACKBONE = BackboneConfig(
    name="resnet18",
    options={
        "layers": (1, 1, 1, 1),
        "channels": (8, 8, 8, 8),
        "drop_path_rate": 0.3,
        "zero_init_last": False,
    },
    stem="half",
)


def tiny_swav(**changes: Any) -> RunConfig:
    """Return SwAV with a queue that starts after a few steps, and prototypes that thaw."""
    queue = QueueConfig(capacity=2 * BATCH, start_step=3)
    config = RunConfig(
        method=SwAVConfig(num_prototypes=12, dim=8, hidden_dim=16, freeze_steps=2, queue=queue),
        backbone=BACKBONE,
        crops=crops.swav(counts=(2, 1), sizes=(32, 16)),
        optim=OptimConfig(name="larc", base_lr=0.1),
        schedule=ScheduleConfig(kind="swav", warmup_steps=2, start_lr=0.01, final_lr=0.001),
        stream=StreamConfig(batch_size=BATCH, chunk_bytes=1 << 14, chunks_per_block=4),
        num_steps=6,
        save_every=2,
        precision="fp32",
    )
    return replace(config, **changes)


def tiny_moco(**changes: Any) -> RunConfig:
    """Return MoCo v2 with a queue of four batches."""
    config = replace(
        tiny_swav(),
        method=MoCoConfig(
            dim=8, key_batch_norm_rows=8, queue=QueueConfig(capacity=4 * BATCH), momentum=0.9
        ),
        crops=crops.moco_v2(size=32),
        optim=OptimConfig(name="sgd", base_lr=0.05),
        schedule=ScheduleConfig(kind="warmup_cosine"),
    )
    return replace(config, **changes)


def own_methods() -> set[str]:
    """Return the methods of the package that need no finished run."""
    own = {name for name, kind in METHODS.items() if kind.__module__.startswith("streamssl.")}
    return own - {"fine-tune", "distillation"}


def make_shards(folder: Path, num: int = 160, seed: int = 0, per_shard: int = 60) -> Path:
    """Pack `num` labelled images of 32 pixels into several shards."""
    source = entries_from_synthetic(num, seed=seed, size=32)
    pack(source, folder, PackConfig(samples_per_shard=per_shard))
    return folder


@contextmanager
def other_user() -> Iterator[None]:
    """Act as a user without rights over the files of this one; root has all rights otherwise."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """Yield a new folder that every user may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def quiet() -> Console:
    """Return a console without output."""
    return Console(quiet=True)


def train_here(config: RunConfig, data: Path | DataConfig, out: Path, **options: Any) -> RunSummary:
    """Train a run in this process, on one core."""
    torch.set_num_threads(1)
    placement = options.pop("placement", Placement(readers=1))
    data = data if isinstance(data, DataConfig) else str(data)
    return pretrain(config, data, out, placement, quiet(), **options)


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def stop_at(out: Path, step: int) -> Callable[[], bool]:
    """Return a function that is true when the run has finished `step`."""
    return lambda: any(fields["step"] >= step for fields in read_log(out)[-1:])


def proof(out: Path) -> list[tuple[int, str, float]]:
    """Return steps, samples and losses, which are equal in two equal runs."""
    return [(fields["step"], fields["digest"], fields["loss"]) for fields in read_log(out)]


def weights(out: Path, step: int) -> bytes:
    """Return the file with every tensor of the run after `step`."""
    return (out / "checkpoints" / f"step-{step:08d}" / "state.safetensors").read_bytes()


def made_batches(config: RunConfig, num: int, first: int = 0) -> Iterator[CropBatch]:
    """Yield batches of noise; the same number gives the same batch."""
    size = config.stream.batch_size
    for number in range(first, first + num):
        rng = np.random.default_rng(number)
        crops = tuple(
            rng.integers(0, 256, (size, group.num_views, group.size, group.size, 3), np.uint8)
            for group in config.crops.groups
        )
        offsets = np.arange(number * size, (number + 1) * size, dtype=np.int64)
        ids = np.stack([np.zeros(size, np.int64), offsets], axis=1)
        cursor = Cursor(manifest="m", order="o", slot=(number + 1) * size)
        yield CropBatch(crops, ids, np.zeros(size, np.int64), cursor)


def train_on_noise(config: RunConfig, state: TrainState, num_steps: int) -> list[StepReport]:
    """Train `state` for `num_steps` more steps without saving, and return the reports."""
    torch.set_num_threads(1)
    reports: list[StepReport] = []
    train(
        PretrainLearner(config, CPU, state),
        made_batches(config, num_steps, state.step),
        report=reports.append,
        save=lambda _: None,
        stop=lambda: len(reports) == num_steps,
    )
    return reports


def assert_same(ours: TrainState, theirs: TrainState) -> None:
    """Compare every tensor and number of method and optimizer, bit by bit."""
    assert (ours.step, ours.cursor) == (theirs.step, theirs.cursor)
    assert_equal(ours.method.state_dict(), theirs.method.state_dict())
    mine, other = ours.optimizer.state_dict()["state"], theirs.optimizer.state_dict()["state"]
    assert mine.keys() == other.keys()
    for index in mine:
        assert_equal(mine[index], other[index])


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare names, values and types."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[name]), name
            assert value.dtype == theirs[name].dtype, name
        else:
            assert value == theirs[name], name
