"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie and He, arXiv:2104.02057. Each of two views is a query and the key of the other. Negatives
are the other keys of the batch, so there is no queue. Queries pass a predictor.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, D feature.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.distributed.collectives import all_gather_rows, rank
from streamssl.methods.base import (
    BuildContext,
    Method,
    SampleInfo,
    StepOutput,
    as_pair,
    check_pair,
)
from streamssl.modules.heads import moco_v3_head
from streamssl.modules.losses import at_least_float32
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import momentum_at


def contrast_with_batch(
    query_BD: Tensor, key_BD: Tensor, temperature: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Return (loss, logits (B, G)) of queries that find their keys among those of all ranks.

    arXiv:2104.02057, eq. 1 and algorithm 1, with its factor 2T. Inputs of any norm; no gradient to
    the keys. The own keys of rank r are the columns from r * B on.
    """
    q_BD = F.normalize(at_least_float32(query_BD), dim=1)
    k_GD = all_gather_rows(F.normalize(at_least_float32(key_BD.detach()), dim=1), group)
    logits = q_BD @ k_GD.T / temperature
    own = torch.arange(len(q_BD), device=q_BD.device) + rank(group) * len(q_BD)
    return F.cross_entropy(logits, own) * (2 * temperature), logits


class MoCoV3(Method):
    """Queries from backbone, projection and predictor; keys from a copy of the first two."""

    def __init__(self, config: MoCoV3Config, context: BuildContext) -> None:
        super().__init__(context)
        check_pair(context.num_views, "MoCo v3", "each the query and the key of the other")
        self.config, self.num_steps = config, context.num_steps
        is_vit, hidden, dim = config.head == "vit", config.hidden_dim, config.dim
        self.projection = moco_v3_head(
            context.width, hidden, dim, num_layers=3 if is_vit else 2, ends_in_norm=True
        )
        self.predictor = moco_v3_head(dim, hidden, dim, num_layers=2, ends_in_norm=is_vit)
        self.key_encoder = MomentumCopy(self._online())

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute algorithm 1: both queries, then the momentum update, then both keys."""
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
        # Loss where all keys are equally similar to both queries.
        plateau = 4 * temperature * math.log(logits_BG.shape[1])
        return StepOutput(first + second, {**readings, "momentum": momentum}, q_BD, plateau)

    def _readings(self, logits_BG: Tensor) -> dict[str, Tensor | float]:
        """Return `contrast_accuracy`, how often the key is the best match, and its mean cosine."""
        num_rows = len(logits_BG)
        own = torch.arange(num_rows, device=logits_BG.device) + rank(self.group) * num_rows
        positive_B1 = logits_BG.gather(1, own[:, None])
        return {
            "contrast_accuracy": (logits_BG.argmax(dim=1) == own).float().mean(),
            "positive_cosine": positive_B1.mean() * self.config.temperature,
        }

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projection)
