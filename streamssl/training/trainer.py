"""The loop: batches of crops in, steps out. It cannot tell a laptop from a cluster.

It is handed an iterable of batches, a state and a reporter; it opens nothing and scales nothing.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shards.dataloader.tensors import to_tensors
from shards.errors import StreamEnded, StreamStopped
from shards.records import CropBatch, Cursor, Reject
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.distributed.gradients import gradient_norm
from streamssl.methods.base import Method, Samples, StepOutput, step_generator
from streamssl.training import health
from streamssl.training.step_phases import Phases, phases_of


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. `loss` and `readings` may still be on the device: reading them waits.

    `sample` is the id of one of its samples: shard row, header offset, epoch.
    """

    step: int
    loss: Tensor | float
    readings: Mapping[str, Tensor | float]
    lr: float
    digest: str
    num_samples: int
    rejects: tuple[Reject, ...]
    num_unselected: int
    cursor: Cursor
    step_seconds: float
    data_wait_seconds: float
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    sample: tuple[int, int, int] | None = None


def train(
    config: RunConfig,
    state: TrainState,
    batches: Iterable[CropBatch],
    *,
    device: torch.device,
    report: Callable[[StepReport], None],
    save: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `state` on `batches` until `config.num_steps`, or until `stop()` after a step.

    A stream that was stopped while it waited ends the training, too, after the last whole step.

    `save()` is called every `config.save_every` steps and at the end; `batches` must begin where
    `state.cursor` says. Raises StreamEnded when they do not last.
    """
    iterator, phases = iter(batches), phases_of(device, config.precision)
    saved = state.step
    looked: dict[str, Tensor] = {}

    def look(_: StepOutput) -> None:
        looked["gradient_norm"] = gradient_norm(state.optimizer)

    while state.step < config.num_steps:
        asked = time.monotonic()
        try:
            batch = next(iterator, None)
        except StreamStopped:
            if state.step > saved:
                save()
            return
        if batch is None:
            raise StreamEnded(
                f"the stream ended at step {state.step} of {config.num_steps}; "
                "ask for fewer steps, or give more data"
            )
        began = time.monotonic()
        lr = learning_rate(config, state.step)
        output = train_step(config, state, batch, device, meet=look, phases=phases)
        phases.wait()  # whoever reads the loss waits as long
        report(
            StepReport(
                state.step,
                output.loss.detach(),
                {**output.readings, **looked, **phases.readings()},
                lr,
                batch.digest,
                len(batch),
                batch.rejects,
                batch.num_unselected,
                batch.cursor,
                step_seconds=time.monotonic() - began,
                data_wait_seconds=began - asked,
                phase_seconds=phases.take(),
                sample=first_sample(batch),
            )
        )
        stopping = stop()
        if stopping or state.step % config.save_every == 0 or state.step == config.num_steps:
            with phases.phase("checkpoint"):
                save()
            saved = state.step
        if stopping:
            return


def train_step(
    config: RunConfig,
    state: TrainState,
    batch: CropBatch,
    device: torch.device,
    *,
    rank: int = 0,
    meet: Callable[[StepOutput], None] = lambda _: None,
    phases: Phases | None = None,
) -> StepOutput:
    """One optimizer step on the rows of this rank; steps are counted from 0 here.

    `meet` is called when the gradients of these rows are there, to average them over the ranks, or
    to look at them.
    `phases` is told what takes how long.
    """
    phases = phases or Phases(device)
    method: Method = state.method  # type: ignore[assignment]
    step, optimizer = state.step, state.optimizer
    # What a network draws for itself (drop path) depends on the step alone: no state to save.
    torch.manual_seed(_seed(config.seed, step, rank))
    config.optim.set_rates(optimizer, learning_rate(config, step), step / config.num_steps)
    optimizer.zero_grad(set_to_none=True)
    dtype = optimizer.param_groups[0]["params"][0].dtype
    with phases.phase("copy"):
        views = to_tensors(batch.crops, device, dtype)
    with phases.phase("forward_backward"), phases.counting():
        with _precision(config, device):
            output = method.loss(views, step=step, samples=samples_of(batch, rank))
        if state.step % health.EVERY == health.EVERY - 1:
            readings = {**output.readings, **health.measure(output, method.group)}
            output = replace(output, readings=readings)
        output.loss.backward()
    with phases.phase("collectives"):
        meet(output)
    with phases.phase("optimizer"):
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
    state.step += 1
    state.cursor = batch.cursor
    return output


def samples_of(batch: CropBatch, rank: int) -> Samples:
    """Who this rank's rows are. A batch has the crops of these alone, but the ids of all rows."""
    num_rows = len(batch.crops[0])
    mine = slice(rank * num_rows, (rank + 1) * num_rows)
    labels = None if batch.labels is None else torch.tensor(batch.labels[mine])
    return Samples(torch.tensor(batch.ids[mine]), torch.tensor(batch.epochs[mine]), labels)


def first_sample(batch: CropBatch) -> tuple[int, int, int]:
    """The id of the first sample of a batch, for whoever wants to see one."""
    shard, offset = batch.ids[0].tolist()
    return shard, offset, int(batch.epochs[0])


def learning_rate(config: RunConfig, step: int) -> float:
    """That of `step`, counted from 0."""
    return config.schedule.lr(step, config.num_steps, config.optim.base_lr)


def _seed(seed: int, step: int, rank: int) -> int:
    """Ranks draw for different rows, so they must not draw alike."""
    if rank == 0:
        return (seed << 32) + step
    return step_generator(seed, step, f"rank {rank}").initial_seed()


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
