"""The computation of one step on the rows of one rank: gradients, then the optimizer.

Steps are counted from 0 here.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from shards.records import CropBatch, Cursor
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.devices.crop_upload import CropUpload
from streamssl.methods.base import Method, SampleInfo, StepOutput, step_generator
from streamssl.optim.optimizers import set_rates
from streamssl.training import health
from streamssl.training.image_spread import NAME, image_spread
from streamssl.training.step_phases import StepPhases


def compute_gradients(
    config: RunConfig,
    state: TrainState,
    batch: CropBatch,
    upload: CropUpload,
    rank: int,
    phases: StepPhases,
) -> StepOutput:
    """Set the learning rate, compute the loss of these rows, and leave its gradients in place."""
    method: Method = state.method  # type: ignore[assignment]
    step, optimizer = state.step, state.optimizer
    # Random numbers of a network (drop path) depend on the step alone: no state to save.
    torch.manual_seed(_seed(config.seed, step, rank))
    decay = config.optim.weight_decay_at(step / config.num_steps)
    set_rates(optimizer, learning_rate(config, step), decay)
    optimizer.zero_grad(set_to_none=True)
    dtype = optimizer.param_groups[0]["params"][0].dtype
    with phases.phase("copy"):
        views = upload.to_tensors(batch.crops, dtype)
    with phases.phase("forward_backward"), phases.counting():
        with _precision(config, upload.device):
            output = method.loss(views, step=step, samples=samples_of(batch, rank))
        if step % health.EVERY == health.EVERY - 1:
            readings = {**output.readings, **health.measure(output, method.group)}
            spread = image_spread(views, len(batch.crops[0]), method.group)
            if spread is not None:
                readings[NAME] = spread
            output = replace(output, readings=readings)
        output.loss.backward()
    return output


def apply_gradients(state: TrainState, cursor: Cursor, phases: StepPhases) -> None:
    """Move the weights by the gradients that are there, and count the step."""
    method: Method = state.method  # type: ignore[assignment]
    with phases.phase("optimizer"):
        method.after_backward(state.step)
        state.optimizer.step()
        method.after_step(state.step)
    state.step += 1
    state.cursor = cursor


def samples_of(batch: CropBatch, rank: int) -> SampleInfo:
    """Return ids and labels of this rank's rows; `batch` has crops of these, but ids of all."""
    num_rows = len(batch.crops[0])
    mine = slice(rank * num_rows, (rank + 1) * num_rows)
    labels = None if batch.labels is None else torch.tensor(batch.labels[mine])
    return SampleInfo(torch.tensor(batch.ids[mine]), torch.tensor(batch.epochs[mine]), labels)


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the learning rate of `step`."""
    return config.schedule.lr(step, config.num_steps, config.optim.base_lr)


def _seed(seed: int, step: int, rank: int) -> int:
    """Return a seed of its own for every rank, since ranks see different rows."""
    if rank == 0:
        return (seed << 32) + step
    return step_generator(seed, step, f"rank {rank}").initial_seed()


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
