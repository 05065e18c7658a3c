"""MoCo v1 and v2: momentum contrast for unsupervised visual representation learning.

He et al., arXiv:1911.05722 (v1); Chen et al., arXiv:2003.04297 (v2: an MLP head, temperature 0.2).
A query must find the key of its own image among a long queue of keys of other images. Keys come
from a momentum copy of the query encoder.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, L queue, D
feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import ConfigError
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.distributed.collectives import all_gather_rows, rank, world_size
from streamssl.methods.base import (
    BuildContext,
    Method,
    SampleInfo,
    StepOutput,
    as_pair,
    check_pair,
    step_generator,
)
from streamssl.modules.drift import DriftProbe, evaluating
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.heads import linear_head, mlp_head
from streamssl.modules.losses import at_least_float32, info_nce
from streamssl.modules.momentum import MomentumCopy


@dataclass(frozen=True, slots=True)
class ContrastOutput:
    """Results of one step of MoCo after the encoders.

    `q` and `k` (B, D) have unit norm; `logits` (B, 1 + L) have the key in column 0.
    """

    loss: Tensor
    q: Tensor
    k: Tensor
    logits: Tensor


def contrast_with_queue(
    query_BD: Tensor,
    key_BD: Tensor,
    queue: FeatureQueue,
    *,
    temperature: float,
    step: int,
    group: ProcessGroup | None,
) -> ContrastOutput:
    """Compute the loss from encoder outputs of any norm; then all ranks' keys enter the queue.

    arXiv:1911.05722, eq. 1 and algorithm 1. The global batch must divide the capacity, so that a
    batch replaces exactly the oldest batch.
    """
    with torch.autocast(query_BD.device.type, enabled=False):
        q_BD = F.normalize(at_least_float32(query_BD), dim=1)
        k_BD = F.normalize(at_least_float32(key_BD.detach()), dim=1)
        # A copy: backward needs the queue as it was, and the keys enter before backward.
        loss, logits = info_nce(q_BD, k_BD, queue.rows.clone(), temperature)
    enqueue(k_BD, queue, step, group)
    return ContrastOutput(loss, q_BD, k_BD, logits)


def enqueue(k_BD: Tensor, queue: FeatureQueue, step: int, group: ProcessGroup | None) -> None:
    """Replace the oldest keys by those of all ranks. Raises ConfigError for a partial batch."""
    global_batch = len(k_BD) * world_size(group)
    if queue.capacity % global_batch:
        fitting = max(1, round(queue.capacity / global_batch)) * global_batch
        raise ConfigError(
            f"queue capacity={queue.capacity} with a global batch of {global_batch}; "
            f"the capacity must be a multiple of the global batch; set it to {fitting}"
        )
    queue.push(all_gather_rows(k_BD, group), step)


class MoCo(Method):
    """Query encoder (backbone and head), its momentum copy, and the queue of keys."""

    def __init__(self, config: MoCoConfig, context: BuildContext) -> None:
        super().__init__(context)
        check_pair(context.num_views, "MoCo", "the query and the key")
        self.config, self.seed = config, context.seed
        if config.head == "mlp":
            self.head: nn.Module = mlp_head(context.width, context.width, config.dim)
        else:
            self.head = linear_head(context.width, config.dim)
        encoder = nn.Sequential(self.backbone, self.head)
        self.key_encoder = MomentumCopy(encoder, own_batch_norm=True)  # see _encode_keys
        self.queue = FeatureQueue(config.queue.capacity, config.dim)
        self.queue.fill_with_noise(step_generator(context.seed, 0, "moco queue"))
        self.probe = DriftProbe(config.queue, cast(int, context.backbone.image_size), config.dim)

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute algorithm 1 of arXiv:1911.05722."""
        query_crops, key_crops = as_pair(views)
        self.probe.measure(key_crops, self._encode_alone, step=step, group=self.group)
        query_BD = self.head(self.backbone(query_crops))
        with torch.no_grad():
            self.key_encoder.update(nn.Sequential(self.backbone, self.head), self.config.momentum)
            key_BD = self._encode_keys(key_crops, step)
        contrast = self._contrast(query_BD, key_BD, step, samples)
        plateau = math.log(contrast.logits.shape[1])  # all keys are equally similar
        readings = self._readings(contrast, step)
        return StepOutput(contrast.loss, readings, contrast.q.detach(), plateau)

    def _contrast(
        self, query_BD: Tensor, key_BD: Tensor, step: int, samples: SampleInfo | None
    ) -> ContrastOutput:
        """Return the contrast with the queue; MoCHi overrides it and needs the samples."""
        return contrast_with_queue(
            query_BD,
            key_BD,
            self.queue,
            temperature=self.config.temperature,
            step=step,
            group=self.group,
        )

    def _encode_alone(self, crops: Tensor) -> Tensor:
        """Return features of any norm, each computed from its image alone."""
        with evaluating(self.key_encoder):
            return self.key_encoder(crops)

    def _encode_keys(self, crops: Tensor, step: int) -> Tensor:
        """Return keys (B, D) of this rank's samples, with shuffled batch norm (section 3.3).

        If a key shared its batch norm statistics with its query, these would identify it. The
        permutation over all ranks depends on seed and step only, so every rank knows it, and small
        batch norm groups are the same for any number of ranks.
        """
        if not any(isinstance(module, _BatchNorm) for module in self.key_encoder.modules()):
            return self.key_encoder(crops)
        num_rows, num_ranks = len(crops), world_size(self.group)
        mine = slice(rank(self.group) * num_rows, (rank(self.group) + 1) * num_rows)
        generator = step_generator(self.seed, step, "moco shuffle")
        order_G = torch.randperm(num_rows * num_ranks, generator=generator)
        order_G = order_G.to(crops.device, non_blocking=True)
        shuffled = all_gather_rows(crops, self.group)[order_G[mine]]
        shuffled = shuffled.contiguous(memory_format=torch.channels_last)
        # At least two groups, or shuffling has no effect; at least two rows in each.
        num_groups = max(2, num_rows * num_ranks // self.config.key_batch_norm_rows) // num_ranks
        groups = shuffled.tensor_split(max(1, min(num_groups, num_rows // 2)))
        keys_BD = torch.cat([self.key_encoder(rows) for rows in groups])
        return all_gather_rows(keys_BD, self.group)[order_G.argsort()[mine]]

    @torch.no_grad()
    def _readings(self, contrast: ContrastOutput, step: int) -> dict[str, Tensor | float]:
        """Return `contrast_accuracy`, how often the key is the best match, and mean cosines."""
        cosines = contrast.logits.detach() * self.config.temperature
        positive_B, negative_BN = cosines[:, 0], cosines[:, 1:]
        return {
            "contrast_accuracy": (positive_B > negative_BN.amax(dim=1)).float().mean(),
            "positive_cosine": positive_B.mean(),
            "negative_cosine": negative_BN.mean(),
            **self.queue.readings(step),
            **self.probe.readings(),
        }
