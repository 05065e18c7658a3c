"""Cost of the trainer: `python -m tests.bench.step`.

Steps of a recipe by the learner of a run, with all that it measures and checks, against the same
method and optimizer in a plain loop of PyTorch on tensors that are there. In turn, in blocks, with
the same synthetic crops; the first blocks are a warm-up. Ratios of CPU seconds are valid on a busy
machine, too, with one thread.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import tyro

from cluster.protocol.learner import StopVote
from shards.dataloader.tensors import to_tensors
from streamssl.methods.base import SampleInfo
from streamssl.recipes import RECIPES
from streamssl.training.learner import PretrainLearner
from streamssl.training.train_state import build_state
from tests.tinyrun import CPU, made_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`pairs` of blocks of `block` steps on `threads` threads.

    `batch` images in a step; None: as in the recipe.
    """

    recipe: str = "swav-small"
    batch: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    pairs: int = 15
    block: int = 3
    threads: int = 2


def plain_steps(config: Any, batch: Any) -> Callable[[], None]:
    """Return a function that trains one step in plain PyTorch."""
    state = build_state(config, CPU)
    method: Any = state.method
    views = to_tensors(batch.crops, CPU)
    labels = None if batch.labels is None else torch.tensor(batch.labels)
    samples = SampleInfo(torch.tensor(batch.ids), torch.tensor(batch.epochs), labels)
    step = 0

    def train() -> None:
        nonlocal step
        state.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = method.loss(views, step=step, samples=samples).loss
        loss.backward()
        method.after_backward(step)
        state.optimizer.step()
        method.after_step(step)
        step += 1

    return train


def main() -> None:
    """Measure, and print medians and quartiles."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    config = RECIPES[options.recipe]()
    config = replace(
        config,
        stream=replace(config.stream, batch_size=options.batch or config.stream.batch_size),
        precision=options.precision,
    )
    (batch,) = made_batches(config, 1)
    learner, plain = PretrainLearner(config, CPU), plain_steps(config, batch)

    def learn() -> None:
        learner.train_step(batch, StopVote.CONTINUE)

    def seconds(train: Callable[[], None]) -> tuple[float, float]:
        """Return wall and CPU seconds of a step."""
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(options.block):
            train()
        found = time.perf_counter() - began, time.process_time() - cpu
        return found[0] / options.block, found[1] / options.block

    for train in (learn, plain):
        seconds(train)
    pairs = []
    for number in range(options.pairs):
        order = (learn, plain) if number % 2 else (plain, learn)
        found = {train: seconds(train) for train in order}
        pairs.append((found[learn], found[plain]))
    for place, name in enumerate(("wall", "CPU")):
        ours, theirs = ([one[place] for one in side] for side in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        quarter = len(ratios) // 4
        print(
            f"{name:<5} plain PyTorch {1e3 * statistics.median(theirs):8.1f} ms a step, learner "
            f"{1e3 * statistics.median(ours):8.1f}; ratio, median of pairs "
            f"{statistics.median(ratios):.3f} (quartiles {ratios[quarter]:.3f} "
            f"{ratios[-1 - quarter]:.3f})"
        )


if __name__ == "__main__":
    main()
