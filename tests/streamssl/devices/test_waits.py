"""Waits of a step: it reads no number of the device, so that the host can be ahead of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.protocol.learner import StopVote
from cluster.protocol.step_report import StepReport
from shards.crops import recipe as crops
from shards.records import CropBatch
from streamssl.checkpoint import TrainState
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.devices.crop_upload import CropUpload
from streamssl.training.gradient_step import apply_gradients, compute_gradients
from streamssl.training.learner import PretrainLearner
from streamssl.training.step_phases import StepPhases
from streamssl.training.train_state import build_state
from tests.streamssl.tiny_methods import TINY, WITH_MEMORY
from tests.tinyrun import BATCH, CPU, made_batches, tiny_moco, tiny_swav

aten = torch.ops.aten
# Operations for which a GPU makes the host wait: it needs a number, a size or an error code.
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten.equal,
    aten.unique_dim, aten._unique2, aten.median, aten.nanmedian, aten._linalg_svd,
    aten.linalg_eigh, aten.repeat_interleave,
}  # fmt: skip
MASKS = (torch.bool, torch.uint8)


class Waits(TorchDispatchMode):
    """Notes the operations for which a GPU would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket
        is_mask = kind in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in MASKS for index in args[1]
        )
        if kind in WAITING or is_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def config_of(name: str) -> RunConfig:
    """Return a run of a method whose memory, queue or clusters are in use after a few steps."""
    if name == "swav":
        return tiny_swav(num_steps=100)
    if name == "moco":
        return tiny_moco(num_steps=100)
    method, num_views = TINY[name] if name in TINY else (WITH_MEMORY[name], CROPS_OF_MEMORY)
    if name == "mochi":
        queue = QueueConfig(capacity=4 * BATCH)
        method = replace(method, queue=queue, start_step=1, key_batch_norm_rows=8)
    is_pair = sum(num_views) == 2
    views = crops.byol(size=32) if is_pair else crops.swav(counts=(2, 2), sizes=(32, 16))
    label = "cls" if name.startswith("supcon") else ""
    return tiny_swav(method=method, crops=views, label=label, num_steps=100)


CROPS_OF_MEMORY = (2, 2)
# SpCL finds samples in its memory, and its clusters change in size in each step.
METHODS = ["swav", "moco", *TINY, *(name for name in WITH_MEMORY if not name.startswith("spcl"))]
# The queue or the clusters of each are in use then; clusters are made in even steps.
STEPS = (5, 7)
# With the check of health, whose singular values a GPU leaves to the host.
STEPS_ON_GPU = (*STEPS, 9)


def batches_of(config: RunConfig, num: int) -> list[CropBatch]:
    labels = np.arange(BATCH) % 3
    return [
        replace(batch, labels=labels if config.label else None)
        for batch in made_batches(config, num)
    ]


def step(config: RunConfig, state: TrainState, batch: CropBatch) -> None:
    phases = StepPhases(CPU)
    compute_gradients(config, state, batch, CropUpload(CPU), 0, phases)
    apply_gradients(state, batch.cursor, phases)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_waits_for_the_device(name: str) -> None:
    """One number that is read in a loss stops the host in every step, for every user."""
    config = config_of(name)
    config = replace(config, optim=replace(config.optim, name="larc"))
    state = build_state(config, CPU)
    found = []
    for number, batch in enumerate(batches_of(config, max(STEPS) + 1)):
        if number not in STEPS:
            step(config, state, batch)
            continue
        with Waits() as waits:
            step(config, state, batch)
        found += waits.found
    assert found == []


def learned(config: RunConfig, device: str, log_every: int, num_steps: int) -> list[StepReport]:
    learner = PretrainLearner(config, torch.device(device), log_every=log_every)
    steps = [learner.train_step(x, StopVote.CONTINUE)[0] for x in batches_of(config, num_steps)]
    return [one if isinstance(one, StepReport) else one.read() for one in steps]


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_a_gpu_does_not_wait(name: str) -> None:
    """As above, with all that is around a loss, by the check of CUDA itself."""
    config = config_of(name)
    learner = PretrainLearner(config, torch.device("cuda"), log_every=100)
    for number, batch in enumerate(batches_of(config, max(STEPS_ON_GPU) + 1)):
        torch.cuda.set_sync_debug_mode("error" if number in STEPS_ON_GPU else "default")
        try:
            learner.train_step(batch, StopVote.CONTINUE)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    learner.state()


@pytest.mark.gpu
def test_a_gpu_that_is_ahead_learns_the_same() -> None:
    """Crops of a later batch must not be read by an earlier step, nor numbers of a later one."""
    config = tiny_swav(num_steps=30)
    near, far = (learned(config, "cuda", log_every, 30) for log_every in (1, 30))
    assert [one.loss for one in far] == pytest.approx([one.loss for one in near], abs=1e-4)
    assert [one.step for one in far] == list(range(1, 31))
