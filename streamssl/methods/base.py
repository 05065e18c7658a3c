"""Contract between the trainer and a method.

A method is one `nn.Module` in one file. Its state between steps (momentum copy, queue, prototypes)
lies in its modules and buffers, so a checkpoint holds its state dict and nothing else.

Shape letters: B samples of this rank, V_g views of group g, S_g pixels, D feature.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from shards.errors import ConfigError
from streamssl.devices.number_transfer import Reading
from streamssl.modules.momentum import MomentumCopy
from streamssl.modules.prototypes import Prototypes

TensorFunction = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Loss of this rank's samples, to be averaged over ranks, and readings of the step.

    `loss` is a float32 scalar with gradient. `readings` are detached scalars, perhaps on the
    device: a method must not read them, since it would wait for the device. `features` (B, D) are
    this rank's unit-norm features of one view, detached, for health checks. `plateau` is the loss
    of features that carry no information about their images, if it is known.
    """

    loss: Tensor
    readings: Mapping[str, Reading] = field(default_factory=dict)
    features: Tensor | None = None
    plateau: float | None = None


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """Identities and labels of the B rows of a view, in their order, on the CPU.

    `ids` (B, 2) int64: shard row and header offset; `epochs` (B,) int64; `labels` (B,) int64,
    negative for a sample without a label, or None if the run names no label.
    """

    ids: Tensor
    epochs: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildContext:
    """Inputs of a method's constructor besides its settings.

    `num_views`: views of each view group. `group`: the ranks that share a global batch, or None for
    one process. Unless `fresh`, all weights come from a checkpoint afterwards.
    """

    backbone: nn.Module
    num_views: tuple[int, ...]
    num_steps: int = 0
    seed: int = 0
    group: ProcessGroup | None = None
    fresh: bool = True

    @property
    def num_crops(self) -> int:
        """Crops of a sample, over all groups."""
        return sum(self.num_views)

    @property
    def width(self) -> int:
        """Numbers in a feature of the backbone."""
        return int(self.backbone.num_features)  # type: ignore[arg-type]


class Method(nn.Module):
    """Base class of all methods.

    The trainer calls at every step, counted from 0: `loss`, backward, `after_backward`, optimizer
    step, `after_step`. `backbone` is the encoder to evaluate and export. `group` may be replaced
    between steps.
    """

    backbone: nn.Module

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        self.backbone = context.backbone
        self.group = context.group

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of a step.

        `views[g]` is a normalised (V_g * B, 3, S_g, S_g) tensor, crop-major: all samples of view 0,
        then of view 1.
        """
        raise NotImplementedError

    def compile_loss(self, compiled: Callable[[TensorFunction], TensorFunction]) -> None:
        """Replace functions of the loss that are faster compiled; by default none."""

    def after_backward(self, step: int) -> None:
        """Change gradients or state before the optimizer moves the weights."""

    def after_step(self, step: int) -> None:
        """Change state after the optimizer has moved the weights."""

    def changed_by_loss(self) -> list[nn.Parameter]:
        """Return the parameters that `loss` changes in place, besides buffers.

        They are copied before a step that may have to be undone. By default those of momentum
        copies and prototypes.
        """
        return [
            parameter
            for module in self.modules()
            if isinstance(module, MomentumCopy | Prototypes)
            for parameter in module.parameters()
        ]

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a CPU generator of these three keys alone, so that a resumed step draws the same."""
    key = blake2b(f"{purpose}/{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


def as_pair(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return both views (B, 3, S, S) of a method with two: two groups of one, or one of two."""
    first, second = views if len(views) == 2 else views[0].chunk(2)
    return first, second


def check_pair(num_views: Sequence[int], method: str, purpose: str) -> None:
    """Raise ConfigError unless a sample has two views, of one size or of two."""
    if sum(num_views) != 2:
        raise ConfigError(
            f"num_views={tuple(num_views)}; {method} takes two views of an image, {purpose}; "
            "give one group of two views or two groups of one"
        )


def check_crops(crops_for_assign: Sequence[int], num_crops: int) -> None:
    """Raise ConfigError unless the assigned crops are among those of the views."""
    if num_crops < 2 or not set(crops_for_assign) <= set(range(num_crops)):
        raise ConfigError(
            f"crops_for_assign={tuple(crops_for_assign)} with {num_crops} crops a sample; at least "
            "two crops are needed, and assigned ones are counted from 0; add views or change "
            "crops_for_assign"
        )


def check_several(num_views: Sequence[int], method: str) -> None:
    """Raise ConfigError unless a sample has at least two views."""
    if sum(num_views) < 2:
        raise ConfigError(
            f"num_views={tuple(num_views)}; {method} compares crops of an image and needs at "
            "least two; add views"
        )
