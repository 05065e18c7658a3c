"""Cost of the trainer: `python -m tests.bench.step`.

Steps of a recipe by the learner of a run, with all that it measures and checks, against the same
method and optimizer in a plain loop of PyTorch on tensors that are there. In turn, in blocks, with
the same synthetic crops; the first blocks are a warm-up.
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
    """`pairs` of blocks of `block` steps with batches of `batch` images, on `threads` threads."""

    recipe: str = "swav-small"
    batch: int = 64
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
        stream=replace(config.stream, batch_size=options.batch),
        precision=options.precision,
    )
    (batch,) = made_batches(config, 1)
    learner, plain = PretrainLearner(config, CPU), plain_steps(config, batch)

    def learn() -> None:
        learner.train_step(batch, StopVote.CONTINUE)

    def seconds(train: Callable[[], None]) -> float:
        began = time.perf_counter()
        for _ in range(options.block):
            train()
        return (time.perf_counter() - began) / options.block

    for train in (learn, plain):
        seconds(train)
    pairs = []
    for number in range(options.pairs):
        order = (learn, plain) if number % 2 else (plain, learn)
        found = {train: seconds(train) for train in order}
        pairs.append((found[learn], found[plain]))
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    print(f"plain PyTorch, ms a step      {1e3 * statistics.median(x for _, x in pairs):8.1f}")
    print(f"learner, ms a step            {1e3 * statistics.median(x for x, _ in pairs):8.1f}")
    print(f"ratio, median of pairs        {statistics.median(ratios):8.3f}")
    print(f"ratio, quartiles              {ratios[len(ratios) // 4]:8.3f}", end=" ")
    print(f"{ratios[-1 - len(ratios) // 4]:.3f}")


if __name__ == "__main__":
    main()
