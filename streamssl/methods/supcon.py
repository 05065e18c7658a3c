"""SupCon: supervised contrastive learning.

Khosla et al., arXiv:2004.11362. As SimCLR, but crops of all images with the same label find each
other. A label can be any field of a sample: a class, a hashtag. A sample without a label finds only
its own crops, so without labels this is SimCLR.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, V crops of a
sample, N anchors and M = V * G contrasts in crop-major order (rows [v * G, (v + 1) * G) are crop
v), D feature.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.distributed.collectives import all_gather_rows, rank
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput, check_several
from streamssl.methods.simclr import gather_crops
from streamssl.modules.heads import mlp_head
from streamssl.modules.losses import at_least_float32


def supcon_loss(
    anchors_ND: Tensor,
    contrasts_MD: Tensor,
    positive_NM: Tensor,
    own_N: Tensor,
    *,
    temperature: float,
    base_temperature: float = 0.07,
) -> Tensor:
    """Return the loss of anchors that find their positives among all contrasts but themselves.

    arXiv:2004.11362, eq. 2 (the mean outside the logarithm), times temperature / base_temperature.
    `own_N` is the column of each anchor itself. `positive_NM` is 1 for a positive; an anchor
    without one adds 0 to the loss and counts in the mean. Features of any norm: the sums are
    float64, since large logits in float32 would make gradients wrong by more than 1e-6.
    """
    logits = anchors_ND.double() @ contrasts_MD.double().T / temperature
    own_N1 = own_N[:, None]
    all_N1 = logits.scatter(1, own_N1, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive_NM = positive_NM.to(logits.dtype).scatter(1, own_N1, 0.0)
    num_positives_N = positive_NM.sum(dim=1)
    log_p_N = (positive_NM * (logits - all_N1)).sum(dim=1) / num_positives_N.clamp(min=1)
    loss = -(temperature / base_temperature) * log_p_N.mean()
    return loss.to(at_least_float32(anchors_ND).dtype)


def same_label(labels_B: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return a bool matrix (B, G): samples with the same label, and each sample with itself.

    Negative labels mean no label.
    """
    labels_G = all_gather_rows(labels_B, group)
    is_same_BG = (labels_B[:, None] == labels_G) & (labels_B[:, None] >= 0)
    rows_B = torch.arange(len(labels_B), device=labels_B.device)
    is_same_BG[rows_B, rows_B + rank(group) * len(labels_B)] = True
    return is_same_BG


class SupCon(Method):
    """Backbone and projection."""

    def __init__(self, config: SupConConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_several(context.num_views, "SupCon")
        self.config, self.num_crops = config, context.num_crops
        self.head = mlp_head(context.width, context.width, config.dim)

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute section 3.1: backbone, projection, loss over all crops of the global batch."""
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        num_rows = len(features_ND) // self.num_crops
        labels_B = torch.full((num_rows,), -1, device=features_ND.device)
        if samples is not None and samples.labels is not None:
            labels_B = samples.labels.to(features_ND.device, non_blocking=True)
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
        """Return the loss where all crops but the anchor are equally similar to it."""
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
