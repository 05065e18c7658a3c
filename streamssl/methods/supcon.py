"""SupCon: supervised contrastive learning.

Khosla et al., arXiv:2004.11362. As SimCLR, but crops of all images with the same label find each
other. A label is whatever a sample says about itself: a class, a hashtag, any field. A sample that
says nothing finds only its own crops, so without labels this is SimCLR.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, V crops of a
sample, N anchors and M = V * G contrasts in crop-major order (rows [v * G, (v + 1) * G) are crop
v), D feature.
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
from streamssl.methods.base import Samples, StepOutput
from streamssl.methods.simclr import gather_crops
from streamssl.modules.heads import mlp_head
from streamssl.modules.losses import at_least_float32


@dataclass(frozen=True, kw_only=True, slots=True)
class SupConConfig:
    """The authors' settings for CIFAR-10 and ImageNet; the run's `label` names the labels.

    `anchors`: "all" crops look for their like among all crops, or only the first "one" of each
    image does. The gradient is scaled by `temperature / base_temperature`, as theirs is.
    """

    dim: int = 128
    temperature: float = 0.1
    base_temperature: float = 0.07
    anchors: Literal["all", "one"] = "all"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"dim={self.dim}; it must be at least 1; the paper has 128")
        for name in ("temperature", "base_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be above 0; the authors have 0.1 and "
                    "0.07"
                )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike; this one never changes
        seed: int = 0,  # noqa: ARG002 - and draws nothing
        group: ProcessGroup | None = None,
    ) -> "SupCon":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return SupCon(self, backbone, num_views=num_views, group=group)


def supcon_loss(
    anchors_ND: Tensor,
    contrasts_MD: Tensor,
    positive_NM: Tensor,
    own_N: Tensor,
    *,
    temperature: float,
    base_temperature: float = 0.07,
) -> Tensor:
    """Each anchor finds its positives among all contrasts but itself, which is column `own_N`.

    arXiv:2004.11362, eq. 2 (the mean outside the logarithm), times temperature / base_temperature.
    Features as they are: give unit norm. `positive_NM` is 1 where a contrast is wanted; an anchor
    that wants none adds 0 to the loss and counts in the mean.
    """
    logits = at_least_float32(anchors_ND @ contrasts_MD.T) / temperature
    own_N1 = own_N[:, None]
    all_N1 = logits.scatter(1, own_N1, -torch.inf).logsumexp(dim=1, keepdim=True)
    wanted_NM = positive_NM.to(logits.dtype).scatter(1, own_N1, 0.0)
    num_wanted_N = wanted_NM.sum(dim=1)
    log_p_N = (wanted_NM * (logits - all_N1)).sum(dim=1)
    log_p_N = log_p_N / torch.where(num_wanted_N > 0, num_wanted_N, 1.0)
    return -(temperature / base_temperature) * log_p_N.mean()


def same_label(labels_B: Tensor, group: ProcessGroup | None) -> Tensor:
    """Which samples of the global batch are alike, (B, G) bool: by label, and each with itself.

    Labels below 0 are none.
    """
    labels_G = all_gather_rows(labels_B, group)
    is_same_BG = (labels_B[:, None] == labels_G) & (labels_B[:, None] >= 0)
    rows_B = torch.arange(len(labels_B), device=labels_B.device)
    is_same_BG[rows_B, rows_B + rank(group) * len(labels_B)] = True
    return is_same_BG


class SupCon(nn.Module):
    """Backbone and projection."""

    def __init__(
        self,
        config: SupConConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.num_crops = sum(num_views)
        if self.num_crops < 2:
            raise ConfigError(
                f"num_views={tuple(num_views)}; SupCon compares crops of an image and needs at "
                "least two; add views"
            )
        self.config, self.group = config, group
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = mlp_head(width, width, config.dim)

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,  # noqa: ARG002 - nothing changes from step to step
        samples: Samples | None = None,
    ) -> StepOutput:
        """Section 3.1: backbone, projection, loss over all crops of the global batch."""
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        num_rows = len(features_ND) // self.num_crops
        labels_B = torch.full((num_rows,), -1, device=features_ND.device)
        if samples is not None and samples.labels is not None:
            labels_B = samples.labels.to(features_ND.device)
        is_same_BG = same_label(labels_B, self.group)
        with torch.autocast(features_ND.device.type, enabled=False):
            z_ND = F.normalize(at_least_float32(features_ND), dim=1)
            loss = self._contrast(z_ND, is_same_BG)
        return StepOutput(
            loss,
            {
                "labelled": (labels_B >= 0).float().mean(),
                "positives": (is_same_BG.sum(dim=1) * self.num_crops - 1).float().mean(),
            },
            z_ND[:num_rows].detach(),
            self._plateau(is_same_BG.shape[1]),
        )

    def _plateau(self, num_samples: int) -> float:
        """The loss where all crops but the anchor are alike, whoever is wanted."""
        scale = self.config.temperature / self.config.base_temperature
        return scale * math.log(max(1, self.num_crops * num_samples - 1))

    def _contrast(self, z_ND: Tensor, is_same_BG: Tensor) -> Tensor:
        num_rows, num_samples = is_same_BG.shape
        num_anchors = self.num_crops if self.config.anchors == "all" else 1
        own_N = torch.arange(num_rows, device=z_ND.device) + rank(self.group) * num_rows
        own_N = torch.cat([own_N + crop * num_samples for crop in range(num_anchors)])
        return supcon_loss(
            z_ND[: num_anchors * num_rows],
            gather_crops(z_ND, self.num_crops, self.group),
            is_same_BG.repeat(num_anchors, self.num_crops),
            own_N,
            temperature=self.config.temperature,
            base_temperature=self.config.base_temperature,
        )

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone and head."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
