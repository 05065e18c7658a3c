"""BYOL: bootstrap your own latent, a new approach to self-supervised learning.

Grill et al., arXiv:2006.07733. An online network predicts, from one view, what a slowly moving copy
of itself makes of the other view. There are no negatives.

Shape letters: B samples of this rank, C classes, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.methods.base import Samples, StepOutput, as_pair, check_pair
from streamssl.modules.heads import byol_head
from streamssl.modules.losses import at_least_float32
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import MomentumKind, momentum_at


@dataclass(frozen=True, kw_only=True, slots=True)
class BYOLConfig:
    """The settings of the paper for 1,000 epochs (section 3.3); 300 epochs have momentum 0.99.

    The momentum of the target rises to 1 along a cosine over the run; "constant" leaves it where it
    is, for runs without an end.
    """

    dim: int = 256
    hidden_dim: int = 4096
    momentum: float = 0.996
    momentum_kind: MomentumKind = "cosine"

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"momentum={self.momentum}; it must lie in [0, 1]; the paper has 0.996"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int,
        seed: int = 0,  # noqa: ARG002 - every method is built alike; BYOL draws nothing of its own
        group: ProcessGroup | None = None,
    ) -> "BYOL":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return BYOL(self, backbone, num_views=num_views, num_steps=num_steps, group=group)


def regression_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Squared distance (B,) of the unit vectors of both, 2 - 2 cos; no gradient to the target.

    arXiv:2006.07733, eq. 2, for one direction. Vectors of any norm.
    """
    # The authors bound the square of the norm, by 1e-12, which is the norm by 1e-6.
    p_BD = F.normalize(at_least_float32(prediction_BD), dim=1, eps=1e-6)
    z_BD = F.normalize(at_least_float32(target_BD.detach()), dim=1, eps=1e-6)
    return (p_BD - z_BD).square().sum(dim=1)


def symmetric_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Each view's prediction meets the other view's target: the mean of both distances' sum."""
    first_B = regression_loss(predictions[0], targets[1])
    second_B = regression_loss(predictions[1], targets[0])
    return (first_B + second_B).mean()


class BYOL(nn.Module):
    """Backbone, projection and predictor are online; the target copies the first two."""

    def __init__(
        self,
        config: BYOLConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_pair(num_views, "BYOL", "which predict each other")
        self.config, self.num_steps, self.group = config, num_steps, group
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projection = byol_head(width, config.hidden_dim, config.dim)
        self.predictor = byol_head(config.dim, config.hidden_dim, config.dim)
        self.target = MomentumCopy(self._online())

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,
        samples: Samples | None = None,  # noqa: ARG002 - only some methods ask who is who
    ) -> StepOutput:
        """Section 3.1. Each view has batch norm statistics of its own."""
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

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """The target follows the online network, as the optimizer has left it (eq. 1)."""
        self.target.update(self._online(), self._momentum(step))

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """The online network; the target is not trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projection)

    def _momentum(self, step: int) -> float:
        config = self.config
        return momentum_at(
            config.momentum_kind, step, num_steps=self.num_steps, base_momentum=config.momentum
        )
