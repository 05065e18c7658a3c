"""What the trainer needs of a method, and nothing more.

A method is one `nn.Module` in one file. Everything it needs between steps (momentum copy, queue,
prototypes) is a module or buffer of it, so its state dict is all there is to save.

Shape letters: B samples of this rank, V_g views of group g, S_g pixels, D feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from shards.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A loss of this rank's samples, to be averaged over ranks, and what to read beside it.

    `loss` is a float32 scalar with gradient. `readings` are detached scalars that may still be on
    the device: reading one waits for it, so read seldom. `features` (B, D) are this rank's
    unit-norm features of one view, detached, for checks of health. `plateau` is what the loss is
    where features tell nothing about their images, if that is known.
    """

    loss: Tensor
    readings: Mapping[str, Tensor | float] = field(default_factory=dict)
    features: Tensor | None = None
    plateau: float | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Who the B rows of a view are, in their order, for methods that must know. On the CPU.

    `ids` (B, 2) int64, shard row and header offset; `epochs` (B,) int64; `labels` (B,) int64, below
    0 where a sample has none, or None where the run asks for none.
    """

    ids: Tensor
    epochs: Tensor
    labels: Tensor | None = None


class Method(Protocol):
    """How the trainer drives a method, in this order, at every step (counted from 0).

    `loss(views, step=..., samples=...)`, backward, `after_backward`, optimizer step, `after_step`.
    `views[g]` is a normalised (V_g * B, 3, S_g, S_g) tensor, crop-major: all samples of view 0,
    then of view 1. `group` are the ranks that share a global batch; None is one process. It may be
    replaced between steps. `backbone` is the encoder to evaluate and export.
    """

    backbone: nn.Module
    group: ProcessGroup | None

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: Samples | None = None
    ) -> StepOutput: ...

    def after_backward(self, step: int) -> None: ...

    def after_step(self, step: int) -> None: ...

    def parameters_to_optimise(self) -> list[nn.Parameter]: ...


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its three keys, so a resumed step draws alike."""
    key = blake2b(f"{purpose}/{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


def as_pair(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Both views of methods that have two, each (B, 3, S, S): two groups of one, or one of two."""
    first, second = views if len(views) == 2 else views[0].chunk(2)
    return first, second


def check_pair(num_views: Sequence[int], method: str, purpose: str) -> None:
    """Raise ConfigError unless a sample has two views, of one size or of two."""
    if sum(num_views) != 2:
        raise ConfigError(
            f"num_views={tuple(num_views)}; {method} takes two views of an image, {purpose}; "
            "give one group of two views or two groups of one"
        )
