"""The loop: batches of crops in, steps out. It cannot tell a laptop from a cluster.

It is handed an iterable of batches, a state and a reporter; it opens nothing and scales nothing.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.crops.tensors import to_tensors
from shards.errors import StreamEnded, StreamStopped
from shards.records import CropBatch, Cursor, Reject
from streamssl.checkpoint import TrainState
from streamssl.collectives import rank
from streamssl.config import RunConfig
from streamssl.methods.base import Method, Samples, StepOutput


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step. `loss` and `readings` may still be on the device: reading them waits."""

    step: int
    loss: Tensor
    readings: dict[str, Tensor | float]
    lr: float
    digest: str
    num_samples: int
    rejects: tuple[Reject, ...]
    num_unselected: int
    cursor: Cursor
    step_seconds: float
    data_wait_seconds: float


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
    iterator = iter(batches)
    saved = state.step
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
        lr = config.schedule.lr(state.step, config.num_steps, config.optim.base_lr)
        output = _step(config, state, batch, lr, device)
        state.step += 1
        state.cursor = batch.cursor
        report(
            StepReport(
                state.step,
                output.loss.detach(),
                dict(output.readings),
                lr,
                batch.digest,
                len(batch),
                batch.rejects,
                batch.num_unselected,
                batch.cursor,
                step_seconds=time.monotonic() - began,
                data_wait_seconds=began - asked,
            )
        )
        stopping = stop()
        if stopping or state.step % config.save_every == 0 or state.step == config.num_steps:
            save()
            saved = state.step
        if stopping:
            return


def _step(
    config: RunConfig, state: TrainState, batch: CropBatch, lr: float, device: torch.device
) -> StepOutput:
    """One optimizer step on one global batch; steps are counted from 0 here."""
    method: Method = state.method  # type: ignore[assignment]
    step = state.step
    # What a network draws for itself (drop path) depends on the step alone: no state to save.
    torch.manual_seed((config.seed << 32) + step)
    config.optim.set_rates(state.optimizer, lr, step / config.num_steps)
    state.optimizer.zero_grad(set_to_none=True)
    views = to_tensors(batch.crops, device)
    samples = samples_of(batch, rank(method.group))
    with _precision(config, device):
        output = method.loss(views, step=step, samples=samples)
    output.loss.backward()
    method.after_backward(step)
    state.optimizer.step()
    method.after_step(step)
    return output


def samples_of(batch: CropBatch, rank: int) -> Samples:
    """Who this rank's rows are. A batch has the crops of these alone, but the ids of all rows."""
    num_rows = len(batch.crops[0])
    mine = slice(rank * num_rows, (rank + 1) * num_rows)
    labels = None if batch.labels is None else torch.tensor(batch.labels[mine])
    return Samples(torch.tensor(batch.ids[mine]), torch.tensor(batch.epochs[mine]), labels)


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
