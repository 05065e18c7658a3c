"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie and He, arXiv:2104.02057. Two views of an image, each the query and each the key of the
other; negatives are the other keys of the batch, so there is no queue; queries pass a predictor.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, D feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, rank
from streamssl.methods.base import Samples, StepOutput, as_pair, check_pair
from streamssl.modules.heads import moco_v3_head
from streamssl.modules.losses import at_least_float32
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import MomentumKind, momentum_at


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoV3Config:
    """The authors' settings for a ResNet-50; a transformer has `head="vit", temperature=0.2`.

    `head`: "resnet" projects by two layers and predicts without a norm at the end; "vit" projects
    by three and predicts with one. The momentum rises to 1 along a cosine over the run; "constant"
    leaves it where it is, for runs without an end.
    """

    head: Literal["resnet", "vit"] = "resnet"
    dim: int = 256
    hidden_dim: int = 4096
    temperature: float = 1.0
    momentum: float = 0.99
    momentum_kind: MomentumKind = "cosine"

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the authors have 1.0 for "
                "ResNets and 0.2 for transformers"
            )
        if not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"momentum={self.momentum}; it must lie in [0, 1]; the authors have 0.99"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int,
        seed: int = 0,  # noqa: ARG002 - every method is built alike; this one draws nothing
        group: ProcessGroup | None = None,
    ) -> "MoCoV3":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return MoCoV3(self, backbone, num_views=num_views, num_steps=num_steps, group=group)


def contrast_with_batch(
    query_BD: Tensor, key_BD: Tensor, temperature: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Each query finds its key among those of all ranks: (loss, logits (B, G)).

    arXiv:2104.02057, eq. 1 and algorithm 1, with its factor 2T. Inputs of any norm; no gradient to
    the keys. This rank's own keys are the columns from its rank * B on.
    """
    q_BD = F.normalize(at_least_float32(query_BD), dim=1)
    k_GD = all_gather_rows(F.normalize(at_least_float32(key_BD.detach()), dim=1), group)
    logits = q_BD @ k_GD.T / temperature
    own = torch.arange(len(q_BD), device=q_BD.device) + rank(group) * len(q_BD)
    return F.cross_entropy(logits, own) * (2 * temperature), logits


class MoCoV3(nn.Module):
    """Backbone, projection and predictor make queries; a momentum copy of the first two, keys."""

    def __init__(
        self,
        config: MoCoV3Config,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_pair(num_views, "MoCo v3", "each the query and the key of the other")
        self.config, self.num_steps, self.group = config, num_steps, group
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        is_vit, hidden, dim = config.head == "vit", config.hidden_dim, config.dim
        self.projection = moco_v3_head(
            width, hidden, dim, num_layers=3 if is_vit else 2, ends_in_norm=True
        )
        self.predictor = moco_v3_head(dim, hidden, dim, num_layers=2, ends_in_norm=is_vit)
        self.key_encoder = MomentumCopy(self._online())

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,
        samples: Samples | None = None,  # noqa: ARG002 - only some methods ask who is who
    ) -> StepOutput:
        """Algorithm 1: both queries, then the momentum update, then both keys."""
        pair = as_pair(views)
        queries = [self.predictor(self.projection(self.backbone(crops))) for crops in pair]
        momentum = momentum_at(
            self.config.momentum_kind,
            step,
            num_steps=self.num_steps,
            base_momentum=self.config.momentum,
        )
        self.key_encoder.update(self._online(), momentum)
        keys = [self.key_encoder(crops) for crops in pair]
        temperature, group = self.config.temperature, self.group
        with torch.autocast(queries[0].device.type, enabled=False):
            first, logits_BG = contrast_with_batch(queries[0], keys[1], temperature, group)
            second, _ = contrast_with_batch(queries[1], keys[0], temperature, group)
            q_BD = F.normalize(at_least_float32(queries[0].detach()), dim=1)
        readings = self._readings(logits_BG.detach())
        # Both queries find all keys alike.
        plateau = 4 * temperature * math.log(logits_BG.shape[1])
        return StepOutput(first + second, {**readings, "momentum": momentum}, q_BD, plateau)

    def _readings(self, logits_BG: Tensor) -> dict[str, Tensor | float]:
        """`contrast_accuracy`: how often the key is the best match; mean cosine with it."""
        num_rows = len(logits_BG)
        own = torch.arange(num_rows, device=logits_BG.device) + rank(self.group) * num_rows
        positive_B1 = logits_BG.gather(1, own[:, None])
        return {
            "contrast_accuracy": (logits_BG.argmax(dim=1) == own).float().mean(),
            "positive_cosine": positive_B1.mean() * self.config.temperature,
        }

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing: the momentum copy moves between queries and keys, as in algorithm 1."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone, projection and predictor; the momentum copy is not trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projection)
