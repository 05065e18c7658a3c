"""Every method in a world of tiny pictures, once as it should be and once as it is known to fail.

Pictures have 4 x 4 pixels and are of 16 kinds. Blue tells the kind; red and green, which are three
times as strong, change from crop to crop. A step of a two-layer backbone takes about a millisecond.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from streamssl import health
from streamssl.health import HealthWatch
from streamssl.methods.base import Samples
from streamssl.optim import OptimConfig

NUM_STEPS = 300
_KINDS, _PICTURES, _BATCH, _SIDE = 16, 256, 64, 4


def pictures() -> Tensor:
    """All pictures of the world, (256, 1, 4, 4): their blue."""
    generator = torch.Generator().manual_seed(7)
    kinds = torch.randn(_KINDS, 1, _SIDE, _SIDE, generator=generator)
    own = torch.randn(_PICTURES, 1, _SIDE, _SIDE, generator=generator)
    return kinds.repeat(_PICTURES // _KINDS, 1, 1, 1) + 0.3 * own


def batch(step: int, *, related: bool = True) -> tuple[Tensor, Samples]:
    """Two crops of the pictures that are due at a step, (128, 3, 4, 4), and who they are.

    Crops that are not related show nothing of their picture.
    """
    generator = torch.Generator().manual_seed(step)
    rows = torch.randperm(_PICTURES, generator=generator)[:_BATCH]
    crops = torch.randn(2, _BATCH, 3, _SIDE, _SIDE, generator=generator)
    if related:
        crops[:, :, 2:] = pictures()[rows] + 0.3 * crops[:, :, 2:]
    ids = torch.stack([torch.zeros_like(rows), rows], dim=1)
    return crops.flatten(0, 1), Samples(ids, torch.zeros_like(rows), rows % _KINDS)


class Backbone(nn.Module):
    """Two layers."""

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * _SIDE**2, 64), nn.ReLU(), nn.Linear(64, self.num_features)
        )

    def forward(self, crops: Tensor) -> Tensor:
        out: Tensor = self.layers(crops)
        return out


def without_predictor(method: nn.Module) -> None:
    """BYOL's and MoCo v3's online network then predicts nothing: it must be the target."""
    method.predictor = nn.Identity()


ADAMW = OptimConfig(name="adamw", base_lr=5e-3, weight_decay=1e-4)


@dataclass(frozen=True)
class Case:
    """A method as it should be, and what makes it collapse: its settings, optimizer, crops, or
    what is done to its network."""

    config: Any
    broken: dict[str, Any] = field(default_factory=dict)
    broken_optim: OptimConfig = ADAMW
    related: bool = True
    spoil: Callable[[nn.Module], None] | None = None


def train(case: Case, *, broken: bool) -> list[tuple[int, dict[str, float], tuple[str, ...]]]:
    """Step, readings and what is beyond its limit, for every look of a run."""
    torch.manual_seed(0)
    config = replace(case.config, **case.broken) if broken else case.config
    method = config.build(Backbone(), num_views=(2,), seed=0, num_steps=NUM_STEPS)
    if broken and case.spoil is not None:
        case.spoil(method)
    optimizer = (case.broken_optim if broken else ADAMW).build(method.parameters_to_optimise())
    watch, looks = HealthWatch(NUM_STEPS), []
    for step in range(NUM_STEPS):
        crops, samples = batch(step, related=case.related or not broken)
        optimizer.zero_grad()
        output = method.loss([crops], step=step, samples=samples)
        output.loss.backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        if (step + 1) % health.EVERY == 0:
            found = {**output.readings, **health.measure(output, None)}
            readings = {name: float(value) for name, value in found.items()}
            looks.append((step + 1, readings, watch.look(step + 1, readings).crossed))
    return looks
