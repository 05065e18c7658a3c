"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron et al., arXiv:2006.09882. A code is computed for some crops of an image by matching a batch
of them with prototypes in equal shares; every other crop of the image must predict it.

Shape letters: B samples of this rank, V crops of a sample, N = V * B crops in crop-major order
(rows [v * B, (v + 1) * B) are crop v), L rows of a queue, K prototypes, D feature.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows
from streamssl.methods.base import Samples, StepOutput
from streamssl.modules.drift import DriftProbe, evaluating
from streamssl.modules.feature_queue import FeatureQueue, QueueConfig
from streamssl.modules.heads import swav_head
from streamssl.modules.losses import at_least_float32, swav_loss
from streamssl.modules.prototypes import Prototypes
from streamssl.modules.sinkhorn import sinkhorn


@dataclass(frozen=True, kw_only=True, slots=True)
class SwAVConfig:
    """The settings of the paper for a batch of 4096 (section 4.1 and appendix A.2).

    `crops_for_assign` names the crops whose codes are computed, counted from 0 over all groups.
    `freeze_steps` is one epoch of ImageNet. A small batch wants a `queue` of about
    `num_prototypes` rows.
    """

    num_prototypes: int = 3000
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    crops_for_assign: tuple[int, ...] = (0, 1)
    freeze_steps: int = 313
    queue: QueueConfig | None = None

    def __post_init__(self) -> None:
        for name in ("num_prototypes", "dim", "hidden_dim", "sinkhorn_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        for name in ("temperature", "epsilon"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be above 0; the paper has 0.1 and 0.05"
                )
        num_distinct = len(set(self.crops_for_assign))
        if num_distinct == 0 or num_distinct < len(self.crops_for_assign):
            raise ConfigError(
                f"crops_for_assign={self.crops_for_assign}; it names at least one crop, each once; "
                "the paper has (0, 1)"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,  # noqa: ARG002 - every method is built alike; SwAV draws nothing of its own
        num_steps: int = 0,  # noqa: ARG002 - and changes nothing on the way
        group: ProcessGroup | None = None,
    ) -> "SwAV":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return SwAV(self, backbone, num_views=num_views, group=group)


@dataclass(frozen=True, slots=True)
class Swap:
    """One step of SwAV after the head: all that is computed on the way to `loss`.

    `embeddings` (N, D) unit norm and `scores` (N, K) carry gradient; `sinkhorn_in` and `codes` map
    an assigned crop to the scores it was matched with (its share of the queue first) and its codes.
    """

    loss: Tensor
    embeddings: Tensor
    scores: Tensor
    sinkhorn_in: Mapping[int, Tensor]
    codes: Mapping[int, Tensor]
    queue_used: bool


def swap_assignments(
    features_ND: Tensor,
    prototypes: Prototypes,
    queues: Sequence[FeatureQueue],
    config: SwAVConfig,
    *,
    num_crops: int,
    step: int,
    group: ProcessGroup | None,
    probe: DriftProbe | None = None,
) -> Swap:
    """From head outputs to the loss; new embeddings enter the queues after they were scored.

    `features_ND` are the head's outputs of all crops, any norm; prototypes must be normalised.
    `queues` has one queue for each crop of `config.crops_for_assign`, or is empty; without a
    `probe` their drift is not asked for. Section 3.1, and "working with small batches" there.
    """
    with torch.autocast(features_ND.device.type, enabled=False):
        z_ND = F.normalize(at_least_float32(features_ND), dim=1)
        scores_NK = prototypes(z_ND)
        num_samples = len(z_ND) // num_crops
        queue_used = _is_queue_used(queues, config, step, probe)
        sinkhorn_in, codes = {}, {}
        with torch.no_grad():
            for place, crop in enumerate(config.crops_for_assign):
                rows = slice(crop * num_samples, (crop + 1) * num_samples)
                scores_BK, z_BD = scores_NK[rows], z_ND[rows]
                if queue_used:
                    # Features of earlier steps are compared with the prototypes of this step.
                    queued_LD = queues[place].share(num_samples, group)
                    scores_BK = torch.cat([prototypes(queued_LD), scores_BK])
                q = sinkhorn(
                    scores_BK,
                    epsilon=config.epsilon,
                    num_iterations=config.sinkhorn_iterations,
                    group=group,
                )
                sinkhorn_in[crop], codes[crop] = scores_BK, q[-num_samples:]
                if queues:
                    # Reversed, so that reading newest first gives a batch back in sample order.
                    queues[place].push(all_gather_rows(z_BD, group).flip(0), step)
        loss = swav_loss(scores_NK, codes, config.temperature)
    return Swap(loss, z_ND, scores_NK, sinkhorn_in, codes, queue_used)


def _is_queue_used(
    queues: Sequence[FeatureQueue], config: SwAVConfig, step: int, probe: DriftProbe | None
) -> bool:
    """Whether codes are computed with the queue: from its start on, and only when full."""
    if config.queue is None or step < config.queue.start_step:
        return False
    is_full = all(queue.is_full for queue in queues)
    return is_full if probe is None else probe.has_started(step, is_full=is_full)


class SwAV(nn.Module):
    """Backbone, head, prototypes and one queue for each assigned crop."""

    def __init__(
        self,
        config: SwAVConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.num_crops = sum(num_views)
        if self.num_crops < 2 or not set(config.crops_for_assign) <= set(range(self.num_crops)):
            raise ConfigError(
                f"crops_for_assign={config.crops_for_assign} with {self.num_crops} crops a sample; "
                "at least two crops are needed, and assigned ones are counted from 0; "
                "add views or change crops_for_assign"
            )
        self.backbone = backbone
        self.head = swav_head(int(backbone.num_features), config.hidden_dim, config.dim)  # type: ignore[arg-type]
        self.prototypes = Prototypes(config.num_prototypes, config.dim)
        self.queues = nn.ModuleList(
            config.queue.build(config.dim)
            for _ in config.crops_for_assign
            if config.queue is not None
        )
        self.probe: DriftProbe | None = None
        if config.queue is not None:
            self.probe = DriftProbe(config.queue, cast(int, backbone.image_size), config.dim)

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,
        samples: Samples | None = None,  # noqa: ARG002 - only some methods ask who is who
    ) -> StepOutput:
        """Algorithm 1 of the paper (appendix A.1), with multi-crop and the queue."""
        self.prototypes.normalise_()
        if self.probe is not None:
            num_rows = sum(map(len, views)) // self.num_crops
            self.probe.look(views[0][:num_rows], self._encode, step=step, group=self.group)
        # One pass a resolution; the head then sees all crops at once, so that its batch norm does.
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        swap = swap_assignments(
            features_ND,
            self.prototypes,
            list(self.queues),  # type: ignore[arg-type]
            self.config,
            num_crops=self.num_crops,
            step=step,
            group=self.group,
            probe=self.probe,
        )
        codes_BK = torch.cat(list(swap.codes.values()))
        readings: dict[str, Tensor | float] = {**self.prototypes.count_use(codes_BK, self.group)}
        for queue in self.queues[:1]:
            readings |= queue.readings(step)  # type: ignore[operator]
        if self.probe is not None:
            readings |= self.probe.readings()
        readings["queue_used"] = float(swap.queue_used)
        num_samples = len(codes_BK) // len(swap.codes)
        # Features that are all alike have codes that are all equal, and nothing predicts these.
        plateau = math.log(self.config.num_prototypes)
        return StepOutput(swap.loss, readings, swap.embeddings[:num_samples].detach(), plateau)

    def _encode(self, crops: Tensor) -> Tensor:
        """Features of any norm, of each image by itself."""
        with evaluating(self.backbone, self.head):
            return self.head(self.backbone(crops))

    def after_backward(self, step: int) -> None:
        """Prototypes stay where they are for the first steps (section 4.1: it helps early on)."""
        if step < self.config.freeze_steps:
            self.prototypes.drop_gradient()

    def after_step(self, step: int) -> None:
        """Nothing: what a step leaves behind is written while the loss is computed."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone, head and prototypes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
