"""Memory and time of micro-batches and recomputation, and the time of a compiled encoder.

`python -m tests.bench.execution` trains SwAV on noise. Peak memory is that of a process of its own,
above what it had before its first step. Times are paired: plain and other steps in turn, in one
process; the ratio is that of the medians.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
import tyro

from cluster.protocol.learner import StopVote
from shards.crops import recipe as crops
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.recipes.swav_recipes import swav_small
from streamssl.training.learner import PretrainLearner
from tests.tinyrun import CPU, made_batches


@dataclass(frozen=True, kw_only=True)
class Options:
    """Network, batch and crops; `pairs` of timed steps. `compile` needs a C++ compiler."""

    backbone: str = "resnet50"
    batch: int = 32
    sides: tuple[int, ...] = (96,)
    precision: str = "fp32"
    micro_batches: int = 4
    pairs: int = 5
    threads: int = 2
    compile: bool = False


def config_of(options: Options, **changes: Any) -> RunConfig:
    """Return SwAV with two crops of each size."""
    config = swav_small()
    counts = tuple(2 for _ in options.sides)
    scales = tuple((0.14, 1.0) for _ in options.sides)
    return replace(
        config,
        backbone=BackboneConfig(name=options.backbone, stem="imagenet"),
        crops=crops.swav(counts=counts, sizes=options.sides, scales=scales),
        stream=replace(config.stream, batch_size=options.batch),
        optim=OptimConfig(name="sgd", base_lr=0.01),
        precision=options.precision,
        **changes,
    )


def peak_mib(options: Options, changes: dict[str, Any]) -> float:
    """Return the memory that two steps need, in a process that did nothing else."""
    torch.set_num_threads(options.threads)
    learner = PretrainLearner(config_of(options, **changes), CPU)
    batches = list(made_batches(learner.config, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in batches:
        learner.train_step(batch, StopVote.CONTINUE)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def paired_seconds(options: Options, changes: dict[str, Any]) -> tuple[float, float]:
    """Return the median seconds of plain steps, and of those with the changes."""
    torch.set_num_threads(options.threads)
    learners = [PretrainLearner(config_of(options, **each), CPU) for each in ({}, changes)]
    batches = list(made_batches(learners[0].config, options.pairs + 2))
    found: list[list[float]] = [[], []]
    for batch in batches:
        for seconds, learner in zip(found, learners, strict=True):
            began = time.perf_counter()
            learner.train_step(batch, StopVote.CONTINUE)
            seconds.append(time.perf_counter() - began)
    return median(found[0][2:]), median(found[1][2:])


def in_own_process(function: Any, options: Options, changes: dict[str, Any]) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, options, changes).result()


def rows(options: Options) -> Iterator[Sequence[object]]:
    """Yield the cells of each line of the table."""
    ways: dict[str, dict[str, Any]] = {
        f"{options.micro_batches} micro-batches": {"micro_batches": options.micro_batches},
        "recompute": {"recompute": True},
        "both": {"micro_batches": options.micro_batches, "recompute": True},
    }
    if options.compile:
        ways = {"compile": {"compile": True}}
    else:
        yield "plain", f"{in_own_process(peak_mib, options, {}):,.0f}", "", ""
    for name, changes in ways.items():
        peak = in_own_process(peak_mib, options, changes) if not options.compile else 0
        plain, other = in_own_process(paired_seconds, options, changes)
        yield name, f"{peak:,.0f}" if peak else "", f"{other:.2f}", f"{other / plain:.2f}"


def main() -> None:
    options = tyro.cli(Options)
    print(f"{options}\n| way | peak MiB | seconds a step | times plain |\n|---|---|---|---|")
    for cells in rows(options):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
