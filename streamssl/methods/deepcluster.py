"""DeepCluster-v2: clusters of the features of one epoch are the classes of the next.

Caron et al., arXiv:2006.09882, appendix D. A memory holds features of some crops. At intervals
spherical k-means assigns a cluster to every sample, and every crop must predict the cluster of its
sample. In "epochs" mode, as published, samples are clustered once an epoch, and the label of a
sample comes from its features of the epoch before. In "stream" mode no sample returns, and the
memory is a window: the label of a crop is the present cluster of another crop of the same sample,
and the centroids follow every batch.

Shape letters: B samples of this rank, G samples of the global batch, V crops of a sample, N = V * B
crops in crop-major order, A crops for assignment, H heads, K clusters of a head, L memory, D
feature.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.devices.host_copy import HostCopy
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum, world_size
from streamssl.methods.base import (
    BuildContext,
    Method,
    SampleInfo,
    StepOutput,
    check_crops,
    step_generator,
)
from streamssl.modules.feature_readings import perplexity
from streamssl.modules.heads import swav_head
from streamssl.modules.kmeans import Centroids, count_labels, nearest_centroids
from streamssl.modules.losses import assigned_cross_entropy, at_least_float32
from streamssl.modules.sample_memory import (
    NO_LABEL,
    LabelTable,
    SampleMemory,
    join_shares,
    sample_keys,
    share_of,
)


def label_loss(
    scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Return the mean over heads of the cross entropy of `scores[h]` (N, K) and `targets[h]` (N,).

    Crops without a label do not count, so that the mean over ranks is the mean over all labelled
    crops of the global batch.
    """
    losses = []
    for scores_NK, targets_N in zip(scores, targets, strict=True):
        num_labelled = all_reduce_sum((targets_N != NO_LABEL).sum(), group) / world_size(group)
        losses.append(assigned_cross_entropy(scores_NK, targets_N, temperature, num_labelled))
    return torch.stack(losses).mean()


def balanced_label_loss(
    scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Return `label_loss` with equal weights for all clusters that have crops.

    DeepCluster, arXiv:1807.05520, section 3.3: otherwise one cluster can absorb all others, in a
    stream within about ten steps.
    """
    losses = []
    for scores_NK, targets_N in zip(scores, targets, strict=True):
        counts_K = all_reduce_sum(count_labels(targets_N, scores_NK.shape[1]), group)
        weights_K = torch.where(counts_K > 0, 1 / counts_K.clamp(min=1), 0.0).to(scores_NK.dtype)
        total = F.cross_entropy(
            scores_NK / temperature,
            targets_N,
            weight=weights_K,
            ignore_index=NO_LABEL,
            reduction="sum",
        )
        losses.append(total * world_size(group) / (counts_K > 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


def label_plateau(num_prototypes: Sequence[int]) -> float:
    """Return `label_loss` where all prototypes are equally similar to a crop."""
    return sum(math.log(number) for number in num_prototypes) / len(num_prototypes)


def label_spread(
    targets: Sequence[Tensor], num_prototypes: Sequence[int], group: ProcessGroup | None
) -> Tensor:
    """Return the perplexity (H,) of each head's labels of all ranks: 1 if all are equal, NaN if
    there are none."""
    counts = [
        count_labels(targets_N, num) for targets_N, num in zip(targets, num_prototypes, strict=True)
    ]
    shared = all_reduce_sum(torch.cat(counts).double(), group).split(list(num_prototypes))
    return torch.stack([perplexity(counts_K) for counts_K in shared])


def gather_assigned_crops(
    z_ND: Tensor, crops: Sequence[int], num_samples: int, group: ProcessGroup | None
) -> Tensor:
    """Return embeddings (A, G, D) of the assigned crops of all ranks, in global sample order."""
    parts = [z_ND[crop * num_samples : (crop + 1) * num_samples].detach() for crop in crops]
    return all_gather_rows(torch.stack(parts, dim=1), group).transpose(0, 1)


class DeepCluster(Method):
    """Backbone, projection, centroids of each head, and the memory of clustered features."""

    num_clusterings: Tensor

    def __init__(self, config: DeepClusterConfig, context: BuildContext) -> None:
        super().__init__(context)
        self.config, self.seed = config, context.seed
        self.num_crops = context.num_crops
        check_crops(config.crops_for_assign, self.num_crops)
        self.projection = swav_head(context.width, config.hidden_dim, config.dim)
        self.heads = nn.ModuleList(Centroids(num, config.dim) for num in config.num_prototypes)
        self.memory = SampleMemory(config.memory, config.dim, len(config.crops_for_assign))
        capacity = config.memory if config.mode == "epochs" else 1
        self.labels = LabelTable(capacity, len(config.num_prototypes))
        self.register_buffer("num_clusterings", torch.zeros((), dtype=torch.int64))
        self._known_clusterings = HostCopy()

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of a step; cluster the memory first if it is due."""
        assert samples is not None, "clustering needs sample ids"
        if step and step % self.config.cluster_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.cluster(step)
        features_ND = self.projection(torch.cat([self.backbone(crops) for crops in views]))
        keys_B = sample_keys(samples.ids).to(features_ND.device, non_blocking=True)
        with torch.autocast(features_ND.device.type, enabled=False):
            z_ND = F.normalize(at_least_float32(features_ND), dim=1)
            scores = [head(z_ND) for head in self.heads]
            crops = self.config.crops_for_assign
            gathered_AGD = gather_assigned_crops(z_ND, crops, len(keys_B), self.group)
            targets = self._targets(z_ND, keys_B, gathered_AGD)
            of_labels = label_loss if self.config.mode == "epochs" else balanced_label_loss
            loss = of_labels(scores, targets, self.config.temperature, self.group)
        self.memory.push(all_gather_rows(keys_B, self.group), gathered_AGD)
        spread_H = label_spread(targets, self.config.num_prototypes, self.group)
        readings = label_readings(scores[0], targets[0], spread_H)
        readings["memory_fill"] = self.memory.fill
        # Before the first clustering there is no loss.
        plateau = label_plateau(self.config.num_prototypes) if self._has_clusters else None
        return StepOutput(loss, readings, z_ND[: len(keys_B)].detach(), plateau)

    @torch.no_grad()
    def _targets(self, z_ND: Tensor, keys_B: Tensor, gathered_AGD: Tensor) -> list[Tensor]:
        """Return the labels (N,) of all crops for each head."""
        if self.config.mode == "epochs":
            return [labels_B.repeat(self.num_crops) for labels_B in self.labels.look_up(keys_B)]
        crops, num_samples = self.config.crops_for_assign, len(keys_B)
        forget, targets = 1 / self.config.cluster_steps, []
        for number, head in enumerate(self._heads()):
            place = number % len(crops)
            own = slice(crops[place] * num_samples, (crops[place] + 1) * num_samples)
            labels_B = nearest_centroids(z_ND[own], head.centroids)
            if not self._has_clusters:
                labels_B = torch.full_like(labels_B, NO_LABEL)
            else:
                head.follow_(gathered_AGD[place], forget)
            labels_N = labels_B.repeat(self.num_crops)
            labels_N[own] = NO_LABEL  # a crop must not predict its own label
            targets.append(labels_N)
        return targets

    @property
    def _has_clusters(self) -> bool:
        """True after the first clustering."""
        return self._known_clusterings.read(self.num_clusterings) > 0

    def _heads(self) -> list[Centroids]:
        return list(self.heads)  # type: ignore[arg-type]

    @torch.no_grad()
    def cluster(self, step: int) -> None:
        """Cluster the memory for every head, and label every sample in it.

        Every head starts from random rows of the memory, as published, also in a stream: from the
        present centroids one cluster would absorb the others.
        """
        slots_L = self.memory.oldest_first()
        if len(slots_L) < max(self.config.num_prototypes):
            return
        mine = slots_L[share_of(len(slots_L), self.group)]
        labels = []
        for number, head in enumerate(self._heads()):
            bank_LD = self.memory.rows[number % len(self.config.crops_for_assign)]
            generator = step_generator(self.seed, step, f"deepcluster head {number}")
            order_L = torch.randperm(len(slots_L), generator=generator).to(slots_L.device)
            start_KD = bank_LD[slots_L[order_L[: len(head)]]]
            found = head.fit_(bank_LD[mine], start_KD, self.config.kmeans_iterations, self.group)
            labels.append(join_shares(found, len(slots_L), self.group))
        if self.config.mode == "epochs":
            self.labels.replace(self.memory.keys[slots_L], torch.stack(labels))
        self.num_clusterings += 1
        self._known_clusterings.forget()

    def after_backward(self, step: int) -> None:
        """Drop gradients before the first clustering: no update, no momentum, no decay."""
        if not self._has_clusters:
            for parameter in self.parameters():
                parameter.grad = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_clusterings.forget()


def label_readings(
    scores_NK: Tensor, targets_N: Tensor, spread_H: Tensor
) -> dict[str, Tensor | float]:
    """Return readings of the first head: the share of labelled crops, how often the label has the
    best score, and over how many prototypes labels are spread."""
    labelled_N = targets_N != NO_LABEL
    right_N = (scores_NK.argmax(dim=1) == targets_N) & labelled_N
    return {
        "labelled": labelled_N.float().mean(),
        "label_accuracy": right_N.sum() / labelled_N.sum().clamp(min=1),
        "assignments_used": spread_H[0],
    }
