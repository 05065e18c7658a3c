"""MoCo v1 and v2: momentum contrast for unsupervised visual representation learning.

He et al., arXiv:1911.05722 (v1); Chen et al., arXiv:2003.04297 (v2: an MLP head, temperature 0.2).
A query must find the key of the same image among a long queue of keys of other images; keys
come from a momentum copy of the query encoder.

Shape letters: B samples of this rank, W ranks, G = W * B samples of the global batch, L queue, D
feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, rank, world_size
from streamssl.methods.base import Samples, StepOutput, as_pair, check_pair, step_generator
from streamssl.modules.drift import DriftProbe, evaluating
from streamssl.modules.feature_queue import FeatureQueue, QueueConfig
from streamssl.modules.heads import linear_head, mlp_head
from streamssl.modules.losses import at_least_float32, info_nce
from streamssl.modules.momentum import MomentumCopy


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoConfig:
    """MoCo v2; v1 is `head="linear", temperature=0.07` (section 3.3 of each paper).

    `key_batch_norm_rows`: about how many shuffled keys share batch norm statistics; 32 is a GPU's
    part of the paper's batch of 256. The queue is used from the first step and starts as noise.
    """

    head: Literal["linear", "mlp"] = "mlp"
    dim: int = 128
    temperature: float = 0.2
    momentum: float = 0.999
    key_batch_norm_rows: int = 32
    queue: QueueConfig = field(default_factory=lambda: QueueConfig(capacity=65_536))

    def __post_init__(self) -> None:
        for name in ("dim", "key_batch_norm_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; MoCo v1 has 0.07, v2 has 0.2"
            )
        if not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"momentum={self.momentum}; it must lie in [0, 1]; the papers have 0.999"
            )
        for name in ("start_step", "max_drift"):
            if getattr(self.queue, name):
                raise ConfigError(
                    f"queue {name}={getattr(self.queue, name)}; MoCo has no loss without its "
                    "queue, which starts with the first step; remove the setting"
                )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike; MoCo is the same throughout
        group: ProcessGroup | None = None,
    ) -> "MoCo":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return MoCo(self, backbone, num_views=num_views, seed=seed, group=group)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One step of MoCo after the encoders: `q`, `k` (B, D) unit norm; `logits` (B, 1 + L)."""

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
) -> Contrast:
    """From encoder outputs, of any norm, to the loss; then the keys of all ranks enter the queue.

    arXiv:1911.05722, eq. 1 and algorithm 1. The global batch must divide the capacity, so that a
    batch replaces exactly the oldest batch.
    """
    with torch.autocast(query_BD.device.type, enabled=False):
        q_BD = F.normalize(at_least_float32(query_BD), dim=1)
        k_BD = F.normalize(at_least_float32(key_BD.detach()), dim=1)
        # A copy: backward needs the queue as it was, and the keys enter before backward.
        loss, logits = info_nce(q_BD, k_BD, queue.rows.clone(), temperature)
    enqueue(k_BD, queue, step, group)
    return Contrast(loss, q_BD, k_BD, logits)


def enqueue(k_BD: Tensor, queue: FeatureQueue, step: int, group: ProcessGroup | None) -> None:
    """Keys of all ranks take the place of the oldest. Raises ConfigError unless those are whole
    batches."""
    global_batch = len(k_BD) * world_size(group)
    if queue.capacity % global_batch:
        fitting = max(1, round(queue.capacity / global_batch)) * global_batch
        raise ConfigError(
            f"queue capacity={queue.capacity} with a global batch of {global_batch}; "
            f"the capacity must be a multiple of the global batch; set it to {fitting}"
        )
    queue.push(all_gather_rows(k_BD, group), step)


class MoCo(nn.Module):
    """Query encoder (backbone and head), its momentum copy, and the queue of keys."""

    def __init__(
        self,
        config: MoCoConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_pair(num_views, "MoCo", "the query and the key")
        self.config, self.seed, self.group = config, seed, group
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        if config.head == "mlp":
            self.head: nn.Module = mlp_head(width, width, config.dim)
        else:
            self.head = linear_head(width, config.dim)
        encoder = nn.Sequential(self.backbone, self.head)
        self.key_encoder = MomentumCopy(encoder, own_batch_norm=True)  # see _encode_keys
        self.queue = config.queue.build(config.dim)
        self.queue.fill_with_noise(step_generator(seed, 0, "moco queue"))
        self.probe = DriftProbe(config.queue, cast(int, backbone.image_size), config.dim)

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,
        samples: Samples | None = None,
    ) -> StepOutput:
        """Algorithm 1 of arXiv:1911.05722."""
        query_crops, key_crops = as_pair(views)
        self.probe.look(key_crops, self._encode_alone, step=step, group=self.group)
        query_BD = self.head(self.backbone(query_crops))
        with torch.no_grad():
            self.key_encoder.update(nn.Sequential(self.backbone, self.head), self.config.momentum)
            key_BD = self._encode_keys(key_crops, step)
        contrast = self._contrast(query_BD, key_BD, step, samples)
        plateau = math.log(contrast.logits.shape[1])  # the key is as good as any other
        readings = self._readings(contrast, step)
        return StepOutput(contrast.loss, readings, contrast.q.detach(), plateau)

    def _contrast(
        self,
        query_BD: Tensor,
        key_BD: Tensor,
        step: int,
        samples: Samples | None,  # noqa: ARG002 - MoCHi, which is MoCo with other negatives, asks
    ) -> Contrast:
        return contrast_with_queue(
            query_BD,
            key_BD,
            self.queue,
            temperature=self.config.temperature,
            step=step,
            group=self.group,
        )

    def _encode_alone(self, crops: Tensor) -> Tensor:
        """Features of any norm, of images by themselves."""
        with evaluating(self.key_encoder):
            return self.key_encoder(crops)

    def _encode_keys(self, crops: Tensor, step: int) -> Tensor:
        """Keys (B, D) of this rank's samples, encoded among samples of all ranks (section 3.3).

        Shuffled batch norm: were a key normalised with the same companions as its query, the
        statistics would give it away. The permutation depends on the seed and the step only, so
        every rank knows it, and small batch norm groups come out alike for any number of ranks.
        """
        if not any(isinstance(module, _BatchNorm) for module in self.key_encoder.modules()):
            return self.key_encoder(crops)
        num_rows, num_ranks = len(crops), world_size(self.group)
        mine = slice(rank(self.group) * num_rows, (rank(self.group) + 1) * num_rows)
        generator = step_generator(self.seed, step, "moco shuffle")
        order_G = torch.randperm(num_rows * num_ranks, generator=generator).to(crops.device)
        shuffled = all_gather_rows(crops, self.group)[order_G[mine]]
        shuffled = shuffled.contiguous(memory_format=torch.channels_last)
        # At least two groups in all, or shuffling hides nothing; at least two rows in each.
        num_groups = max(2, num_rows * num_ranks // self.config.key_batch_norm_rows) // num_ranks
        groups = shuffled.tensor_split(max(1, min(num_groups, num_rows // 2)))
        keys_BD = torch.cat([self.key_encoder(rows) for rows in groups])
        return all_gather_rows(keys_BD, self.group)[order_G.argsort()[mine]]

    @torch.no_grad()
    def _readings(self, contrast: Contrast, step: int) -> dict[str, Tensor | float]:
        """`contrast_accuracy`: how often the key is the best match; mean cosines to both kinds."""
        cosines = contrast.logits.detach() * self.config.temperature
        positive_B, negative_BN = cosines[:, 0], cosines[:, 1:]
        return {
            "contrast_accuracy": (positive_B > negative_BN.amax(dim=1)).float().mean(),
            "positive_cosine": positive_B.mean(),
            "negative_cosine": negative_BN.mean(),
            **self.queue.readings(step),
            **self.probe.readings(),
        }

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing: the momentum copy moves when keys are encoded, as in algorithm 1."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone and head; the momentum copy is not trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
