"""BYOL: bootstrap your own latent, a new approach to self-supervised learning.

Grill et al., arXiv:2006.07733. An online network predicts, from one view, the projection that a
momentum copy of it computes from the other view. There are no negatives.

Shape letters: B samples of this rank, C classes, D feature.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.methods.base import (
    BuildContext,
    Method,
    SampleInfo,
    StepOutput,
    as_pair,
    check_pair,
)
from streamssl.modules.heads import byol_head
from streamssl.modules.losses import at_least_float32
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import momentum_at


def regression_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Return the squared distance (B,) of the normalised rows, 2 - 2 cos; target without gradient.

    arXiv:2006.07733, eq. 2, for one direction. Vectors of any norm.
    """
    # The authors bound the square of the norm by 1e-12, so the norm by 1e-6.
    p_BD = F.normalize(at_least_float32(prediction_BD), dim=1, eps=1e-6)
    z_BD = F.normalize(at_least_float32(target_BD.detach()), dim=1, eps=1e-6)
    return (p_BD - z_BD).square().sum(dim=1)


def symmetric_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the mean of both distances, of each view's prediction to the other view's target."""
    first_B = regression_loss(predictions[0], targets[1])
    second_B = regression_loss(predictions[1], targets[0])
    return (first_B + second_B).mean()


class BYOL(Method):
    """Online backbone, projection and predictor; the target is a copy of the first two."""

    def __init__(self, config: BYOLConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_pair(context.num_views, "BYOL", "which predict each other")
        self.config, self.num_steps = config, context.num_steps
        self.projection = byol_head(context.width, config.hidden_dim, config.dim)
        self.predictor = byol_head(config.dim, config.hidden_dim, config.dim)
        self.target = MomentumCopy(self._online())

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of section 3.1. Each view has its own batch norm statistics."""
        pair = as_pair(views)
        projections = [self.projection(self.backbone(crops)) for crops in pair]
        predictions = [self.predictor(z_BD) for z_BD in projections]
        targets = [self.target(crops) for crops in pair]
        with torch.autocast(predictions[0].device.type, enabled=False):
            loss = symmetric_loss(predictions, targets)
            z_BD = F.normalize(at_least_float32(projections[0].detach()), dim=1)
        readings: dict[str, Tensor | float] = {
            "target_cosine": 1 - loss.detach() / 4,
            "momentum": self._momentum(step),
        }
        return StepOutput(loss, readings, z_BD)

    def changed_by_loss(self) -> list[nn.Parameter]:
        """Return no parameter: the target moves after the step."""
        return []

    def after_step(self, step: int) -> None:
        """Move the target towards the updated online network (eq. 1)."""
        self.target.update(self._online(), self._momentum(step))

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projection)

    def _momentum(self, step: int) -> float:
        config = self.config
        return momentum_at(
            config.momentum_kind, step, num_steps=self.num_steps, base_momentum=config.momentum
        )
