"""SimCLR v1 and v2: a simple framework for contrastive learning of visual representations.

Chen et al., arXiv:2002.05709 (v1) and arXiv:2006.10029 (v2: three layers in the head, larger nets
with selective kernels). Crops of an image must find each other among those of all other images
of the batch. With more than two crops it is SimCLR as in SwAV's multi-crop comparison
(arXiv:2006.09882, appendix A.8).

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, V crops of a
sample, N = V * B and M = V * G rows in crop-major order (rows [v * G, (v + 1) * G) are crop v), D
feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import gather_rows_with_gradient, rank, world_size
from streamssl.methods.base import Samples, StepOutput
from streamssl.modules.heads import simclr_head
from streamssl.modules.losses import at_least_float32


@dataclass(frozen=True, kw_only=True, slots=True)
class SimCLRConfig:
    """SimCLR as on ImageNet; v2 has `num_layers=3`, CIFAR-10 has `temperature=0.5`."""

    dim: int = 128
    num_layers: int = 2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the paper has 0.1"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike; this one never changes
        seed: int = 0,  # noqa: ARG002 - and draws nothing
        group: ProcessGroup | None = None,
    ) -> "SimCLR":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return SimCLR(self, backbone, num_views=num_views, group=group)


def gather_crops(z_ND: Tensor, num_crops: int, group: ProcessGroup | None) -> Tensor:
    """Crop-major rows of all ranks, (M, D), crop-major again; gradients flow back."""
    parts = gather_rows_with_gradient(z_ND, group)
    by_rank = parts.view(world_size(group), num_crops, -1, z_ND.shape[1])
    return by_rank.transpose(0, 1).reshape(-1, z_ND.shape[1])


def nt_xent(
    z_ND: Tensor, temperature: float, *, num_crops: int = 2, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Each crop finds each other crop of its image: (loss, logits (N, M)).

    arXiv:2002.05709, eq. 1, as the authors compute it: the sum over both directions, which is twice
    the mean over the crops. Features as they are: give unit norm. The denominator of a pair has the
    pair and all crops of other images; other crops of the same image are left out of it.
    """
    z_MD = gather_crops(z_ND, num_crops, group)
    logits = at_least_float32(z_ND @ z_MD.T) / temperature
    num_samples, num_rows = len(z_MD) // num_crops, len(z_ND) // num_crops
    if num_samples < 2:
        raise ConfigError(
            "a batch of 1 image; SimCLR has no negatives in it, so it needs at least 2: raise "
            "--stream.batch-size"
        )
    crops_V = torch.arange(num_crops, device=z_ND.device)
    sample_N = torch.arange(num_rows, device=z_ND.device).repeat(num_crops) + rank(group) * num_rows
    own_NV = sample_N[:, None] + num_samples * crops_V  # columns of the crops of the own image
    negatives_N1 = logits.scatter(1, own_NV, -torch.inf).logsumexp(dim=1, keepdim=True)
    # -log(e^p / (e^p + sum e^n)) = log(1 + e^(log sum e^n - p)); the crop itself is no pair.
    losses_NV = F.softplus(negatives_N1 - logits.gather(1, own_NV))
    losses_NV = losses_NV.scatter(1, crops_V.repeat_interleave(num_rows)[:, None], 0.0)
    return 2 * losses_NV.sum() / (len(z_ND) * (num_crops - 1)), logits


class SimCLR(nn.Module):
    """Backbone and projection."""

    def __init__(
        self,
        config: SimCLRConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.num_crops = sum(num_views)
        if self.num_crops < 2:
            raise ConfigError(
                f"num_views={tuple(num_views)}; SimCLR compares crops of an image and needs at "
                "least two; add views"
            )
        self.config, self.group = config, group
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = simclr_head(width, config.dim, config.num_layers)

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,  # noqa: ARG002 - nothing changes from step to step
        samples: Samples | None = None,  # noqa: ARG002 - only some methods ask who is who
    ) -> StepOutput:
        """Algorithm 1 of arXiv:2002.05709. Batch norm of the head sees all crops at once."""
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        with torch.autocast(features_ND.device.type, enabled=False):
            # The authors bound the square of the norm, by 1e-12, which is the norm by 1e-6.
            z_ND = F.normalize(at_least_float32(features_ND), dim=1, eps=1e-6)
            loss, logits = nt_xent(
                z_ND, self.config.temperature, num_crops=self.num_crops, group=self.group
            )
        num_rows = len(z_ND) // self.num_crops
        # A crop's like is one of it and all crops of other images.
        plateau = 2 * math.log(1 + logits.shape[1] - self.num_crops)
        readings = self._readings(logits.detach())
        return StepOutput(loss, readings, z_ND[:num_rows].detach(), plateau)

    def _readings(self, logits: Tensor) -> dict[str, Tensor | float]:
        """`contrast_accuracy`: how often crop 0's best match in crop 1 is its own image."""
        num_rows, num_samples = len(logits) // self.num_crops, logits.shape[1] // self.num_crops
        logits_BG = logits[:num_rows, num_samples : 2 * num_samples]
        own = torch.arange(num_rows, device=logits.device) + rank(self.group) * num_rows
        return {
            "contrast_accuracy": (logits_BG.argmax(dim=1) == own).float().mean(),
            "positive_cosine": logits_BG.gather(1, own[:, None]).mean() * self.config.temperature,
        }

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone and head."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
