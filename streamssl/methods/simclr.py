"""SimCLR v1 and v2: a simple framework for contrastive learning of visual representations.

Chen et al., arXiv:2002.05709 (v1) and arXiv:2006.10029 (v2: three layers in the head, larger nets
with selective kernels). The crops of an image must find each other among those of all other images
of the batch. More than two crops are used as in SwAV's multi-crop comparison (arXiv:2006.09882,
appendix A.8).

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, V crops of a
sample, N = V * B and M = V * G rows in crop-major order (rows [v * G, (v + 1) * G) are crop v), D
feature.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.distributed.collectives import gather_rows_with_gradient, rank, world_size
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput, check_several
from streamssl.modules.heads import simclr_head
from streamssl.modules.losses import at_least_float32


def gather_crops(z_ND: Tensor, num_crops: int, group: ProcessGroup | None) -> Tensor:
    """Return the crop-major rows of all ranks, (M, D), crop-major, with gradient."""
    parts = gather_rows_with_gradient(z_ND, group)
    by_rank = parts.view(world_size(group), num_crops, -1, z_ND.shape[1])
    return by_rank.transpose(0, 1).reshape(-1, z_ND.shape[1])


def nt_xent(
    z_ND: Tensor, temperature: float, *, num_crops: int = 2, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Return (loss, logits (N, M)) of crops that find the other crops of their image.

    arXiv:2002.05709, eq. 1, as the authors compute it: the sum over both directions, twice the mean
    over the crops. Give features of unit norm. The denominator of a pair has the pair and all crops
    of other images, without other crops of the same image.
    """
    z_MD = gather_crops(z_ND, num_crops, group)
    logits = at_least_float32(z_ND @ z_MD.T) / temperature
    num_samples, num_rows = len(z_MD) // num_crops, len(z_ND) // num_crops
    if num_samples < 2:
        raise ConfigError(
            "a batch of 1 image has no negatives for SimCLR; it needs at least 2: raise "
            "--stream.batch-size"
        )
    crops_V = torch.arange(num_crops, device=z_ND.device)
    sample_N = torch.arange(num_rows, device=z_ND.device).repeat(num_crops) + rank(group) * num_rows
    own_NV = sample_N[:, None] + num_samples * crops_V  # columns of the own image's crops
    negatives_N1 = logits.scatter(1, own_NV, -torch.inf).logsumexp(dim=1, keepdim=True)
    # -log(e^p / (e^p + sum e^n)) = log(1 + e^(log sum e^n - p)); a crop is no pair of itself.
    losses_NV = F.softplus(negatives_N1 - logits.gather(1, own_NV))
    losses_NV = losses_NV.scatter(1, crops_V.repeat_interleave(num_rows)[:, None], 0.0)
    return 2 * losses_NV.sum() / (len(z_ND) * (num_crops - 1)), logits


class SimCLR(Method):
    """Backbone and projection."""

    def __init__(self, config: SimCLRConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_several(context.num_views, "SimCLR")
        self.config, self.num_crops = config, context.num_crops
        self.head = simclr_head(context.width, config.dim, config.num_layers)

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute algorithm 1 of arXiv:2002.05709; the head's batch norm sees all crops at once."""
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        with torch.autocast(features_ND.device.type, enabled=False):
            # The authors bound the square of the norm by 1e-12, so the norm by 1e-6.
            z_ND = F.normalize(at_least_float32(features_ND), dim=1, eps=1e-6)
            loss, logits = nt_xent(
                z_ND, self.config.temperature, num_crops=self.num_crops, group=self.group
            )
        num_rows = len(z_ND) // self.num_crops
        # Loss where the pair is as similar as all crops of other images.
        plateau = 2 * math.log(1 + logits.shape[1] - self.num_crops)
        readings = self._readings(logits.detach())
        return StepOutput(loss, readings, z_ND[:num_rows].detach(), plateau)

    def _readings(self, logits: Tensor) -> dict[str, Tensor | float]:
        """Return `contrast_accuracy`: how often crop 0's best match in crop 1 is its own image."""
        num_rows, num_samples = len(logits) // self.num_crops, logits.shape[1] // self.num_crops
        logits_BG = logits[:num_rows, num_samples : 2 * num_samples]
        own = torch.arange(num_rows, device=logits.device) + rank(self.group) * num_rows
        return {
            "contrast_accuracy": (logits_BG.argmax(dim=1) == own).float().mean(),
            "positive_cosine": logits_BG.gather(1, own[:, None]).mean() * self.config.temperature,
        }
