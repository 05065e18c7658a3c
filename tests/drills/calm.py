"""`streamssl pretrain` with one more method: SimCLR with long steps that use no core.

A step sleeps, like a trainer whose GPU computes. So readers keep up with it, and several runs share
one machine.
"""

import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shards.crops.recipe import CropRecipe, ViewGroup
from shards.stream.stream_config import StreamConfig
from streamssl.cli import main
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.run_config import METHODS, RunConfig
from streamssl.methods.base import SampleInfo, StepOutput
from streamssl.methods.registry import ALGORITHMS
from streamssl.methods.simclr import SimCLR
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig
from tests.tinyrun import BACKBONE, tiny_swav

PROGRAM = "tests.drills.calm"
# Easy crops: the loss is well below its plateau after some ten steps.
_CROPS = CropRecipe((ViewGroup(num_views=2, size=32, scale=(0.8, 1.0)),))


@dataclass(frozen=True, kw_only=True, slots=True)
class CalmConfig(SimCLRConfig):
    """SimCLR with seconds per step, and the step after which the second rank changes its state."""

    step_seconds: float = 0.1
    wrong_step: int = -1


class Calm(SimCLR):
    """SimCLR with the steps of `CalmConfig`."""

    config: CalmConfig

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        time.sleep(self.config.step_seconds)
        return super().loss(views, step=step, samples=samples)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        is_second = self.group is not None and self.group.rank() == 1
        if is_second and step == self.config.wrong_step:
            next(self.head.parameters()).mul_(2.0)


METHODS["calm"] = CalmConfig
ALGORITHMS[CalmConfig] = Calm


def calm(**changes: float) -> RunConfig:
    """Return settings of a run that outlasts a drill and learns."""
    return tiny_swav(
        method=CalmConfig(**{"dim": 16, "temperature": 0.2, **changes}),
        backbone=replace(BACKBONE, options={**BACKBONE.options, "drop_path_rate": 0.0}),
        crops=_CROPS,
        optim=OptimConfig(name="adamw", base_lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=2),
        stream=StreamConfig(batch_size=24, chunk_bytes=1 << 14, chunks_per_block=4),
        num_steps=5000,
        save_every=5000,
    )


if __name__ == "__main__":
    # Under its own name: a process that unpickles the configuration must find this class.
    importlib.import_module(PROGRAM)
    sys.exit(main())
